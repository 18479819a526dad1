"""Every command of every guide is one that there is, and plans the run that it names."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import typer
from guides import ROOT, blocks, plan
from PIL import Image
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.config import load_config, parse_seeds
from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.registry import discover

WALK = ROOT / "examples" / "walk.md"
BASH = [b for b in blocks() if b.language == "bash" and b.guide != WALK]  # each step needs others
USAGE_ERROR = typer.BadParameter.__base__  # click's, wherever typer has it from


def commands(text: str) -> list[list[str]]:
    """Return the words of each command, without what is set in front of it.

    Example:
        >>> commands("A=1 peftcl run \\\\\\n  a.yaml  # why\\npip install . && pytest")
        [['peftcl', 'run', 'a.yaml'], ['pip', 'install', '.'], ['pytest']]
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"\w+=.*", command[0]):
                del command[0]
            found.append(command)
    return found


def check_peftcl(words: list[str], monkeypatch) -> None:
    """Let the command line take the words, and plan the run that they name."""
    group = typer.main.get_command(app)
    with group.make_context("peftcl", words) as context:
        _, command, rest = group.resolve_command(context, words)
        given = command.make_context(words[0], rest, parent=context).params
    if words[0] == "list" and given["name"] is not None:
        discover().get(given["kind"], given["name"])
    if words[0] in ("run", "manifest", "tune") and given["config"] is not None:
        if given["config"].parts[0] == "runs":  # written by the command before it
            return
        assert given["config"].is_file()
        seeds = given.get("seeds") and parse_seeds(given["seeds"])
        config = load_config(given["config"], given["overrides"] or [], seeds=seeds)
        plan(config)


def check_python(words: list[str], monkeypatch) -> None:
    """Let the script read its arguments, and go no further."""
    script, arguments = Path(words[0]), words[1:]
    assert script.is_file()
    if not arguments and "argparse" not in script.read_text(encoding="utf-8"):
        return  # it would run

    class ReadError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def read_only(self, *given, **named):
        parse(self, *given, **named)
        raise ReadError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(ReadError):
        runpy.run_path(str(script), run_name="__main__")


def check_pip(words: list[str], monkeypatch) -> None:
    """Check that what is installed from here is here."""
    assert words[0] == "install"
    for word in words[1:]:
        if word.startswith("./") or "/" in word or word.startswith("."):
            assert (Path(word.partition("[")[0]) / "pyproject.toml").is_file(), word


def check_pytest(words: list[str], monkeypatch) -> None:
    """Check that markers are declared and files are there."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            assert f'"{word}: ' in declared, word
        elif not word.startswith("-"):
            assert Path(word).exists(), word


CHECKS = {
    "peftcl": check_peftcl,
    "python": check_python,
    "pip": check_pip,
    "pytest": check_pytest,
}


@pytest.mark.parametrize("block", BASH, ids=str)
@pytest.mark.usefixtures("plugin_packages")
def test_commands_are_ones_that_there_are(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(block.text)
    assert found
    for command, *words in found:
        with monkeypatch.context() as patch:
            CHECKS[command](words, patch)


@pytest.mark.parametrize(
    "line",
    [
        "peftcl run examples/quickstart.yaml --sedes 0,1",
        "peftcl run examples/quickstart.yaml strategy.lrr=0.1",
        "peftcl run examples/quickest.yaml",
        "peftcl list strategy ntkcl",
        "peftcl compere runs",
        "python examples/real_images/measure.py --sedes 0",
        "pip install ./plugins/nothing",
        "pytest -m slowly",
        "pytest tests/test_nothing.py",
    ],
)
def test_commands_that_there_are_not_are_found(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    ((command, *words),) = commands(line)
    refused = (PEFTCLError, USAGE_ERROR, AssertionError, SystemExit)
    with pytest.raises(refused):
        CHECKS[command](words, monkeypatch)


@pytest.mark.slow
def test_the_commands_of_readme_run_after_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8")
    text = text.replace("n_experiences: 5", "n_experiences: 2")
    text = text.replace("train_epochs: 3", "train_epochs: 1")
    text = text.replace("name: digits", "name: digits\n  train_per_class: 4")
    Path("examples").mkdir()
    Path("examples/quickstart.yaml").write_text(text, encoding="utf-8")
    images = Path("folder/of/images")
    images.mkdir(parents=True)
    Image.new("L", (8, 8)).save(images / "five.png")
    labelled = Path("folder/of/classes/5")
    labelled.mkdir(parents=True)
    Image.new("L", (8, 8)).save(labelled / "five.png")
    (eight,) = [b.text for b in blocks(ROOT / "README.md") if "peftcl predict" in b.text]
    found = commands(eight)
    assert len(found) == 8
    quickstart = ["peftcl", "run", "examples/quickstart.yaml"]
    for _, *words in [quickstart, *found]:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output)
    for name in ("report.html", "digits.manifest", "digits.safetensors", "predictions.csv"):
        assert Path(name).is_file()
    assert Path("runs/quickstart-tune/tuned.yaml").is_file()


@pytest.mark.slow
def test_the_walk_can_be_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    walked = [b for b in blocks(WALK) if b.language != "text"]
    exec(compile(walked[0].text, str(walked[0]), "exec"), {})
    lines = [words for b in walked[1:] for _, *words in commands(b.text)]
    named = " ".join(words[0] for words in lines)
    assert named == "init run run run compare export evaluate"
    for words in lines:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output)
        if words[0] == "init":
            file = Path("written.yaml")
            text = file.read_text(encoding="utf-8").replace("train_epochs: 3", "train_epochs: 1")
            fewer = text.replace("# train_per_class: 100", "train_per_class: 4")
            assert fewer != text
            file.write_text(fewer, encoding="utf-8")
    assert "accuracy " in result.output
    for name in ("written.html", "written.safetensors", "runs/written/floors/ridge/seed2"):
        assert Path(name).exists()
