import json
import os
from pathlib import Path

import pytest

from avalanche_peftcl.compare.records import LeftOut, find_records, read_run
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.record import RunRecord


def test_records_are_found_at_any_depth_each_once_and_sorted(write, tmp_path):
    for name in ("b", "a/deep/er", "a/c"):
        write(name)
    names = [str(path.relative_to(tmp_path)) for path in find_records([tmp_path])]
    assert names == ["a/c", "a/deep/er", "b"]
    again = find_records([tmp_path / "b", tmp_path, tmp_path / "a" / ".." / "b"])
    assert [path.name for path in again] == ["b", "c", "er"]


def test_a_record_may_lie_in_a_record(write, tmp_path):
    write("sweep")
    write("sweep/inner")
    assert len(find_records([tmp_path])) == 2


def test_a_folder_without_a_record_is_refused(write, tmp_path):
    write("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        find_records([tmp_path / "a", tmp_path / "empty"])
    assert str(caught.value) == (
        f"there is no run record in {tmp_path}/empty or below it: no file metrics.json; "
        "peftcl run writes one into its output folder"
    )
    for name, said in (("file", "is a file"), ("nowhere", "does not exist")):
        with pytest.raises(ConfigError) as caught:
            find_records([tmp_path / name])
        assert str(caught.value) == (
            f"{tmp_path}/{name} {said}; give the folder of a run record or one that contains run "
            "records"
        )


def test_a_record_is_read(write):
    run = read_run(write(seed=3, start=0.9, drop=0.1))
    assert isinstance(run, RunRecord)
    assert run.record.seed == 3
    assert run.record.config.strategy.name == "naive"
    assert run.record.config.output == Path("runs/3")
    assert run.record.protocol.experiences[0].class_names == ["3", "4"]
    assert len(run.record.accuracy.accuracy_curve) == 3


def text_of(path: Path, text: str | bytes) -> Path:
    (path / "metrics.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '{"format": 1,\n "seed"',
            "metrics.json is not valid JSON, cut off perhaps: Expecting ':' delimiter in line 2, "
            "column 8",
        ),
        (
            "",
            "metrics.json is not valid JSON, cut off perhaps: Expecting value in line 1, column 1",
        ),
        (b"\xff\xfe\x00", "metrics.json is not a text file in UTF-8"),
        ('{"format": "\\ud800"}', "metrics.json is not a text file in UTF-8"),
        ('{"format": NaN}', "metrics.json is not valid JSON: NaN is no number"),
        ("[1, 2]", "metrics.json is not that of a run: it has no key 'format'"),
        ("{}", "metrics.json is not that of a run: it has no key 'format'"),
        (
            '{"format": 7}',
            "the record has format 7; this version reads formats 1 and 2",
        ),
        ('{"format": 1}', "metrics.json is not as it should be: the key 'seed' is missing"),
    ],
    ids=[
        "cut",
        "empty",
        "bytes",
        "half-character",
        "nan",
        "list",
        "nothing",
        "other-version",
        "no-keys",
    ],
)
def test_what_cannot_be_read_has_a_reason(write, text, reason):
    folder = text_of(write(), text)
    assert read_run(folder) == LeftOut(folder, reason)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format": ' + "9" * 5000 + "}", '{"format": ' + "[" * 60 + "]" * 60 + "}"],
    ids=["brackets", "digits", "levels"],
)
def test_absurd_files_have_a_reason_too(write, text):
    found = read_run(text_of(write(), text))
    assert isinstance(found, LeftOut)
    assert len(found.reason) < 300


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accuracy.last_accuracy": 97.3}, "accuracy.last_accuracy: Input should be less than"),
        ({"accuracy_matrix.0.0": "x"}, "accuracy_matrix.0.0: Input should be a valid number"),
        ({"accuracy_matrix": [[1.0]]}, "matrix, curve and protocol are not of 3 experiences"),
        ({"cost.training_seconds": [-1.0]}, "cost.training_seconds.0: Input should be greater"),
        ({"config.strategy": {}}, "the key 'config.strategy.name' is missing"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"complete": None}, "complete: Input should be a valid boolean"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_record_that_is_not_as_it_should_be(write, changes, said):
    found = read_run(write(changes=changes))
    assert isinstance(found, LeftOut)
    assert found.reason.startswith("metrics.json is not as it should be: ")
    assert said in found.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_the_right_to_read(write):
    folder = write()
    (folder / "metrics.json").chmod(0)
    assert read_run(folder) == LeftOut(folder, "metrics.json cannot be read: Permission denied")


def test_a_folder_in_the_place_of_the_file(write):
    folder = write()
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").mkdir()
    assert read_run(folder) == LeftOut(folder, "metrics.json cannot be read: Is a directory")


def modern(folder: Path, **changes) -> Path:
    """Write a record as it is written today: the matrix in a file of its own."""
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = metrics.pop("accuracy_matrix")
    finished = changes.get("experiences", metrics["experiences"])["finished"]
    MatrixFile(folder, len(rows)).write(rows, finished)
    text_of(folder, json.dumps(metrics | {"format": 2} | changes))
    return folder


def test_old_and_new_records_say_the_same(write):
    old, new = read_run(write("old")), read_run(modern(write("new")))
    assert isinstance(new, RunRecord)
    assert new.record == old.record.model_copy(update={"format": 2})


def test_of_an_unfinished_record_the_finished_rows_count(write):
    part = {"complete": False, "experiences": {"total": 3, "finished": 2}}
    folder = modern(write(), **part)
    with (folder / "accuracy_matrix.csv").open("a") as file:
        file.write("3,0.5,0.")  # a process was killed here
    run = read_run(folder)
    assert len(run.record.accuracy_matrix) == 2
    assert run.record.accuracy_matrix == read_run(write("old")).record.accuracy_matrix[:2]


SPOILT = {
    "gone": (lambda p: p.unlink(), "accuracy_matrix.csv cannot be read: No such file or directory"),
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-2]), "fewer than 3 rows, it was cut off"),
    "a row short": (
        lambda p: p.write_text("".join(p.read_text().splitlines(keepends=True)[:-1])),
        "fewer than 3 rows, it was cut off",
    ),
    "another order": (
        lambda p: p.write_text(p.read_text().replace("\n2,", "\n3,")),
        "row 2 of accuracy_matrix.csv is none of 3 experiences",
    ),
    "percent": (lambda p: p.write_text(p.read_text().replace("0.9", "90%")), "convert string"),
    "out of range": (lambda p: p.write_text(p.read_text().replace("0.9", "9")), "less than or"),
    "nan": (lambda p: p.write_text(p.read_text().replace("0.9", "nan")), "finite number"),
    "no text": (lambda p: p.write_bytes(b"\xff\n" * 4), "codec can't decode"),
    "empty lines": (lambda p: p.write_bytes(b"\n" * 4), "is none of an accuracy matrix"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_matrix_that_cannot_be_read_has_a_reason(write, kind):
    folder = modern(write())
    spoil, said = SPOILT[kind]
    spoil(folder / "accuracy_matrix.csv")
    found = read_run(folder)
    assert isinstance(found, LeftOut)
    assert said in found.reason


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    assert read_run(tmp_path) == LeftOut(tmp_path, "metrics.json is no file")
