"""What texts find among images, after each experience."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.functional.accuracy_matrix import average_accuracy, forgetting
from avalanche_peftcl.functional.image_text import retrieval_recall
from avalanche_peftcl.training.streams import number_of


class TextRetrievalPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Measure for each caption of a test experience whether its image is the nearest there.

    It is the other half of what the accuracies of a :class:`.Contrastive` say, and cannot be
    counted image by image: a caption is a query, and all test images of its experience are
    candidates. One caption that several images have finds any of them; ties count against it.

    Attributes:
        recalls: ``T x T``: of each training experience, R@1 on each test experience at the last
            evaluation after it; ``None`` where there was none.

    Source:
        Recall at 1 as reported with CLIP (Radford et al., ICML 2021).
        Differs: within an experience.

    Example:
        >>> plugin = TextRetrievalPlugin()
        >>> plugin.enter(0, 0, 0.75)
        >>> plugin.enter(1, 0, 0.5)
        >>> plugin.enter(1, 1, 1.0)
        >>> plugin.recalls, plugin.summary()["forgetting"]
        ([[0.75, None], [0.5, 1.0]], 0.25)
    """

    remembers: tuple[str, ...] = ("recalls", "_trained")

    def __init__(self) -> None:
        super().__init__()
        self.recalls: list[list[float | None]] = []
        self._trained = -1  # the experience that was trained last
        self._seen: list[tuple[Tensor, Tensor]] = []

    def enter(self, trained: int, tested: int, recall: float) -> None:
        """Enter a value.

        Args:
            trained: Number of the experience trained last, from 0.
            tested: Number of the test experience.
            recall: R@1.
        """
        size = max(len(self.recalls), trained + 1, tested + 1)
        for row in self.recalls:
            row += [None] * (size - len(row))
        self.recalls += [[None] * size for _ in range(size - len(self.recalls))]
        self.recalls[trained][tested] = recall
        self._trained = max(self._trained, trained)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note which experience trains."""
        self._trained = number_of(strategy.experience) - 1

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin with no image."""
        self._seen = []

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the embeddings of the minibatch's images until the experience is through."""
        if self._trained >= 0:
            self._seen.append((strategy.mb_features[-1].float(), strategy.mb_y))

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Rank the images for each caption."""
        if not self._seen:
            return
        images = torch.nn.functional.normalize(torch.cat([z for z, _ in self._seen]), dim=1)
        targets = [int(y) for _, own in self._seen for y in own]
        self._seen = []
        captions = [set(strategy.captions[y]) for y in targets]
        texts = sorted(set().union(*captions))
        matches = torch.tensor([[text in own for own in captions] for text in texts])
        similarity = (strategy.encode(texts) @ images.T).cpu()
        tested = int(strategy.experience.current_experience)
        self.enter(self._trained, tested, retrieval_recall(similarity, matches, k=1))

    def summary(self) -> dict[str, Any]:
        """Return what the record keeps.

        Returns:
            ``text_to_image``, the matrix :attr:`recalls`; ``average`` of its last row and
            ``forgetting``, as they are defined of accuracies.
        """
        done = self._trained + 1
        rows = [row[:done] for row in self.recalls[:done]]
        entries = [[float("nan") if x is None else x for x in row] for row in rows]
        matrix = torch.tensor(entries, dtype=torch.float64).reshape(len(rows), done if rows else 0)
        seen = bool(rows) and not matrix[-1].isnan().any()
        return {
            "text_to_image": self.recalls,
            "average": average_accuracy(matrix) if seen else None,
            "forgetting": forgetting(matrix) if seen and len(rows) > 1 else None,
        }

    def headline(self) -> str | None:
        """Return one line about the last evaluation; ``None`` before the first."""
        if self._trained < 0 or len(self.recalls) <= self._trained:
            return None
        row = [x for x in self.recalls[self._trained][: self._trained + 1] if x is not None]
        shown = " ".join(f"{100 * x:.1f}" for x in row)
        return f"text to image, R@1 within each experience  [{shown}]"
