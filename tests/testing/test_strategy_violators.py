"""Strategies that break their contract, each in one way; the test of that name must notice."""

import os

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import FrozenBranch, PEFTModel, PromptBranch
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.testing import StrategyContract
from avalanche_peftcl.training import PEFTTemplate


class Honest(StrategyContract):
    """Adapters and a linear head, trained in turn; what follows changes one thing of it."""

    scenarios = ("class", "task")
    strategy, more = PEFTTemplate, ()

    def network(self, backbone):
        return PEFTModel(backbone, build_adapters(backbone=backbone, dropout=0.0))

    def create_strategy(self, backbone, *, plugins, evaluator):
        model = self.network(backbone)
        return self.strategy(
            model=model,
            optimizer=self.optimizer(model),
            train_epochs=8,
            train_mb_size=8,
            plugins=[*plugins, *self.more],
            evaluator=evaluator,
        )

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=0.03)


class At(SupervisedPlugin):
    """Does something to the strategy at one of the host's events."""

    def __init__(self, event, act):
        super().__init__()
        setattr(self, event, lambda strategy, **kwargs: act(strategy))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def model_with(**methods):
    """Return an honest contract whose network has other methods."""
    kind = type("Network", (PEFTModel,), methods)

    class Violator(Honest):
        def network(self, backbone):
            return kind(backbone, build_adapters(backbone=backbone, dropout=0.0))

    return Violator


def plugin_with(event, act):
    return type("Violator", (Honest,), {"more": (At(event, act),)})


# --- training ------------------------------------------------------------------------------------


def no_task_streams(strategy):
    if max(strategy.experience.task_labels):
        raise ConfigError("one task only")


def lose_a_weight(strategy):
    with torch.no_grad():
        strategy.model.head.bias[0] = float("nan")


class TrainsNothing(Honest):
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.0)


class TrainsTheHeadAlone(Honest):
    def network(self, backbone):
        return PEFTModel(backbone, FrozenBranch())


class PredictsTheLatestClasses(Honest):
    """Learns which classes came last and nothing of the images."""

    def network(self, backbone):
        class Latest(PEFTModel):
            def classify(self, features):
                return super().classify(features * 0)

        return Latest(backbone, FrozenBranch())


class TunesANorm(Honest):
    def network(self, backbone):
        backbone.vit.norm.weight.requires_grad_(True)
        return super().network(backbone)


def leave_in_train_mode(strategy):
    for module in strategy.model.backbone.modules():
        module.training = True


class OptimizesTheHeadAlone(Honest):
    def create_strategy(self, backbone, **options):
        made = super().create_strategy(backbone, **options)
        make = made.make_optimizer

        def make_optimizer(**kwargs):
            make(**kwargs)
            for group in made.optimizer.param_groups:
                group["params"] = list(made.model.head.parameters())

        made.make_optimizer = make_optimizer
        return made


class OptimizesTheFrozen(Honest):
    def create_strategy(self, backbone, **options):
        made = super().create_strategy(backbone, **options)
        make = made.make_optimizer

        def make_optimizer(**kwargs):
            make(**kwargs)
            made.optimizer.add_param_group({"params": list(backbone.vit.norm.parameters())})

        made.make_optimizer = make_optimizer
        return made


class OpensTheBackbone(Honest):
    """Lets gradients into the backbone, from which no step is made."""

    more = (
        At("before_forward", lambda s: s.model.backbone.vit.norm.requires_grad_(True)),
        At("after_backward", lambda s: s.model.backbone.vit.norm.requires_grad_(False)),
    )


class ForgetsItsPlugins(Honest):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return super().create_strategy(backbone, plugins=(), evaluator=evaluator)


class HasItsOwnEvaluator(Honest):
    def create_strategy(self, backbone, *, plugins, evaluator):
        made = super().create_strategy(backbone, plugins=plugins, evaluator=evaluator)
        made.evaluator = type(evaluator)(loggers=evaluator.loggers)
        return made


def jolt(strategy):
    """Move a weight by what no seed decides."""
    with torch.no_grad():
        strategy.model.head.bias += int.from_bytes(os.urandom(4)) / 2**32


def standardised(model, features):
    """Classify by the distance from the minibatch's mean; of one image there is no deviation."""
    return PEFTModel.classify(model, (features - features.mean(0)) / features.std(0))


def through_numpy(model, features):
    """Shift logits by way of an array, which NumPy has in no half precision."""
    logits = PEFTModel.classify(model, features)
    return logits - float(logits.detach().numpy().mean())


# --- prediction ----------------------------------------------------------------------------------


def leaning(model, features):
    logits = PEFTModel.classify(model, features)
    return logits if model.training else logits + 0.3 * logits.mean(0)


class PromptsByMinibatch(Honest):
    """Chooses one of two sets of prompts for all images of a minibatch."""

    def network(self, backbone):
        class Pool(PromptBranch):
            def attend(self, backbone, index, tokens, *, queries=None, **context):
                mean = tokens[:, 1:].mean(dim=(0, 1))
                chosen = self if mean[-8:-1].argmax() % 2 else self.other
                return PromptBranch.attend(
                    chosen, backbone, index, tokens, queries=queries, **context
                )

        made = Pool(backbone.embed_dim, [0], length=8, init_bound=1.0)
        made.other = PromptBranch(backbone.embed_dim, [0], length=8, init_bound=1.0)
        return PEFTModel(backbone, made)


def by_experience(strategy):
    """Allow only classes of the experience that is evaluated."""
    classes = strategy.experience.classes_in_this_experience
    if strategy.experience.current_experience:
        classes = [c for c in classes if c > 1]
    allowed = torch.zeros(strategy.mb_output.shape[1], dtype=torch.bool)
    allowed[list(classes)] = True
    strategy.mb_output = strategy.mb_output.masked_fill(~allowed, -1000.0)


class ReadsTaskLabels(Honest):
    """Is Honest, whose rows are restricted by task labels, without saying so."""

    uses_task_labels = ()
    strategy = type("Silent", (PEFTTemplate,), {"task_label_at_test": False})


class SaysItReadsTaskLabels(Honest):
    strategy = type("Loud", (PEFTTemplate,), {"task_label_at_test": True})


# --- what is kept --------------------------------------------------------------------------------


class HidesAWeight(Honest):
    """Keeps part of what it learns in a tensor that is in no state dict."""

    more = (
        At(
            "after_training_exp",
            lambda s: setattr(s.model, "shift", s.model.head.weight.detach().mean(0)),
        ),
    )

    def network(self, backbone):
        class Network(PEFTModel):
            shift = 0.0

            def classify(self, features):
                return super().classify(features + self.shift)

        return Network(backbone, build_adapters(backbone=backbone, dropout=0.0))


class ExportsAnother(Honest):
    """Is given a scale after it was built, so that nobody builds it again with it."""

    def network(self, backbone):
        made = super().network(backbone)
        for adapter in made.branch.adapters:
            adapter.scale = 1.0
        return made


class CountsInSecret(PEFTTemplate):
    """Trains the slower the more steps it has made, and tells no checkpoint how many."""

    steps = 0

    def criterion(self):
        self.steps += self.is_training
        return super().criterion() / (1 + self.steps)


class CountsExperiencesInSecret(PEFTTemplate):
    trained = 0

    def criterion(self):
        return super().criterion() / (1 + self.trained)

    def _after_training_exp(self, **kwargs):
        super()._after_training_exp(**kwargs)
        self.trained += 1


VIOLATORS = [
    ("test_trains_and_evaluates", plugin_with("after_training_exp", lose_a_weight)),
    ("test_trains_and_evaluates", plugin_with("before_training_exp", no_task_streams)),
    ("test_learns", TrainsNothing),
    ("test_learns", TrainsTheHeadAlone),
    ("test_learns", PredictsTheLatestClasses),
    ("test_backbone_is_bit_identical", TunesANorm),
    (
        "test_backbone_is_bit_identical",
        plugin_with("before_training_iteration", leave_in_train_mode),
    ),
    ("test_optimizer_holds_what_trains", OptimizesTheHeadAlone),
    ("test_optimizer_holds_what_trains", OptimizesTheFrozen),
    (
        "test_only_what_is_optimized_gets_gradients",
        OpensTheBackbone,
    ),
    ("test_uses_what_it_is_handed", ForgetsItsPlugins),
    ("test_uses_what_it_is_handed", HasItsOwnEvaluator),
    ("test_same_seed_same_numbers", plugin_with("after_training_exp", jolt)),
    ("test_minibatches_of_any_size", model_with(classify=standardised)),
    ("test_precision", model_with(classify=through_numpy)),
    ("test_prediction_is_independent_of_the_minibatch", model_with(classify=leaning)),
    ("test_prediction_is_independent_of_the_minibatch", PromptsByMinibatch),
    (
        "test_prediction_is_independent_of_the_minibatch",
        plugin_with("after_eval_forward", by_experience),
    ),
    ("test_no_task_label_at_test_unless_declared", ReadsTaskLabels),
    ("test_no_task_label_at_test_unless_declared", SaysItReadsTaskLabels),
    ("test_state_dict_round_trip", HidesAWeight),
    ("test_exported_network_predicts_the_same", ExportsAnother),
    ("test_goes_on_from_its_state", type("Steps", (Honest,), {"strategy": CountsInSecret})),
    (
        "test_goes_on_from_its_state",
        type("Experiences", (Honest,), {"strategy": CountsExperiencesInSecret}),
    ),
]
# what a part that breaks may raise by itself
BREAKS = (AssertionError, ConfigError, RuntimeError, ArithmeticError, TypeError)


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    assert notices(name, Honest, violator, BREAKS)


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(StrategyContract)
