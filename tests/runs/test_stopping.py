import os
import signal

import pytest

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}


class Listens(RunProgress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_run_that_hears_no_interrupt_says_what_stops_it(tmp_path, ignored):
    settings = {
        "output": tmp_path,
        "backbone": BACKBONE,
        "benchmark": {"name": "digits", "n_experiences": 1, "train_per_class": 1},
        "strategy": {"name": "nearest_class_mean"},
    }
    reporter = Listens()
    action = signal.SIG_IGN if ignored else signal.default_int_handler
    before = signal.signal(signal.SIGINT, action)
    try:
        run(RunConfig.model_validate(settings), reporter=reporter)
        assert signal.getsignal(signal.SIGINT) == action
    finally:
        signal.signal(signal.SIGINT, before)
    told = [text for text in reporter.said if "interrupts are ignored" in text]
    assert len(told) == ignored
    assert all(f"kill {os.getpid()} stops this one" in text for text in told)
