import io

import pytest
from rich.console import Console

from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.config.plan import make_plan, resolved_settings
from avalanche_peftcl.config.settings import read_settings as load_yaml
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.dry_run import Stopwatch, dry_run
from avalanche_peftcl.sweeps.command import run_as_asked

TOY = {"name": "digits", "n_experiences": 2, "train_per_class": 8}
WORDS = {
    "overwrite": False,
    "resume": None,
    "seeds": None,
    "jobs": 1,
    "ray": None,
    "floors": False,
}


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Dry-run a strategy and return what was shown; the working directory stays empty."""
    monkeypatch.chdir(tmp_path)

    def do(strategy, **settings):
        console = Console(file=io.StringIO(), width=80)
        parts = {"backbone": "vit_glyph", "benchmark": TOY, "output": "runs/a"}
        config = RunConfig(strategy=strategy, **parts | settings)
        dry_run(config, console=console)
        assert list(tmp_path.iterdir()) == []
        return console.file.getvalue()

    return do


def test_what_trains_and_how_long_is_shown_and_no_file_is_written(shown):
    text = shown({"name": "naive", "lr": 0.1, "train_epochs": 3, "train_mb_size": 16})
    assert text.startswith("dry run: naive on digits (class, 2 experiences), backbone vit_glyph")
    assert "trains " in text
    assert " of " in text
    assert "training: 80 images, 3 epochs, 18 minibatches of " in text  # of 40: 3 a pass
    assert "evaluation: 2 times, " in text
    assert "from 4 minibatches of training" in text
    assert text.rstrip().endswith("output: runs/a; nothing was written, loggers were not started")
    table = [line for line in text.splitlines() if line.startswith((" experience", " 1 ", " 2 "))]
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    assert table[1].split()[-2] == "40"


def test_what_does_not_train_is_said_so(shown):
    text = shown("closed_form", head="ridge", loggers=["tensorboard"])
    assert "nothing trains: 80 training images are seen once" in text
    assert "(training " in text


def test_several_seeds_are_one_plan(shown):
    text = shown("nearest_class_mean", seeds=[3, 4])
    assert "seed 3" in text
    assert "2 seeds, each as long: 3, 4\noutput: runs/a;" in text


def test_errors_are_those_of_the_run(shown, tmp_path):
    with pytest.raises(ConfigError, match="takes no module"):
        shown("ntk_cl", module="adapter")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").write_text("a file")
    with pytest.raises(ConfigError, match="runs/a is a file"):
        shown("nearest_class_mean")


def test_a_training_that_is_shorter_than_what_is_timed():
    watch = Stopwatch()
    assert watch.a_minibatch is None
    watch.seconds = [4.0]
    assert watch.a_minibatch == 4.0
    watch.seconds = [4.0, 1.0, 2.0]
    assert watch.a_minibatch == 1.5


@pytest.mark.parametrize("seeds", [None, "0,1"])
def test_the_configuration_that_is_printed_is_the_same_run(tmp_path, seeds):
    file, full = tmp_path / "run.yaml", tmp_path / "full.yaml"
    file.write_text("output: runs/a\nbackbone: vit_glyph\nbenchmark: digits\nstrategy: ntk_cl\n")
    console = Console(file=io.StringIO(), width=40)
    words = WORDS | {"seeds": seeds}
    assert run_as_asked(file, [], console=console, print_config=True, **words)
    full.write_text(console.file.getvalue(), encoding="utf-8")
    printed, asked = load_config(full), load_config(file)
    assert printed.strategy.options["recipe"] == "corrected"
    assert printed.seeds == (None if seeds is None else [0, 1])
    assert "seed" not in printed.benchmark.options or seeds is None
    if seeds is None:
        assert make_plan(printed, discover()).settings == make_plan(asked, discover()).settings
    again = resolved_settings(printed, discover())
    assert again == load_yaml(full)


def test_words_that_do_not_go_together(tmp_path):
    console = Console(quiet=True)
    for words, said in (
        ({"print_config": True, "dry_run": True}, "two things"),
        ({"dry_run": True, "resume": tmp_path}, "a run that goes on keeps its settings"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_as_asked(None, [], console=console, **WORDS | words)
