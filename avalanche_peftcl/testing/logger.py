"""What every logger that a configuration can name must do."""

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics

from avalanche_peftcl.logging import closing
from avalanche_peftcl.testing.probes import differing
from avalanche_peftcl.testing.stage import tuned, tuning


class LoggerContract:
    """Subclass, write :meth:`create_logger`, and the suite is yours.

    Example:
        >>> from avalanche_peftcl.logging import tensorboard
        >>> class TestTensorboard(LoggerContract):
        ...     def create_logger(self, folder, *, resume):
        ...         return tensorboard(output=folder, resume=resume, listed=())
        >>> TestTensorboard().test_closes()
    """

    def create_logger(self, folder: Path, *, resume: bool) -> Any:
        """Return the logger under test for a run in ``folder``, which may go on there."""
        raise NotImplementedError

    def logged(self, folder: Path, *, resume: bool = False) -> dict[str, Any]:
        """Log a run into a folder, close the logger, and return where the run ends."""
        logger = self.create_logger(folder, resume=resume)
        with closing([logger]):
            _, ends = tuned(lambda: tuning(metrics=told(), loggers=[logger]))
        return ends

    def test_does_not_change_the_run(self) -> None:
        """Weights and generators of a run end as without it, bit for bit."""
        _, plain = tuned(lambda: tuning(metrics=told()))
        with tempfile.TemporaryDirectory() as folder:
            assert not differing(plain, self.logged(Path(folder)))

    def test_closes(self) -> None:
        """Closed, it has no file of the folder open and no thread at work."""
        threads = set(threading.enumerate())
        with tempfile.TemporaryDirectory() as folder:
            self.logged(Path(folder))
            assert not open_files(Path(folder))
        left = [thread.name for thread in set(threading.enumerate()) - threads if thread.is_alive()]
        assert not left

    def test_goes_on_in_its_folder(self) -> None:
        """A run that goes on leaves what lies there: every file is there, and none is shorter."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.logged(folder)
            before = sizes(folder)
            self.logged(folder, resume=True)
            after = sizes(folder)
        assert not [path for path, size in before.items() if after.get(path, -1) < size]


def told() -> list[Any]:
    """Return metrics that a logger hears of."""
    return [*accuracy_metrics(epoch=True, stream=True), *loss_metrics(minibatch=True)]


def sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def open_files(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open; none where nobody can say."""
    held = Path("/proc/self/fd")
    if not held.is_dir():
        return []
    paths = [os.readlink(each) for each in held.iterdir() if each.is_symlink()]
    return [path for path in paths if Path(path).is_relative_to(folder.resolve())]
