"""Heads that break their contract, each in one way; the test of that name must notice."""

import os

import pytest
import torch
from torch import nn

from avalanche_peftcl.models import Head, LinearHead, PrototypeHead
from avalanche_peftcl.testing import HeadContract


class Honest(HeadContract):
    """Class means."""

    kind = PrototypeHead

    def create_head(self, in_features):
        return self.kind(in_features)


class HonestRidge(HeadContract):
    """A closed form, with everything that it needs in its state."""

    class Ridge(Head):
        fitted, persistent = True, True
        row_tensors = ("weight", "sums")

        def __init__(self, in_features):
            super().__init__(in_features)
            square = torch.zeros(in_features, in_features, dtype=torch.float64)
            self.register_buffer("gram", square, persistent=self.persistent)
            self.register_buffer("sums", torch.zeros(0, in_features, dtype=torch.float64))
            self.register_buffer("weight", torch.zeros(0, in_features))

        def observe(self, features, rows):
            self.gram += features.double().T @ features.double()
            self.sums.index_add_(0, rows, features.double())

        def settle(self):
            ridge = torch.eye(self.in_features, dtype=torch.float64)
            self.weight = torch.linalg.solve(self.gram + ridge, self.sums.T).T.float()

        def forward(self, features):
            return features.float() @ self.weight.T

    kind = Ridge

    def create_head(self, in_features):
        return self.kind(in_features)


class HonestLinear(Honest):
    kind = LinearHead


def of_kind(honest, kind):
    """Return an honest contract, and the one whose head is of this class."""
    return honest, type("Violator", (honest,), {"kind": kind})


def head_with(honest, **members):
    """Return an honest contract, and the one whose head has other members."""
    return of_kind(honest, type("Violating", (honest.kind,), members))


class Unseen(PrototypeHead):
    """Has no say for rows without an image."""

    def forward(self, features):
        return super().forward(features) / (self.counts > 0)


def forgetting(self, n_rows):
    LinearHead.grow(self, n_rows)
    nn.init.normal_(self.weight)


def leaning(self, features):
    logits = PrototypeHead.forward(self, features)
    return logits + 0.3 * logits.mean(0)


def through_numpy(self, features, rows):
    PrototypeHead.observe(self, torch.from_numpy(features.numpy()), rows)


def fading(self, features, rows):
    """Forget a part of what came before with each minibatch."""
    if self._sums is not None:
        self._sums[0].mul_(0.5)
    PrototypeHead.observe(self, features, rows)


def settling_again(self):
    """Solve with twice the penalty each time it is asked."""
    self.gram += torch.eye(self.in_features, dtype=torch.float64)
    HonestRidge.Ridge.settle(self)


def counting_wrong(self, features, rows):
    """Take images out of the sums and leave them in the counts."""
    PrototypeHead.remove(self, features, rows)
    self._sums[1].zero_()


def shifting(self, drift):
    """Move the mean of the means instead of each."""
    mean = self.prototypes.mean(0, keepdim=True)
    self.prototypes = self.prototypes + drift(mean) - mean


def as_they_are(self, logits):
    return 100 * logits


def turned_round(self, logits):
    return (-logits).softmax(dim=1)


def normalising(self, drift):
    self.prototypes = nn.functional.normalize(drift(self.prototypes), dim=1) + 0.1


class WithADeadFactor(LinearHead):
    def __init__(self, in_features):
        super().__init__(in_features)
        self.factor = nn.Parameter(torch.ones(1))


class WithATrainedRidge(HonestRidge.Ridge):
    """Has a penalty among its parameters, which no gradient reaches."""

    def __init__(self, in_features):
        super().__init__(in_features)
        self.ridge = nn.Parameter(torch.ones(()))


class Drawing(LinearHead):
    def grow(self, n_rows):
        super().grow(n_rows)
        with torch.no_grad():
            self.bias += int.from_bytes(os.urandom(4)) / 2**32


class Secretive(LinearHead):
    """Scales features by numbers that are in no state dict."""

    def __init__(self, in_features):
        super().__init__(in_features)
        self.scales = torch.rand(in_features)

    def forward(self, features):
        return super().forward(features * self.scales)


def no_passing_state(self):
    return {}


class ScaledLater(Honest):
    def create_head(self, in_features):
        head = super().create_head(in_features)
        head.section_weights *= 2
        return head


class LeavingOut(Honest):
    """Says that only learning needs the class means."""

    def create_head(self, in_features):
        head = super().create_head(in_features)
        head.statistics = ("prototypes",)
        return head


VIOLATORS = [
    ("test_shapes", head_with(Honest, forward=lambda s, x: PrototypeHead.forward(s, x).squeeze())),
    ("test_shapes", of_kind(Honest, Unseen)),
    ("test_learns", head_with(Honest, observe=lambda self, features, rows: None)),
    ("test_learns", head_with(HonestLinear, forward=lambda s, x: LinearHead.forward(s, 0 * x))),
    ("test_grows_without_touching_old_rows", head_with(HonestLinear, grow=forgetting)),
    ("test_images_are_independent", head_with(Honest, forward=leaning)),
    ("test_precision", head_with(Honest, observe=through_numpy)),
    ("test_scores_tell_what_logits_do", head_with(HonestLinear, scores=turned_round)),
    (
        "test_scores_tell_what_logits_do",
        head_with(HonestLinear, score_name="similarity", scores=as_they_are),
    ),
    ("test_order_does_not_matter", head_with(Honest, observe=fading)),
    ("test_settles_once", head_with(HonestRidge, settle=settling_again)),
    ("test_removes_what_it_observed", head_with(Honest, remove=counting_wrong)),
    ("test_moves_as_linear_features_do", head_with(Honest, move=shifting)),
    ("test_features_that_stay_move_nothing", head_with(Honest, move=normalising)),
    (
        "test_every_parameter_gets_a_gradient",
        of_kind(HonestLinear, WithADeadFactor),
    ),
    ("test_every_parameter_gets_a_gradient", of_kind(HonestRidge, WithATrainedRidge)),
    ("test_same_seed_same_numbers", of_kind(HonestLinear, Drawing)),
    (
        "test_state_dict_into_a_head_of_any_size",
        of_kind(HonestLinear, Secretive),
    ),
    ("test_state_dict_into_a_head_of_any_size", head_with(HonestRidge, row_tensors=("sums",))),
    ("test_goes_on_from_its_state", head_with(HonestRidge, persistent=False)),
    ("test_goes_on_from_its_state", head_with(Honest, passing_state=no_passing_state)),
    ("test_exported_network_predicts_the_same", (Honest, ScaledLater)),
    ("test_exported_network_predicts_the_same", (Honest, LeavingOut)),
]


@pytest.mark.parametrize(("name", "pair"), VIOLATORS)
def test_noticed(notices, name, pair):
    assert notices(name, *pair, (AssertionError, TypeError, RuntimeError))


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(HeadContract)
