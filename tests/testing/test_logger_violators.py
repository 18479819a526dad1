"""Loggers that break their contract, each in one way; the test of that name must notice."""

import threading

import pytest
import torch
from avalanche.logging import BaseLogger

from avalanche_peftcl.testing import LoggerContract


class Lines(BaseLogger):
    """Writes a line a value."""

    mode = "a"

    def __init__(self, folder, resume):
        super().__init__()
        self.file = (folder / "lines.txt").open(self.mode)

    def log_single_metric(self, name, value, x_plot):
        self.file.write(f"{name} {value} {x_plot}\n")

    def close(self):
        self.file.close()


class Honest(LoggerContract):
    kind = Lines

    def create_logger(self, folder, *, resume):
        return self.kind(folder, resume)


class Draws(Lines):
    def log_single_metric(self, name, value, x_plot):
        super().log_single_metric(name, value + torch.rand(()), x_plot)


class StaysOpen(Lines):
    """Is held by somebody, so that nothing closes its file for it."""

    close, held = None, []  # shared on purpose

    def __init__(self, folder, resume):
        super().__init__(folder, resume)
        self.held.append(self)


class KeepsAThread(Lines):
    """Has somebody wait for a file that is closed."""

    def __init__(self, folder, resume):
        super().__init__(folder, resume)
        self.done = threading.Event()
        threading.Thread(target=self.done.wait, args=[5], daemon=True).start()


class BeginsAnew(Lines):
    def __init__(self, folder, resume):
        for path in folder.iterdir():
            path.unlink()
        super().__init__(folder, resume)
        self.file.close()
        self.file = (folder / f"{resume}.txt").open("w")


VIOLATORS = [
    ("test_does_not_change_the_run", Draws),
    ("test_closes", StaysOpen),
    ("test_closes", KeepsAThread),
    ("test_goes_on_in_its_folder", BeginsAnew),
]


@pytest.mark.parametrize(("name", "kind"), VIOLATORS)
def test_noticed(notices, name, kind):
    assert notices(name, Honest, type("Violator", (Honest,), {"kind": kind}))


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(LoggerContract)
