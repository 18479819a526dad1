"""PEGP on CLIP: both files, and the command for the adapter in each, say what was published."""

import re
import shlex
from pathlib import Path

import pytest

from avalanche_peftcl.config import load_config
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.registry import discover

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMON = {
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0002,
    "train_mb_size": 32,
    "train_epochs": 5,
    "merge_epochs": 5,
    "merge_share": 0.5,
    "near": "features",
    "anneal": True,
    "where": "gradient",
    "loss": "local",
}


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("pegp_clip_cifar100", ("82.36 / 2.82", "70.37 / 5.72")),
        ("pegp_clip_imagenet100", ("85.54 / 1.80", "79.16 / 2.60")),
    ],
)
def test_settings_are_those_of_the_release(name, figures):
    path = EXAMPLES / f"{name}.yaml"
    text = path.read_text(encoding="utf-8").replace("\\\n#", "")
    assert all(figure in text for figure in figures)
    (command,) = re.findall(r"^# *(peftcl run .*)", text, re.MULTILINE)
    words = shlex.split(command)
    assert words[:3] == ["peftcl", "run", f"examples/{name}.yaml"]
    prompt, adapter = (
        make_plan(load_config(path, overrides), discover()).settings
        for overrides in ([], words[3:])
    )
    for plan, threshold, images in ((prompt, 0.9, 768), (adapter, 0.99, 512)):
        found = {option: plan["strategy"][option] for option in COMMON}
        assert found == COMMON
        assert (plan["strategy"]["threshold"], plan["strategy"]["n_samples"]) == (threshold, images)
        assert (plan["head"]["name"], plan["head"]["n_context"]) == ("text_context", 16)
        assert plan["benchmark"]["n_experiences"] == 10
    assert (prompt["module"]["name"], prompt["module"]["length"]) == ("prompt", 10)
    assert adapter["module"] == {"name": "linear_adapter", "r": 5, "start": "released"}
