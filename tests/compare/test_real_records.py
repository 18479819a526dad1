import re

import torch
from typer.testing import CliRunner

from avalanche_peftcl import cli
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.runs.run import run


def test_records_as_they_are_written_can_be_compared(tmp_path):
    tiny = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
    tiny |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
    options = {key: value for key, value in tiny.items() if key != "name"}
    torch.save(create_backbone(**options).vit.state_dict(), tmp_path / "weights.pt")
    for name in ("nearest_class_mean", "naive"):
        for seed in (0, 1):
            config = {
                "output": str(tmp_path / "runs" / f"{name}{seed}"),
                "seed": seed,
                "backbone": tiny | {"checkpoint": str(tmp_path / "weights.pt")},
                "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 2},
                "strategy": {"name": name} | ({"train_epochs": 1} if name == "naive" else {}),
            }
            run(RunConfig.model_validate(config))
    words = ["compare", str(tmp_path / "runs"), "--published"]
    result = CliRunner().invoke(cli.app, words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"^ ?naive +2 ", result.stdout, re.MULTILINE)
    assert re.search(r"^ ?nearest_class_mean +2 ", result.stdout, re.MULTILINE)
