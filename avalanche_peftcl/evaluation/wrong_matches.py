"""How often the texts of later classes speak for images of earlier experiences."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.supervised import JointTraining
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.accuracy_matrix import trained_experience
from avalanche_peftcl.evaluation.image_sets import choose_images
from avalanche_peftcl.evaluation.inside import first_tests
from avalanche_peftcl.evaluation.joint_space import JointSpace, Summary, joint_space
from avalanche_peftcl.evaluation.ntk_probes import read_probes
from avalanche_peftcl.functional.image_text import matching_auc, wrong_match_rate
from avalanche_peftcl.models.backbones.text_tower import check_templates
from avalanche_peftcl.models.counting import uncounted_passes
from avalanche_peftcl.models.heads.zero_shot import ClassTexts
from avalanche_peftcl.models.networks.dynamic import class_names
from avalanche_peftcl.registry.offers import ExperienceOffers, StrategyOffers
from avalanche_peftcl.registry.ranges import Count, MinibatchSize, Seed

_LISTS = ("rate", "auc", "frozen_rate", "frozen_auc")
Row = list[float | None]


class _Texts(NamedTuple):
    """The texts of all classes seen, each once.

    Attributes:
        embeddings: ``(W, E)``.
        frozen: Those of the frozen backbone, ``(W, E)``.
        of_class: Which of them is a class's.
        since: With which experience, counted in the order of training, each came, ``(W,)``.
    """

    embeddings: Tensor
    frozen: Tensor
    of_class: dict[int, int]
    since: Tensor


class WrongMatchesMetric(PluginMetric[Summary]):
    """Measure how often an old experience's images match texts that they must not.

    **The protocol is this package's own.** PEGP's paper says that it suppresses hallucination
    across modalities; how that was measured could not be found, so numbers of this metric belong
    beside no published ones.

    After each experience, for test images of every earlier one, with the texts of the names of all
    classes seen so far and the images' embeddings by the network's adapted pass, before any head:

    - *wrong-match rate*: the share of images whose best text is that of a class that came with a
      later experience than their own; undefined where none did, as in domain-incremental streams;
    - *matching*: the area under the ROC curve that tells true pairs (an image, the text of its
      class) from swapped ones (the same images, the texts of each other class), by cosine.

    Texts are those of the frozen backbone, whatever the head has learned, and no task label is
    used; images of classes that were not trained by then are left out. Both are measured of the
    frozen backbone too, with the same images and texts: the list of classes grows, and a network
    that never trains makes wrong matches as well. What training did is the difference.

    ``Wrong_Match_Rate`` and ``Matching_AUC`` are emitted, each the mean over earlier experiences,
    once there is one. Joint training has none, and nothing is measured.

    A run is the same to the bit with this metric and without. Cost: after each experience a pass
    over at most ``images_per_experience`` test images of every earlier one.

    Args:
        class_words: What each class is called, as of :class:`.ClassTexts`.
        templates: Sentences with ``{}`` where the word stands; ``None``: the word alone.
        images_per_experience: At most so many test images of each experience, a seeded choice that
            stays; ``None``, all.
        chunk_size: Images at a time.
        seed: Of the choice; no global generator is touched.

    Raises:
        ConfigError: If a template has no ``{}``. In training, if the backbone has no text side,
            the network several adapted passes, the benchmark no names of classes or no stream
            ``test``, or if there is no word for a class.
        NotFiniteError: In training, if an embedding is not of finite numbers.

    Source:
        Question: PEGP, arXiv 2405.13383. Differs: see above.

    Example:
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche_peftcl.testing import toy_benchmark, toy_image_text
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> metric = wrong_matches_metrics(templates=["a photo of a {}."])
        >>> strategy = build_naive(
        ...     backbone=toy_image_text(),
        ...     train_epochs=1,
        ...     evaluator=EvaluationPlugin(metric, loggers=[BaseLogger()]),
        ... )
        >>> for experience in toy_benchmark().train_stream:
        ...     _ = strategy.train(experience)
        >>> found = metric.summary()
        >>> [len(row) for row in found["rate"]], found["rate"] == found["frozen_rate"]
        ([0, 1, 2], True)
    """

    name = "wrong_matches"
    remembers = ("_order", "_since", "_rows")

    def __init__(
        self,
        *,
        class_words: dict[str, str] | None = None,
        templates: Sequence[str] | None = None,
        images_per_experience: int | None = 100,
        chunk_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.class_words, self.templates = class_words, check_templates(templates)
        self.images_per_experience, self.chunk_size = images_per_experience, chunk_size
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self._order: list[int] = []  # numbers of the experiences, as they are trained
        self._since: dict[int, int] = {}  # by class, the place in that order where it came first
        self._rows: dict[str, list[Row]] = {name: [] for name in _LISTS}
        self._frozen: dict[int, Tensor] = {}  # embeddings; computed again where a run goes on

    def summary(self) -> Summary:
        """Return all pairs of experiences.

        Returns:
            ``experiences``, their numbers in the order of training; after each of them, a row with
            one entry for every earlier one: ``rate`` and ``auc``, and of the frozen backbone
            ``frozen_rate`` and ``frozen_auc``. ``None`` where undefined.
        """
        finished = self._order[: len(self._rows["rate"])]
        rows = {name: [list(row) for row in self._rows[name]] for name in _LISTS}
        return {"experiences": finished, **rows}

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    @uncounted_passes()
    def before_training_exp(self, strategy: Any) -> None:
        """Refuse what cannot be measured."""
        if not _is_joint(strategy):
            space = JointSpace(strategy, self.name)
            side = ClassTexts(space.backbone, words=self.class_words, templates=self.templates)
            side.words(self._names(strategy))

    @uncounted_passes()
    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Measure the images of earlier experiences."""
        ends = ExperienceOffers.of(strategy.experience).is_last_subexp is not False
        if not ends or _is_joint(strategy):
            return []
        experience = trained_experience(strategy)
        number = int(experience.current_experience)
        if number not in self._order:
            self._order.append(number)
        place = self._order.index(number)
        for c in sorted({int(y) for y in experience.dataset.targets}):
            self._since.setdefault(c, place)
        rows: dict[str, Row] = {name: [] for name in _LISTS}
        if place:
            with joint_space(strategy, self.name) as space:
                texts = self._texts(strategy, space)
                for earlier in self._order[:place]:
                    self._measure(strategy, space, earlier, texts, rows)
        for name, row in rows.items():
            self._rows[name].append(row)
        told = {"Wrong_Match_Rate": _mean(rows["rate"]), "Matching_AUC": _mean(rows["auc"])}
        x = strategy.clock.train_iterations
        return [MetricValue(self, name, v, x) for name, v in told.items() if v is not None]

    def __str__(self) -> str:
        return "Wrong_Matches"

    # --- what is measured ----------------------------------------------------------------------

    def _measure(
        self,
        strategy: Any,
        space: JointSpace,
        number: int,
        texts: _Texts,
        rows: dict[str, Row],
    ) -> None:
        """Add what is measured of the images of an earlier experience."""
        stream = trained_experience(strategy)
        what = f"metric {self.name!r}"
        tested = first_tests(strategy, stream, "test", number + 1, what=what)[number]
        place, targets = self._order.index(number), [int(y) for y in tested.dataset.targets]
        known = [i for i, y in enumerate(targets) if self._since.get(y, math.inf) <= place]
        drawn = choose_images(len(known), self.images_per_experience, self.seed)
        chosen = [known[i] for i in drawn]
        if not chosen:
            for row in rows.values():
                row.append(None)
            return
        own = torch.tensor([texts.of_class[targets[i]] for i in chosen])
        later = texts.since > place
        if number not in self._frozen:
            batches = self._batches(tested, chosen, strategy.device)
            self._frozen[number] = space.images(batches, adapted=False)
        adapted = space.images(self._batches(tested, chosen, strategy.device))
        for prefix, images, embeddings in (
            ("", adapted, texts.embeddings),
            ("frozen_", self._frozen[number], texts.frozen),
        ):
            scores = images @ embeddings.T
            rate = wrong_match_rate(scores, later) if later.any() else None
            rows[f"{prefix}rate"].append(rate)
            matches = own[:, None] == torch.arange(len(texts.embeddings))
            swapped = scores[~matches]
            auc = matching_auc(scores[matches], swapped) if len(swapped) else None
            rows[f"{prefix}auc"].append(auc)

    def _texts(self, strategy: Any, space: JointSpace) -> _Texts:
        names = self._names(strategy)
        side = ClassTexts(space.backbone, words=self.class_words, templates=self.templates)
        words = side.words([names[c] for c in self._since])
        each = list(dict.fromkeys(words))
        of_class = {c: each.index(w) for c, w in zip(self._since, words, strict=True)}
        since = [
            min(self._since[c] for c, i in of_class.items() if i == n) for n in range(len(each))
        ]
        frozen = space.texts(each, self.templates, adapted=False)
        return _Texts(space.texts(each, self.templates), frozen, of_class, torch.tensor(since))

    def _names(self, strategy: Any) -> Sequence[str]:
        names = class_names(strategy.experience)
        if names is None:
            raise ConfigError(
                f"metric {self.name!r} needs the names of classes, and the benchmark does not tell "
                "them; give it class_names, a name of each class id"
            )
        return [str(name) for name in names]

    def _batches(self, tested: Any, chosen: list[int], device: torch.device) -> Iterator[Tensor]:
        for first in range(0, len(chosen), self.chunk_size):
            yield read_probes(tested, chosen[first : first + self.chunk_size], device).images


def wrong_matches_metrics(
    *,
    class_words: dict[str, str] | None = None,
    templates: list[str] | None = None,
    images_per_experience: Count | None = 100,
    chunk_size: MinibatchSize = 64,
    seed: Seed = 0,
) -> WrongMatchesMetric:
    """Build the metric of wrong matches between old images and new texts.

    Args:
        class_words: What each class is called in the texts, by its name in the benchmark, which for
            a folder of images is that of the class's folder; of a name like ``"photo/dog"`` the
            last part will do. ``None``: that part itself, with spaces for ``_``.
        templates: Sentences with ``{}`` where the word stands, such as ``"a photo of a {}."``;
            their embeddings are averaged. ``None``: the word alone.
        images_per_experience: At most so many test images of each experience, a seeded choice that
            stays; ``None``, all.
        chunk_size: Images at a time, which bounds the memory; numbers depend on it by rounding.
        seed: Of the choice, the same whatever the run's seed.

    Raises:
        ConfigError: If a template has no ``{}``.
    """
    return WrongMatchesMetric(
        class_words=class_words,
        templates=templates,
        images_per_experience=images_per_experience,
        chunk_size=chunk_size,
        seed=seed,
    )


def _is_joint(strategy: Any) -> bool:
    return StrategyOffers.of(strategy).joint or isinstance(strategy, JointTraining)


def _mean(values: Row) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
