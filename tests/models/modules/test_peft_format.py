"""What peft alone loads onto timm's network gives the features that the branch gives."""

import json

import peft
import pytest
import timm
import torch

from avalanche_peftcl.errors import ExportError
from avalanche_peftcl.models import build_lora, build_peft_tuner
from avalanche_peftcl.models.modules.peft_tuner import _tuners
from avalanche_peftcl.models.passes import forward_branches
from avalanche_peftcl.testing import toy_backbone
from tests.models.modules.test_peft_tuner import NEEDED

FEW = ("ia3", "ln_tuning", "oft")  # all take ten seconds
TOY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}


def shaken(branch):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return branch.eval()


def by_peft_alone(backbone, folder, images):
    """The features of timm's network, with an adapter that peft has read."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TOY)
    vit.load_state_dict(backbone.vit.state_dict())
    return peft.PeftModel.from_pretrained(vit, folder).eval()(images)


@torch.no_grad()
def check(backbone, branch, folder):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (expected,) = forward_branches(backbone, [shaken(branch)], images)
    branch.save_pretrained(folder / "adapter", base_model="vit_tiny_patch16_224")
    found = by_peft_alone(backbone, folder / "adapter", images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected - backbone(images)).abs().max() > 1e-2  # there is something to load


@pytest.mark.parametrize(
    "tuner",
    [t if t in FEW else pytest.param(t, marks=pytest.mark.slow) for t in sorted(_tuners())],
)
def test_every_tuner_is_loaded_by_peft_alone(tuner, tmp_path):
    backbone = toy_backbone()
    torch.manual_seed(0)
    branch = build_peft_tuner(backbone=backbone, tuner=tuner, **NEEDED.get(tuner, {}))
    check(backbone, branch, tmp_path)


@pytest.mark.parametrize("options", [{}, {"alpha": 7.0, "r": 2}, {"learn_scale": False}])
def test_lora_with_its_learnt_scale_is_loaded_by_peft_alone(options, tmp_path):
    backbone = toy_backbone()
    check(backbone, build_lora(backbone=backbone, **options), tmp_path)
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["inference_mode"]) == ("LORA", True)
    assert told["base_model_name_or_path"] == "vit_tiny_patch16_224"


def test_weights_that_an_initialisation_changed_are_refused(tmp_path):
    branch = build_peft_tuner(backbone=toy_backbone(), tuner="lora", init_lora_weights="pissa")
    with pytest.raises(ExportError, match="initialisation of LoraConfig has changed the weights"):
        branch.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
