"""How fast a run trains, and how long it has still to go; what its bar says."""

import time
from collections.abc import Callable

from avalanche_peftcl.runs.units import duration

_SHARE = 1 / 3  # of the time that an image takes in training, for one that is evaluated


def _about(seconds: float) -> str:
    """Return a time by its largest unit."""
    return f"{seconds:.0f} s" if seconds < 59.5 else " ".join(duration(seconds).split()[:2])


class Pace:
    """Counts the minibatches of a run and their images while it trains.

    What lies between the training on two experiences, evaluation above all, is told from how long
    it took before, by the images that are evaluated; until then an image counts as a third of one
    that is trained, a pass forward without the one backward.

    Args:
        now: Gives the time in seconds.

    Example:
        >>> seconds = iter([0.0, 10.0])
        >>> pace = Pace(now=lambda: next(seconds))
        >>> pace.begin(here=4, later=12, tests=(30, 60))
        >>> pace.count(50)
        >>> pace.speed, pace.left  # 3 and 12 minibatches of 10 s, 30 and 60 images of 1/15 s
        (5.0, (32.0, 156.0))
        >>> pace.text(loss=0.25, lr=0.03)
        'loss 0.250 lr 0.03 5 img/s, 32 s of 2 min left'
    """

    def __init__(self, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began: float | None = None
        self._images = self._done = self._here = self._later = 0
        self._seconds = 0.0
        self._tests = (0, 0)
        self._before = (0, 0.0)  # minibatches and seconds of the experiences before
        self._between = (0, 0.0)  # images evaluated between them, and seconds

    def begin(self, *, here: int | None, later: int, tests: tuple[int, int] = (0, 0)) -> None:
        """Begin the training on an experience.

        Args:
            here: Minibatches that it takes; ``None`` where nobody knows.
            later: Those of all experiences that follow.
            tests: Images that are evaluated when it has ended, and in all that follow.
        """
        now, (done, seconds), (images, waited) = self._now(), self._before, self._between
        if self._began is not None and self._tests[0]:
            between = now - self._began - self._seconds
            self._between = images + self._tests[0], waited + between
        self._before = done + self._done, seconds + self._seconds
        self._began, self._seconds, self._tests = now, 0.0, tests
        self._images, self._done, self._here, self._later = 0, 0, here or 0, later

    def expect(self, here: int) -> None:
        """Learn how many minibatches the experience takes after all."""
        self._here = here

    def count(self, images: int) -> None:
        """Count a minibatch of so many images."""
        self._done += 1
        self._images += images
        if self._began is not None:
            self._seconds = self._now() - self._began

    @property
    def speed(self) -> float | None:
        """Images a second in this experience; ``None`` before there is one."""
        return self._images / self._seconds if self._seconds > 0 else None

    @property
    def left(self) -> tuple[float, float] | None:
        """Seconds left in this experience and in the run; ``None`` if unknown."""
        if not (self._here and self._done and self._seconds > 0):
            return None
        (done, seconds), (images, waited) = self._before, self._between
        each = waited / images if images else _SHARE * self._seconds / self._images
        here = max(0, self._here - self._done) * self._seconds / self._done
        here += each * self._tests[0]
        whole = here + self._later * (seconds + self._seconds) / (done + self._done)
        return here, whole + each * self._tests[1]

    def text(self, *, loss: float | None, lr: float | None) -> str:
        """Return what stands beside the bar."""
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        parts += [] if lr is None else [f"lr {lr:.2g}"]
        if (speed := self.speed) is not None:
            parts.append(f"{speed:,.0f} img/s" if speed >= 3 else f"{speed:.1f} img/s")
        text = " ".join(parts)
        if (left := self.left) is not None:
            here, whole = map(_about, left)
            text += f", {here} of {whole} left" if self._later else f", {here} left"
        return text
