"""README's commands, code and configurations are what they say."""

import functools
import re
import runpy
import shlex
from pathlib import Path

import pytest

from avalanche_peftcl import benchmarks
from avalanche_peftcl.config import load_config, parse_seeds
from avalanche_peftcl.config.plan import check_components
from avalanche_peftcl.registry import discover

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w[\w ]*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ci_finds_its_two_commands():
    commands = [text.strip() for kind, text in BLOCKS if kind == "bash ci"]
    assert len(commands) == 2
    assert commands[0].endswith("peftcl run examples/quickstart.yaml")
    assert commands[1].endswith("pytest")


@pytest.fixture
def few_digits(monkeypatch) -> None:
    """Let code that names no number of training images have 16 a class instead of all 144."""
    fewer = functools.partial(benchmarks.digits, train_per_class=16)
    monkeypatch.setattr(benchmarks, "digits", fewer)


@pytest.mark.parametrize("index", range(sum(kind == "python" for kind, _ in BLOCKS)))
def test_python_of_readme_runs(index, capsys, tmp_path, monkeypatch, few_digits):
    monkeypatch.chdir(tmp_path)  # a block that writes a file writes it there
    code = [text for kind, text in BLOCKS if kind == "python"][index]
    scope = {}
    exec(compile(code, f"README.md python block {index}", "exec"), scope)
    assert len(scope) > 2


def test_python_example_runs(capsys, few_digits):
    example = runpy.run_path(str(ROOT / "examples" / "plain_python.py"))
    matrix = example["main"](train_epochs=1)
    assert matrix.summary()["last_accuracy"] > 0.3


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("plugins/*/*.yaml")]),
    ids=lambda path: path.name,
)
def test_configurations_of_the_examples_are_valid(path):
    config = load_config(path)
    check_components(config, discover())
    assert config.output.parts[0] == "runs"


def _runs() -> list[list[str]]:
    bash = "\n".join(text for kind, text in BLOCKS if kind.startswith("bash"))
    lines = re.findall(r"peftcl run (.*)", bash.replace("\\\n", ""))
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("words", _runs(), ids=" ".join)
def test_runs_of_readme_are_valid(words):
    taken = {"--seeds", "--jobs", "--resume"}
    seeds = None
    if "--seeds" in words:
        seeds = parse_seeds(words[words.index("--seeds") + 1])
    plain = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("--") and before not in taken
    ]
    if "--resume" in words:
        assert plain == []
        return
    config = load_config(ROOT / plain[0], plain[1:], seeds=seeds)
    check_components(config, discover())


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "yaml"])
def test_keys_of_readme_are_valid(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text((ROOT / "examples" / "quickstart.yaml").read_text() + text)
    config = load_config(path)
    check_components(config, discover())
    assert [logger.name for logger in config.loggers] == ["tensorboard", "wandb"]


def test_paths_that_readme_names_exist():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?:examples|plugins)/[\w./-]+\.(?:yaml|py)", README):
        assert (ROOT / name).exists(), name


def test_every_public_name_that_readme_says_is_there():
    import avalanche_peftcl.evaluation as evaluation
    import avalanche_peftcl.training.plugins as plugins

    for name in set(re.findall(r"`(\w+Plugin)`", README)) - {"SupervisedPlugin"}:
        assert hasattr(plugins, name), name
    assert {"AccuracyMatrix", "CostMetric"} <= set(evaluation.__all__)
