"""The reader of records: what versions before this one wrote, and what any version says."""

import json

import pytest

from avalanche_peftcl.errors import RecordError
from avalanche_peftcl.runs.reading import read_claim, read_record
from avalanche_peftcl.runs.record import RunRecord


@pytest.fixture
def folder(tmp_path, record_of):
    RunRecord(tmp_path, record_of(3, 2, further_metrics={"a": [0.5, None]})).write()
    return tmp_path


def rewrite(folder, **changed):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_what_was_written_is_read_back(folder, record_of):
    written = record_of(3, 2, further_metrics={"a": [0.5, None]})
    there = read_record(folder)
    assert there == written.model_copy(update={"accuracy_matrix": written.accuracy_matrix[:2]})
    assert RunRecord(folder, there).metrics["accuracy_matrix"] == there.accuracy_matrix


def test_the_last_values_alone_that_a_record_once_had_stay_the_last(folder):
    rewrite(folder, further_metrics={"a": 0.25, "b": 3}, notes=[[], []])
    assert read_record(folder).further_metrics == {"a": [None, 0.25], "b": [None, 3.0]}


def test_keys_of_another_version_are_left_alone(folder):
    config = json.loads((folder / "metrics.json").read_text())["config"]
    rewrite(folder, later=1, config=config | {"later": 2})
    record = read_record(folder)
    assert record.config.model_extra == {"later": 2}
    assert "later" not in RunRecord(folder, record).metrics


def test_a_record_of_any_version_says_whose_the_folder_is(folder):
    rewrite(folder, format=9, files=["a.txt", 3], complete="yes", protocol=None)
    with pytest.raises(RecordError, match="has format 9; this version reads formats 1 and 2"):
        read_record(folder)
    claim = read_claim(folder)
    assert (claim.format, claim.finished, claim.complete, claim.files) == (9, 2, False, ["a.txt"])
    for spoilt in {"experiences": 3}, {"config": None}:
        rewrite(folder, **spoilt)
        assert read_claim(folder) is None


def test_rows_that_are_still_made_are_not_asked_for(record_of):
    class Rows(list):
        pass

    with pytest.raises(ValueError, match="accuracy_matrix"):
        record_of(accuracy_matrix=Rows([[7.0]]))
    assert record_of(2, 1, accuracy_matrix=range(2)).accuracy_matrix == range(2)
