"""What the methods share: their options, the optimizer that starts anew, the strategy."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import ConfigWarning
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    DynamicModel,
    HeadBuilder,
    LinearHead,
    PEFTModel,
)
from avalanche_peftcl.training import (
    OptimizerName,
    PEFTTemplate,
    TemplateArguments,
    TrainingOptions,
    annealing,
    make_optimizer,
    starts_experience,
)
from peftcl_prompts.ranges import GradNorm, WeightDecay


@dataclass(frozen=True, kw_only=True)
class PromptOptions(TrainingOptions):
    """Options of all methods here: a loss over the classes of the experience."""

    loss: Literal["local", "seen"] = "local"
    weight_decay: WeightDecay = 0.0
    max_grad_norm: GradNorm | None = 1.0


class FreshOptimizerPlugin(SupervisedPlugin):
    """Lets the optimizer forget its moments when an experience begins, as the releases do."""

    remembers = ()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget; of an online stream before the first chunk of an experience."""
        if starts_experience(strategy.experience):
            strategy.optimizer.state.clear()


def prompt_model(backbone: Backbone, branch: Branch, head: HeadBuilder | None) -> PEFTModel:
    """Return a network of prompts and a head, linear by default; a fitted one gets proxies."""
    model = PEFTModel(backbone, branch, head)
    return (
        PEFTModel(backbone, branch, model.head, proxies=LinearHead) if model.head.fitted else model
    )


def prompt_strategy(
    model: DynamicModel,
    *,
    anneal: bool | None,
    options: PromptOptions,
    optimizer: OptimizerName | torch.optim.Optimizer = "adam",
    batchwise: bool = False,
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    own_plugins: Sequence[Any] = (),
) -> PEFTTemplate:
    """Return a strategy that trains a network anew in each experience.

    Args:
        model: The network.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: What a strategy that trains takes.
        optimizer: Which one, or one that is built.
        batchwise: Whether prompts are chosen for a minibatch, which is warned of.
        schedule: From optimizer and epochs to what lets the learning rate fall instead, in the
            places where the cosine would.
        criterion: From logits and targets to the loss; ``None``: cross-entropy.
        own_plugins: Of the method.
    """
    if batchwise:
        warnings.warn(
            "batchwise=True gives all images of a minibatch the same prompts, in evaluation too: "
            "what is predicted for an image depends on the others, and accuracies on eval_mb_size "
            "and on the order of test images; leave it out for prompts image by image",
            ConfigWarning,
            stacklevel=3,
        )
    chosen = optimizer
    if not isinstance(chosen, torch.optim.Optimizer):
        chosen = make_optimizer(chosen, model, **options.rates())
    epochs = options.train_epochs
    falls = annealing(chosen, options.plugins, anneal=anneal, train_epochs=epochs)
    if falls and schedule is not None:
        falls = [schedule(chosen, epochs)]
    own = [*falls, FreshOptimizerPlugin(), *own_plugins]
    template = options.template() | TemplateArguments(criterion=criterion)
    strategy = PEFTTemplate(model=model, optimizer=chosen, own_plugins=own, **template)
    strategy.batch_independent_at_test = not batchwise
    return strategy
