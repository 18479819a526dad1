import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import build_peft_tuner
from avalanche_peftcl.models.modules.peft_tuner import _tuners
from avalanche_peftcl.testing import BranchContract


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tuner": "lorra"},
            r"no tuner 'lorra' that replaces layers \(did you mean 'lora'\?\)\. There are",
        ),
        ({"tuner": "dora"}, "DoRA, rsLoRA and PiSSA are 'lora' with use_dora=True"),
        ({"tuner": "vera"}, "no tuner 'vera'.* There are .*adalora, .*loha"),
        ({"tuner": "Lily"}, "averages its routing over all images of a minibatch"),
        ({"tuner": "prompt_tuning"}, "no tuner 'prompt_tuning' that replaces layers"),
        (
            {"tuner": "lora", "rr": 2, "x": 1},
            "'lora' has no option 'rr', 'x'.* There are .*use_dora",
        ),
        ({"tuner": "lora", "lora_alfa": 2}, "did you mean 'lora_alpha'"),
        ({"tuner": "lora", "layers_to_transform": [0]}, "no option 'layers_to_transform'"),
        ({"tuner": "lora", "inference_mode": True}, r"no option 'inference_mode'\. There are .*r,"),
        ({"tuner": "adalora"}, "refuses the options of tuner 'adalora'.*total_step"),
        ({"tuner": "ia3"}, "peft refuses IA3Config.*feedforward_modules"),
        ({"tuner": "lora", "r": 0}, "peft refuses LoraConfig.*positive"),
        (
            {"tuner": "lora", "bias": "all"},
            "outside the tuned layers: patch_embed.proj.bias.*use bias='none'",
        ),
        (
            {"tuner": "lora", "target_modules": ("q",)},
            "block 0 has no layer 'q'.*attn.qkv, attn.proj, mlp.fc1, mlp.fc2",
        ),
        ({"tuner": "lora", "target_modules": "query"}, "no layer 'query'"),
        ({"tuner": "lora", "target_modules": ()}, "target_modules is empty.*attn.qkv"),
        (
            {"tuner": "lora", "target_modules": ("norm1",)},
            "refuses LoraConfig: Target module LayerNorm.* is not supported.*attn.qkv",
        ),
        ({"tuner": "lora", "blocks": [3]}, "blocks count from 0 to 2"),
        (
            {"tuner": "ia3", "feedforward_modules": ["fc3"]},
            "block 0 has no layer 'fc3'",
        ),
    ],
)
def test_bad_options_are_config_errors(backbone, options, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build_peft_tuner(backbone=backbone, **options)


# what a tuner has to be told, or what fits a network of 32 dimensions
NEEDED = {
    "adalora": {"total_step": 10},
    "c3a": {"block_size": 16},
    "ia3": {"feedforward_modules": ["qkv"]},
    "miss": {"r": 2},
    "road": {"group_size": 16},
    "shira": {"r": 2},
}


@pytest.mark.parametrize("tuner", sorted(_tuners()))
def test_no_tuner_mixes_the_images_of_a_minibatch(tuner):
    class Tuned(BranchContract):
        def create_branch(self, backbone):
            return build_peft_tuner(backbone=backbone, tuner=tuner, **NEEDED.get(tuner, {}))

    tuned = Tuned()
    tuned.test_images_are_independent()
    (backbone, branch), images = tuned.shaken(), tuned.images()
    with torch.no_grad():
        moved = tuned.run(backbone, branch.eval(), images) - backbone(images)
    assert moved.abs().amax(dim=1).min() > 1e-4  # of every image: there is something to mix
