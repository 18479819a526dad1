"""Accuracy as released code of methods on CLIP computes it: the minibatch tells the task."""

import torch
from torch import Tensor


def released_accuracy(
    predictions: Tensor, targets: Tensor, experiences: Tensor, *, batch_size: int
) -> float:
    r"""Return the share of images predicted right among the classes that their minibatch allows.

    .. math:: \frac{1}{n} \sum_i \bigl[\hat y_{i,\, m(i)} = y_i\bigr], \qquad
              m(i) = \max_{j \text{ in the minibatch of } i} t_j

    with :math:`t_j` the *true* experience of image :math:`j` and :math:`\hat y_{i, m}` the class
    with the largest logit among those of experiences 0 to :math:`m`. Of a test set in order of
    classes almost every minibatch is of one experience: an image competes with earlier classes and
    never with later ones. It depends on the order of the images and on the minibatch, and is no
    class-incremental accuracy.

    Args:
        predictions: :math:`\hat y`, ``(n, T)``, in the order of the test set.
        targets: :math:`y`, ``(n,)``.
        experiences: :math:`t`, ``(n,)``, from 0.
        batch_size: Images a minibatch; the last one may have fewer.

    Returns:
        A fraction; ``nan`` without images.

    Raises:
        ValueError: If the three do not belong together.

    Source:
        Released code of arXiv 2405.13383 on CLIP, JingyangQiao/PEGP 4662b80 and 842bc7e, and of
        prompt gradient projection, ICLR 2024. Differs: nothing.

    Example:
        >>> predictions = torch.tensor([[0, 2], [1, 1], [0, 2]])
        >>> targets, experiences = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
        >>> [
        ...     round(released_accuracy(predictions, targets, experiences, batch_size=n), 3)
        ...     for n in (2, 3)
        ... ]
        [1.0, 0.667]
    """
    n = len(targets)
    if len(predictions) != n or len(experiences) != n or batch_size < 1:
        raise ValueError(
            f"{len(predictions)} predictions, {n} targets and {len(experiences)} experiences in "
            f"minibatches of {batch_size} do not belong together"
        )
    if not n:
        return float("nan")
    latest = torch.cat(
        [part.max().expand(len(part)) for part in torch.split(experiences, batch_size)]
    )
    allowed = predictions.gather(1, latest[:, None])[:, 0]
    return float((allowed == targets).double().mean())
