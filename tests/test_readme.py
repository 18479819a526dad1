"""README is short, and its two commands are those that are checked."""

import importlib
import re

import pytest
from guides import GUIDES, ROOT, blocks

README = ROOT / "README.md"


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_ci_finds_its_two_commands():
    commands = [block.text.strip() for block in blocks(README) if block.info == "bash ci"]
    assert len(commands) == 2
    assert commands[0].endswith("peftcl run examples/quickstart.yaml")
    assert commands[1].endswith("pytest")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_that_guides_say_is_there(guide):
    public = {"SupervisedPlugin", "SupervisedTemplate"}  # of Avalanche
    for room in ("benchmarks", "evaluation", "models", "testing", "training", "training.plugins"):
        public |= set(importlib.import_module(f"avalanche_peftcl.{room}").__all__)
    text = guide.read_text(encoding="utf-8")
    kinds = "Plugin|Metric|Matrix|Contract|Branch|Head|Model|Options|Template"
    assert set(re.findall(rf"`(?:models\.)?(\w+(?:{kinds}))`", text)) <= public
