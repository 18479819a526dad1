import pytest

from avalanche_peftcl.config import RunConfig, config_from
from avalanche_peftcl.errors import ConfigError

SETTINGS = {
    "output": "runs/a",
    "backbone": {"name": "vit_glyph"},
    "benchmark": {"name": "digits"},
    "strategy": {"name": "naive", "lr": 0.1},
}
TEXT = "output: runs/a\nbackbone: vit_glyph\nbenchmark: digits\nstrategy: {name: naive, lr: 0.1}\n"


def test_all_forms_say_the_same(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(TEXT, encoding="utf-8")
    wanted = RunConfig.model_validate(SETTINGS)
    one_line = (
        "{output: runs/a, backbone: vit_glyph, benchmark: digits, strategy: {name: naive, lr: 0.1}}"
    )
    for asked in (wanted, SETTINGS, TEXT, one_line, file, str(file)):
        assert config_from(asked) == wanted
        assert config_from(asked, ["strategy.lr=0.2", "seed=3"]).strategy.options == {"lr": 0.2}
    assert SETTINGS["strategy"] == {"name": "naive", "lr": 0.1}  # the caller's, as it was


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("no/such.yaml", "there is no file no/such.yaml"),
        ("output: [", "the configuration is not valid YAML"),
        ("just: one", "the configuration: the key 'output' is missing"),
        (7, "a RunConfig, a mapping, YAML as text or the path of a YAML file; got 7"),
    ],
)
def test_what_is_no_run_is_told(asked, said):
    with pytest.raises(ConfigError, match=said):
        config_from(asked)
