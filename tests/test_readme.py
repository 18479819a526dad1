"""README is short, and its two commands are those that are checked."""

import re

from guides import ROOT, blocks

README = ROOT / "README.md"


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_ci_finds_its_two_commands():
    commands = [block.text.strip() for block in blocks(README) if block.info == "bash ci"]
    assert len(commands) == 2
    assert commands[0].endswith("peftcl run examples/quickstart.yaml")
    assert commands[1].endswith("pytest")


def test_every_public_name_that_readme_says_is_there():
    import avalanche_peftcl.evaluation as evaluation
    import avalanche_peftcl.training.plugins as plugins

    text = README.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(\w+Plugin)`", text)) - {"SupervisedPlugin"}:
        assert name in plugins.__all__, name
    assert {"AccuracyMatrix", "CostMetric"} <= set(evaluation.__all__)
