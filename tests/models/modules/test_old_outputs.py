"""A module that moves only where its sites let it keeps the features of old images."""

import pytest
import torch

from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt

EVERY_BLOCK = {"against": "queries", "project_values": True, "blocks": [0, 1, 2]}


@pytest.mark.parametrize(
    ("build", "options", "network"),
    [
        # 5 tokens of 32 dimensions
        (build_attention_adapters, {"r": 8}, {}),
        # 5 tokens: queries span 5 of a head's 16 dimensions, weights 5 of 10
        (build_prefix, {"length": 10}, {}),
        (build_prefix, {"length": 10}, {"qk_norm": True}),
        # 5 tokens and 2 heads: 10 of 32 dimensions for the keys, 10 of 16 weights
        (build_prompt, {"length": 16} | EVERY_BLOCK, {}),
    ],
)
def test_old_outputs_stay(make_sharp_backbone, move, build, options, network):
    backbone = make_sharp_backbone(**network)
    branch = build(backbone=backbone, **options)
    move(branch)
    old, new = torch.randn(2, 1, 3, 8, 8)

    def features(images):
        return forward_branches(backbone, [branch], images)[0].detach()

    before_old, before_new = features(old), features(new)
    move(branch, old=lambda: features(old))
    torch.testing.assert_close(features(old), before_old, atol=1e-5, rtol=0)
    assert (features(new) - before_new).abs().max() > 0.01
    move(branch)
    assert (features(old) - before_old).abs().max() > 0.01
