"""What a head is: features to a logit a row, trained by gradients or fitted after an experience."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.heads.drift import Drift
from avalanche_peftcl.models.heads.rows import Growing
from avalanche_peftcl.models.projection.sites import ProjectionSite


class Head(Growing):
    r"""A classifier whose rows come with the classes; it knows nothing of the stream.

    A subclass says how features are scored (:meth:`forward`), which of its tensors have an entry a
    row (:attr:`row_tensors`), and, where it is fitted instead of trained, what it takes from the
    images of an experience (:meth:`observe`, :meth:`settle`). All other methods do nothing here.

    Args:
        in_features: ``D``, width of a feature.

    Attributes:
        fitted: Whether it wants to observe the images of each experience after its training.
        follows: Whether :meth:`follow` is enough for predictions inside an experience. Any other
            head that is fitted knows nothing of its images before :meth:`settle`.
        named: Whether its rows begin with the names of their classes, see :meth:`start`; without
            these it is refused.
        score_name: What :meth:`scores` returns, in a word.

    Example:
        A classifier in closed form, :math:`W = C\,(G + \lambda I)^{-1}` with :math:`G` the sum of
        :math:`h h^\top` and :math:`C` that of :math:`y h^\top` over all images of the stream:

        >>> import torch
        >>> class RidgeHead(Head):
        ...     fitted = True
        ...     row_tensors = ("weight", "sums")
        ...
        ...     def __init__(self, in_features, *, ridge=1.0):
        ...         super().__init__(in_features)
        ...         self.ridge = ridge
        ...         double = {"dtype": torch.float64}
        ...         self.register_buffer("gram", torch.zeros(in_features, in_features, **double))
        ...         self.register_buffer("sums", torch.zeros(0, in_features, **double))
        ...         self.register_buffer("weight", torch.zeros(0, in_features))
        ...
        ...     def observe(self, features, rows):
        ...         h = features.double()
        ...         self.gram += h.T @ h
        ...         self.sums.index_add_(0, rows, h)
        ...
        ...     def settle(self):
        ...         penalty = self.ridge * torch.eye(self.in_features, dtype=torch.float64)
        ...         solved = torch.linalg.solve(self.gram + penalty.to(self.gram), self.sums.T)
        ...         self.weight = solved.T.float()
        ...
        ...     def forward(self, features):
        ...         return features.float() @ self.weight.T
        >>> head = RidgeHead(2)
        >>> head.grow(2)
        >>> head.observe(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> head(torch.tensor([[1.0, 0.0]]))
        tensor([[0.3000, 0.0000]])
    """

    fitted: bool = False
    follows: bool = False
    named: bool = False
    score_name: str = "probability"

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        """Return a logit a row: ``(B, D)`` to ``(B, R)``."""
        raise NotImplementedError

    def scores(self, logits: Tensor) -> Tensor:
        """Return what a person is told of logits, in their order; here their softmax.

        A head whose logits are cosines, or estimates of targets, says so: a softmax of either is
        close to even, however sure the head is.

        Args:
            logits: ``(B, C)``, a column a class; -1000 for one that may not be predicted.
        """
        return logits.softmax(dim=1)

    # --- an experience, for heads that are fitted ----------------------------------------------

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Hear that an experience begins, after :meth:`grow`.

        Args:
            rows: Rows of its classes.
            counts: How many images it has of each.
        """

    def follow(self, features: Tensor, rows: Tensor) -> None:
        """Hear of a minibatch in training; what is learnt here serves predictions meanwhile.

        Args:
            features: ``(B, D)``, without gradient.
            rows: Row of each image, ``(B,)``; replayed ones may be of other experiences.
        """

    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Take in images of the experience just trained, each once.

        Args:
            features: ``(B, D)``, in eval mode and with test transforms.
            rows: Row of each image, ``(B,)``.
        """

    def settle(self) -> None:
        """Hear that all images of the experience were observed."""

    def remove(self, features: Tensor, rows: Tensor) -> None:
        """Take images out again that were observed; then :meth:`settle` once.

        Where features are what they were, the head is afterwards as if it had never seen them, up
        to rounding.

        Args:
            features: ``(B, D)``, as they were when they were observed.
            rows: Row of each image, ``(B,)``.

        Raises:
            ConfigError: If it keeps nothing that an image can be taken out of; this base class
                does not.
        """
        raise ConfigError(
            f"a {type(self).__name__} cannot take an image out again; take a head that is fitted "
            "to sums over images, such as 'prototypes' or 'ridge'"
        )

    def passing_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint inside an experience has to keep beside the state dict."""
        return {}

    def load_passing_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`passing_state` returned, after :meth:`begin`."""

    # --- what else it may offer ----------------------------------------------------------------

    def move(self, drift: Drift) -> None:
        """Move what was fitted to where the features of old images are now; then :meth:`settle`.

        Args:
            drift: From old features to present ones. First moments move by a call; second moments
                by its ``congruence`` if it is a :class:`.LinearDrift`, else the class means move
                and the scatter about them stays.

        Raises:
            ConfigError: If the head cannot say what follows from it; this base class cannot.
        """
        raise ConfigError(
            f"a {type(self).__name__} cannot move with features that drift; take a head that is "
            "fitted and says how, such as 'prototypes'"
        )

    def head_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the logits of old features to stay; none here.

        They are no ``projection_sites()``: a head whose rows are of one experience each needs none.
        """
        yield from ()

    def read_texts(self, side: Any) -> bool:
        """Take the text side of a module that trains it, before any row; say whether it is read.

        Args:
            side: A :class:`.TextSide`, see :meth:`.Branch.text_side`.
        """
        return False

    def learn_rows(self, rows: Sequence[int]) -> None:
        """Hear which rows' classes are in the experience that begins, after :meth:`grow`."""

    def start(self, names: Sequence[str]) -> None:
        """Begin the last rows, one a name, from the names of their classes, after :meth:`grow`.

        Args:
            names: As the benchmark tells them (``class_names``); where it does not, it is not
                called.
        """


def check_whole(head: Head) -> None:
    """Refuse that a head learns on that has left behind what it learns from.

    Raises:
        ConfigError: If its :attr:`~.Growing.statistics` were not in the file it was loaded from.
    """
    if missing := head.missing_statistics():
        raise ConfigError(
            f"a {type(head).__name__} from an exported file can predict but not learn on: the file "
            f"holds no {missing[0]!r}; go on from a checkpoint, which does"
        )


def check_removed(counts: Tensor) -> None:
    """Refuse that more images of a class were removed than it has.

    Args:
        counts: Images of each row, ``(R,)``.

    Raises:
        ConfigError: If one is negative.
    """
    if short := (counts < 0).nonzero()[:, 0].tolist():
        raise ConfigError(
            f"more images of rows {short} were removed than were observed; remove each image once, "
            "and only what was observed"
        )


HeadBuilder = Callable[[int], Head]
"""From the width of the features to a head; what a strategy's builder takes as ``head``."""
