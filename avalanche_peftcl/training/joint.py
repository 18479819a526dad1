"""Joint training: every image of a stream at once, what learning in turn is measured against."""

from collections.abc import Iterable
from typing import Any

from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils.utils import concat_datasets

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, HeadBuilder
from avalanche_peftcl.registry.offers import StrategyOffers
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.naive import TuningOptions, tune
from avalanche_peftcl.training.optimizers import OptimizerName
from avalanche_peftcl.training.streams import whole_experience
from avalanche_peftcl.training.template import PEFTTemplate


class Joint(PEFTTemplate):
    """A strategy that trains once, on all experiences at the same time.

    Its arguments are those of :class:`.PEFTTemplate`. In an accuracy matrix it has the last row
    alone: average accuracy and forgetting are not defined.

    Source:
        ``avalanche.training.JointTraining``.
        Differs: every image is seen once an epoch, where the host draws from small tasks again
        until they are as large as the largest; plugins see one experience, of all images, with the
        number of the last.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> benchmark = toy_benchmark("class")
        >>> strategy = build_joint(backbone=toy_backbone(), train_epochs=1)
        >>> _ = strategy.train(benchmark.train_stream)
        >>> len(strategy.network.classes) == benchmark.n_classes
        True
    """

    joint = True

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train on all experiences at once.

        Args:
            experiences: The training stream, or some of its experiences.
            eval_streams: As in Avalanche.
            **kwargs: As in Avalanche.

        Raises:
            ConfigError: If it has trained before: then it would be training in turn.
        """
        if self.clock.train_exp_counter:
            raise ConfigError(
                "joint training trains once, on everything: call train(benchmark.train_stream) "
                "once, or take the strategy 'naive' to train on one experience after the other"
            )
        given = list(experiences) if isinstance(experiences, Iterable) else [experiences]
        streams = [given] if eval_streams is None else eval_streams
        return super().train(joint_experience(given), eval_streams=streams, **kwargs)


@takes(TuningOptions)
def build_joint(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    optimizer: OptimizerName = "sgd",
    anneal: bool | None = None,
    options: TuningOptions,
) -> Joint:
    """Build joint training of a PEFT module and a head; adapters, linear by default.

    The options are those of ``naive``, an epoch is one of all images of the stream.

    Args:
        backbone: The frozen network.
        module: What trains in it.
        head: The classifier.
        optimizer: Of module and head.
        anneal: Whether the learning rate falls as a cosine; ``None``: unless a plugin schedules it.
        options: What a strategy that trains takes.

    Source:
        ``avalanche.training.JointTraining``; see :class:`Joint` for what differs.
    """
    return tune(
        Joint,
        backbone=backbone,
        module=module,
        head=head,
        optimizer=optimizer,
        anneal=anneal,
        options=options,
    )


def joint_experience(experiences: Iterable[Any]) -> Any:
    """Return one experience of the images of several, with the number and stream of the last.

    Args:
        experiences: Training experiences, or the chunks of an online stream, at least one.
    """
    given = list(experiences)
    if not given:
        raise ConfigError("there is no experience to train on")
    if len(given) == 1:
        return given[0]
    last = whole_experience(given[-1])
    joined: Any = DatasetExperience(
        dataset=concat_datasets([each.dataset for each in given]),
        current_experience=last.current_experience,
    )
    joined.origin_stream = last.origin_stream
    joined.classes_in_this_experience = sorted({int(y) for y in joined.dataset.targets})
    # without task_labels of its own: the host would balance tasks by showing images again
    return joined


def visits(strategy: Any, stream: Iterable[Any]) -> list[Any]:
    """Return what a strategy trains on, one call of ``train()`` each.

    Args:
        strategy: Any strategy; it may tell that it is joint, see :class:`.StrategyOffers`.
        stream: The training stream.
    """
    experiences = list(stream)
    return [joint_experience(experiences)] if StrategyOffers.of(strategy).joint else experiences
