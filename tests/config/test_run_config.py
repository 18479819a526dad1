import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from avalanche_peftcl.config import ComponentConfig, RunConfig, load_config
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError

GOOD = """
output: runs/a
backbone: {name: vit_glyph}
benchmark: {name: digits, n_experiences: 5}
strategy:
  name: ntk_cl
  lr: 1e-3
plugins:
  - {name: replay, mem_size: 200}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read_with_defaults(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.output == Path("runs/a")
    assert (config.seed, config.device, config.num_workers, config.evaluate) == (
        0,
        "cpu",
        0,
        "seen",
    )
    assert config.num_threads is None
    assert config.module is None
    assert config.strategy.options == {"lr": 0.001}
    assert config.plugins[0].options == {"mem_size": 200}
    assert config.metrics == []


def test_a_config_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_anchors_are_read_and_may_be_used_several_times(tmp_path):
    text = GOOD + "metrics: [&m {name: one, k: [1, 2]}, *m]\n"
    config = load_config(write(tmp_path, text))
    assert [metric.options for metric in config.metrics] == [{"k": [1, 2]}, {"k": [1, 2]}]


def test_overrides_replace_and_add(tmp_path):
    config = load_config(
        write(tmp_path, GOOD),
        [
            "seed=7",
            "strategy.lr=0.5",
            "plugins.0.mem_size=5",
            "module.name=adapter",
            "backbone.name=a/b",
            "benchmark.class_order=[1, 0]",
            "benchmark.label=a=b",
        ],
    )
    assert config.seed == 7
    assert config.strategy.options == {"lr": 0.5}
    assert config.plugins[0].options == {"mem_size": 5}
    assert config.module is not None
    assert config.module.name == "adapter"
    assert config.backbone.name == "a/b"
    assert config.benchmark.options["class_order"] == [1, 0]
    assert config.benchmark.options["label"] == "a=b"


def test_a_component_that_is_a_name_alone_takes_options(tmp_path):
    changed = ["strategy=naive", "strategy.lr=0.5", "plugins=[replay]", "plugins.0.mem_size=5"]
    config = load_config(write(tmp_path, GOOD), changed)
    assert (config.strategy.name, config.strategy.options) == ("naive", {"lr": 0.5})
    assert (config.plugins[0].name, config.plugins[0].options) == ("replay", {"mem_size": 5})


def test_the_dump_is_read_back_unchanged(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["strategy.text='1e-3'", "strategy.eps=1e-12"])
    again = load_config(write(tmp_path, dump_settings(config.model_dump(mode="json"))))
    assert again == config
    assert again.strategy.options["text"] == "1e-3"


def test_the_example_is_a_good_config():
    example_file = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    config = load_config(example_file)
    assert config.output == Path("runs/quickstart")
    assert config.strategy.name == "ntk_cl"


def test_a_name_alone_is_a_component_without_options(tmp_path):
    config = load_config(
        write(
            tmp_path,
            GOOD + "module: adapter\nloggers: [tensorboard, {name: wandb, mode: offline}]\n",
        ),
        [
            "strategy=nearest_class_mean",
            "plugins=[replay]",
            "plugins.0={name: replay, mem_size: 5}",
        ],
    )
    assert config.module == ComponentConfig(name="adapter")
    assert (config.strategy.name, config.strategy.options) == ("nearest_class_mean", {})
    assert [each.options for each in config.loggers] == [{}, {"mode": "offline"}]
    assert config.plugins[0].options == {"mem_size": 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            GOOD + "bacbone: {name: a}\n",
            r"unknown key 'bacbone' \(did you mean 'backbone'\?\); the keys are output",
        ),
        (GOOD + "zzz: 1\n", "unknown key 'zzz'; the keys are output, seed"),
        ("output: a\n", "the key 'backbone' is missing\nthe key 'benchmark' is missing"),
        (GOOD + "seed: one\n", "seed must be a valid integer, got 'one'"),
        (
            GOOD + "seed: 0,1\n",
            "seed is one number; for several runs leave it out and take --seeds",
        ),
        (GOOD + "loggers: csv\n", r"loggers is a list: loggers=\[csv\], or \[{name: csv, option"),
        (GOOD + "seed: true\n", "seed must be a valid integer, got True"),
        (GOOD + "seed: -1\n", "seed must be greater than or equal to 0, got -1"),
        (GOOD + "num_threads: 0\n", "num_threads must be greater than or equal to 1, got 0"),
        (GOOD + "num_threads: 2147483648\n", "num_threads must be less than or equal to 1024"),
        (GOOD + "num_workers: 2147483648\n", "num_workers must be less than or equal to 1024"),
        (GOOD + "evaluate: none\n", "evaluate must be 'seen' or 'all', got 'none'"),
        (GOOD + "module: 7\n", r"module must be a name or a mapping with one, .*; got 7"),
        (GOOD + "metrics: [{k: 1}]\n", "the key 'metrics.0.name' is missing"),
        (GOOD + "metrics: {name: a}\n", "metrics must be a valid list"),
        (GOOD + "device: 3\n", "device must be a valid string, got 3"),
        (GOOD + "output: b\n", "key 'output' is given twice, in lines 2 and 10"),
        (GOOD + "metrics: [{name: a, k: 1, k: 2}]\n", "key 'k' is given twice"),
        (
            GOOD + "module: {name: a, when: 2020-01-01}\n",
            r"2020-01-01 can be read as a date or as text; write '2020-01-01' if",
        ),
        (GOOD + "module: {name: a, 1: 2}\n", "module has the key 1; keys must be words"),
        (GOOD + "module: {name: a, b: .nan}\n", "module.b must be a finite number, got nan"),
        (GOOD + "module: {name: a, b: 0x1ffffffffffffffffff}\n", "module.b is a whole number"),
        (
            GOOD + "module: &m {name: a, b: *m}\n",
            r"the alias 'm' stands within what it names \(line",
        ),
        (GOOD + 'module: {name: a, b: "\\0"}\n', "module.b holds a character"),
        (GOOD + "module: {name: ''}\n", "module.name must have at least 1 character"),
        (GOOD.replace("runs/a", "''"), "output must name a folder, got ''"),
        (GOOD.replace("runs/a", "[1]"), r"output must name a folder, got \[1\]"),
        ("a: [1\n", r"is not valid YAML: .* in line 2"),
        ("a: !!python/object:os.system {}\n", r"the tag '.*' is not allowed.*\(line 1\)"),
        ("- 1\n", r"must hold a mapping with the keys output.*; got \[1\]"),
        ("", "must hold a mapping .*; got None"),
        ("a: 2020-99-99\n", r"can be read as nothing at all or as text.*\(line 1\)"),
        ("a: " + "[" * 5000, "nested too deeply|not valid YAML"),
    ],
)
def test_bad_files_get_one_plain_message(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(write(tmp_path, text))
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "'seed' is not of the form key=value"),
        ("=1", "'=1' is not of the form key=value"),
        ("strategy..lr=1", "is not of the form key=value"),
        ("seed.x=1", r"seed must be a valid integer, got \{.x.: 1\}"),
        ("output.x=1", "goes into output, which is 'runs/a', not a mapping"),
        ("benchmark.name.x=1", "goes into benchmark.name, which is 'digits', not a mapping"),
        ("plugins.1.mem_size=5", "names '1' in plugins, a list of 1"),
        ("plugins.x=5", "names 'x' in plugins, a list of 1"),
        ("seed=[1", "the value of the override 'seed=\\[1' is not valid YAML"),
        ("sead=1", r"unknown key 'sead' \(did you mean 'seed'\?\)"),
    ],
)
def test_bad_overrides_get_one_plain_message(tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, GOOD), [override])


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no file a/b\.yaml in the working directory"):
        load_config("a/b.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_config("bytes.yaml")


def test_a_few_lines_cannot_blow_up_into_billions_of_values(tmp_path):
    lines = ["output: a", "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="hold more than"):
        load_config(write(tmp_path, "\n".join(lines)))


def test_thousands_of_wrong_keys_are_one_short_message(tmp_path):
    text = GOOD + "\n".join(f"{'k' * 50}{i}: 1" for i in range(3_000))
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("\nand 2980 more")


def test_a_long_key_a_long_value_and_a_long_override_are_cut(tmp_path):
    long = "x" * 10_000
    for text, override in (
        (GOOD + f"{long}: 1\n", "seed=1"),
        (GOOD + f"seed: {long}\n", "device=cpu"),
        (GOOD + f"seed: [&a [{long}], {', '.join(['*a'] * 1000)}]\n", "device=cpu"),
        (GOOD, f"seed={long}"),
        (GOOD, f"{long}=1"),
        (GOOD, long),
        (GOOD, f"output.{long}=1"),
        (GOOD, f"plugins.{long}=1"),
        (GOOD, f"seed=[{long}"),
        (GOOD, f"seed=!{long} 1"),
        (GOOD, f"seed=*{long}"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path, text), [override])
        assert len(str(caught.value)) < 2_000


def test_a_file_without_end_is_refused():
    if not Path("/dev/zero").exists():
        pytest.skip("there is no /dev/zero")
    with pytest.raises(ConfigError, match="longer than any configuration"):
        load_config("/dev/zero")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = GOOD.replace("runs/a", "~/runs/a")
    assert load_config(write(tmp_path, text)).output == tmp_path / "runs" / "a"
    assert load_config(write(tmp_path, GOOD), ["output=~/b"]).output == tmp_path / "b"
    with pytest.raises(ConfigError, match="output must name a folder; Could not determine home"):
        load_config(write(tmp_path, GOOD), ["output=~nobody-of-that-name/b"])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)
mappings = st.dictionaries(st.sampled_from(list(RunConfig.model_fields)), values)
fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(text=st.text(), override=st.text(max_size=20))
@example(text="{a: &a [*a]}", override="a=1")
@example(text="a: !!timestamp x", override="seed=1_0")
@example(text="a: &a {<<: [*a, *a]}", override="seed=0o9")
@example(text="[1:2:3, 0b1, 0x, 1e999, .nan, =, 2001-1-1 1:1:1]", override="seed==")
@example(text="? [a]\n: b", override="a.b")
@example(text="<<: 1", override="a=")
@example(text="a: !!int x", override="a=")
@example(text="a: " + "9" * 5000, override="a=")
@example(text="!!set {a, b}", override="a=b")
@example(text="=", override="a=b")
@example(text="a: !!binary x", override="a=!!timestamp x")
def test_no_text_gets_anything_but_a_config_error(tmp_path, text, override):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        load_config(path, [override])


@fuzz
@given(mapping=mappings)
def test_no_mapping_gets_anything_but_a_config_or_a_config_error(tmp_path, mapping):
    path = write(tmp_path, dump_settings(mapping).encode("utf-8", "replace").decode())
    try:
        config = load_config(path)
    except ConfigError:
        return
    assert load_config(write(tmp_path, dump_settings(config.model_dump(mode="json")))) == config


def test_reading_a_config_imports_no_torch():
    import subprocess

    code = "import sys, avalanche_peftcl.config.run_config; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.strip() == "False"
