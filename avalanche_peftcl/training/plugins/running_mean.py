"""Running means of a module's parameters over experiences."""

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.averaging import released_copy, running_mean_, segment
from avalanche_peftcl.training.streams import ends_experience, stream_length


class RunningMeanPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Keep the plain mean of a module's parameters after each experience in a copy of it.

    .. math:: \bar p_t = \frac{t}{t+1}\,\bar p_{t-1} + \frac{1}{t+1}\,p_t

    With several copies the stream is cut in as many segments, and each copy is the mean of one;
    the first copy in the list is of the newest.

    Args:
        source: Name of the module that trains, as in ``model.get_submodule``.
        targets: Names of its copies, newest first.

    Raises:
        ConfigError: While training, if there are several copies and the stream has no length or
            fewer experiences than copies.

    Source:
        Liu et al., arXiv 2407.17120 ("adaptive EMA"); released code 24de712.
        Differs: the plain mean, as in the release, where the paper speaks of an exponential one;
        every experience counts, the last one too; copies of several segments are means
        of their own segment. :class:`ReleasedRunningMeanPlugin` does as the release.
    """

    remembers: tuple[str, ...] = ("n_experiences_done",)  # the means are in the model

    def __init__(self, source: str, targets: Sequence[str]) -> None:
        super().__init__()
        self.source, self.targets = source, list(targets)
        self.n_experiences_done = 0

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Move the mean on, when an experience ends."""
        if not ends_experience(strategy.experience):
            return
        done = self.n_experiences_done
        self.n_experiences_done += 1
        if len(self.targets) == 1:
            self.update(strategy.model, copy=1, count=done)
            return
        length = self.length(strategy.experience)
        copy, count = segment(done % length, n_experiences=length, n_copies=len(self.targets))
        self.update(strategy.model, copy=copy, count=count)

    def length(self, experience: Any) -> int:
        """Return the length of the stream, which several copies need."""
        length = stream_length(experience)
        if length is None or length < len(self.targets):
            raise ConfigError(
                f"{len(self.targets)} copies need a stream of at least as many experiences; this "
                f"one has {'no length' if length is None else length}: use n_copies=1"
            )
        return length

    def update(self, model: torch.nn.Module, *, copy: int, count: int) -> None:
        """Move copy number ``copy`` (1 the newest) on to the mean with the source."""
        name = self.targets[copy - 1] if copy else self.source
        target, source = model.get_submodule(name), model.get_submodule(self.source)
        running_mean_(target.parameters(), source.parameters(), count=count)


class ReleasedRunningMeanPlugin(RunningMeanPlugin):
    """The running mean with the counts, copies and stop of the release.

    The last experience is left out; with several copies the counts go on across segments, so a
    later copy keeps a share of its untrained start; where the number of copies does not divide
    that of experiences, the adapters that train are scaled instead.

    Source:
        Released NTK-CL code 24de712. Differs: nothing.
    """

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Move the mean on, when an experience but the last ends."""
        if not ends_experience(strategy.experience):
            return
        done = self.n_experiences_done
        self.n_experiences_done += 1
        length = self.length(strategy.experience)
        if done % length == length - 1:
            return
        copy = released_copy(done % length, n_experiences=length, n_copies=len(self.targets))
        self.update(strategy.model, copy=copy, count=done % length)
