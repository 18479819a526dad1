"""A run that ends after some of its experiences, and goes on."""

import io

from rich.console import Console

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run

SETTINGS = {
    "num_threads": 1,
    "backbone": {"name": "vit_glyph"},
    "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 2},
    "strategy": {"name": "nearest_class_mean", "mixed_precision": "no"},
}


def test_a_run_stops_and_goes_on_to_the_same_end(tmp_path):
    config = RunConfig.model_validate({**SETTINGS, "output": str(tmp_path / "a"), "stop_after": 2})
    console = Console(file=io.StringIO(), width=300)
    stopped = run(config, reporter=RunProgress(console)).record
    said = console.file.getvalue()
    assert f"{config.output}/config.yaml --resume {config.output} stop_after=null" in said
    assert (stopped.experiences.finished, stopped.complete, stopped.ended) == (2, False, True)
    assert stopped.accuracy_matrix[1][1] is not None
    assert len(stopped.accuracy.accuracy_curve) == 2

    again = run(config, resume=True).record  # there is nothing to do, and nothing is done
    assert again.experiences.finished == 2

    whole = run(f"{config.output}/config.yaml", "stop_after=null", resume=True).record
    assert whole.complete
    other = config.model_copy(update={"output": tmp_path / "b", "stop_after": None})
    assert run(other).record.accuracy_matrix == whole.accuracy_matrix
    assert read_record(config.output).accuracy == read_record(other.output).accuracy


def test_more_than_there_are_is_all_of_them(tmp_path):
    config = RunConfig.model_validate({**SETTINGS, "output": str(tmp_path / "a"), "stop_after": 9})
    console = Console(file=io.StringIO(), width=300)
    assert run(config, reporter=RunProgress(console)).record.complete
    assert "stop_after" not in console.file.getvalue()
