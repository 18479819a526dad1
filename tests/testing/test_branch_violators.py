"""Modules that break their contract, each in one way; the test of that name must notice."""

import os

import pytest
import torch
from torch import nn

from avalanche_peftcl.models import AdapterBranch
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.testing import BranchContract


class Honest(BranchContract):
    """Adapters; what follows changes one thing of them."""

    def create_branch(self, backbone):
        return build_adapters(backbone=backbone, dropout=0.0)


def branch_with(**members):
    """Return an honest contract whose module has other members."""
    kind = type("Module", (AdapterBranch,), members)

    class Violator(Honest):
        def create_branch(self, backbone):
            return kind(backbone.embed_dim, backbone.depth, dropout=0.0)

    return Violator


def changed(change):
    """Return an honest contract whose module is changed after it was built."""

    class Violator(Honest):
        def create_branch(self, backbone):
            branch = super().create_branch(backbone)
            change(branch, backbone)
            return branch

    return Violator


def off_its_start(branch, backbone):
    branch.adapters[1].up.bias.data[0] = 1.0


def disconnected(self, backbone, hidden, output, *, context=None):
    return output


def left_out(self, backbone, index, hidden, *, context=None):
    return hidden + backbone.feed(index, hidden)


def leaning(self, backbone, tokens):
    pooled = backbone.pool(tokens)
    return pooled + 0.3 * pooled.mean(0)


def chosen_by_minibatch(self, backbone, embedded):
    return int(embedded.tokens.mean(dim=(0, 1)).argmax())


def scaled_by_choice(self, backbone, hidden, output, *, context=None):
    return AdapterBranch.enter(self, backbone, hidden, output) * (1 + context)


def through_numpy(self, backbone, tokens):
    added = backbone.feed(2, tokens)
    return backbone.pool(tokens) + float(added.detach().numpy().mean())


def opens_the_backbone(branch, backbone):
    backbone.vit.norm.requires_grad_(True)


def leaves_it_in_train_mode(branch, backbone):
    backbone.vit.norm.training = True


def merges_itself(self, backbone, hidden, output, *, context=None):
    with torch.no_grad():
        backbone.vit.norm.bias += 1e-3
    return AdapterBranch.enter(self, backbone, hidden, output)


def draws(branch, backbone):
    branch.adapters[0].down.bias.data += int.from_bytes(os.urandom(4)) / 2**32


def draws_in_secret(self, backbone, embedded):
    """Keep a tensor of its own in no state dict."""
    self.shift = vars(self).get("shift", torch.randn(backbone.embed_dim))


def shifted(self, backbone, tokens):
    return backbone.pool(tokens) + self.shift


class IsScaledLater(Honest):
    """Is given a scale after it was built, so that nobody builds it again with it."""

    def create_branch(self, backbone):
        branch = super().create_branch(backbone)
        branch.adapters[0].scale = 2.0
        return branch


VIOLATORS = [
    ("test_start", changed(off_its_start)),
    ("test_changes_the_features", branch_with(enter=disconnected, step=left_out)),
    ("test_width", branch_with(out_features=lambda self, backbone: 7)),
    ("test_images_are_independent", branch_with(pool=leaning)),
    (
        "test_images_are_independent",
        branch_with(begin=chosen_by_minibatch, enter=scaled_by_choice),
    ),
    ("test_precision", branch_with(pool=through_numpy)),
    ("test_gradients", changed(lambda b, _: setattr(b, "unused", nn.Parameter(torch.zeros(3))))),
    ("test_gradients", changed(opens_the_backbone)),
    ("test_backbone_is_bit_identical", branch_with(enter=merges_itself)),
    ("test_backbone_is_bit_identical", changed(leaves_it_in_train_mode)),
    ("test_same_seed_same_weights", changed(draws)),
    ("test_state_dict_round_trip", branch_with(begin=draws_in_secret, pool=shifted)),
    ("test_exported_network_predicts_the_same", IsScaledLater),
]


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    assert notices(name, Honest, violator, (AssertionError, TypeError))


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(BranchContract)
