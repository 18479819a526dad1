import errno
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from avalanche_peftcl import cli
from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.render import csv_table, latex_tables, markdown_tables
from avalanche_peftcl.registry.packages import SWITCH


@pytest.fixture
def peftcl():
    return lambda *words: CliRunner().invoke(cli.app, ["compare", *map(str, words)])


def test_tables_are_shown(peftcl, study):
    result = peftcl(study)
    assert (result.exit_code, result.stderr) == (0, "")
    for word in ("naive", "ntk_cl recipe=released", "61.7 ± 2.1 (± 5.2)", "p (Holm)", "-58.89"):
        assert word in result.stdout


def test_files_are_written(peftcl, study, tmp_path):
    files = {name: tmp_path / "new" / name for name in ("markdown", "latex", "csv", "html")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    result = peftcl(study, *words)
    assert result.exit_code == 0
    comparison = compare_runs([study])
    for name, render in (
        ("markdown", markdown_tables),
        ("latex", latex_tables),
        ("csv", csv_table),
    ):
        assert files[name].read_text() == render(comparison)
    assert files["html"].read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(files)


def test_an_unreadable_record_among_many_is_told_and_the_status_is_not_zero(peftcl, study, write):
    (write("study/torn") / "metrics.json").write_text('{"format": 9}')
    report = study / "report.md"
    result = peftcl(study, "--markdown", report)
    assert result.exit_code == 1
    assert result.stderr == "error: 1 of the records could not be read, see above\n"
    assert "unreadable: " in result.stdout
    assert "this version reads formats 1 and 2" in result.stdout
    assert "61.7 ± 2.1" in report.read_text()


def test_an_incomplete_run_is_told_and_no_error(peftcl, study, write):
    write("study/half", changes={"complete": False, "experiences.finished": 1})
    result = peftcl(study)
    assert result.exit_code == 0
    assert "half: 1 of 3 experiences are finished" in result.stdout.replace("\n", "")


def test_another_protocol_is_refused_unless_forced(peftcl, study, write):
    write("study/other", "x", changes={"protocol.scenario": "task"})
    result = peftcl(study)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: these runs do not share one protocol")
    assert f"scenario: class in {study}/naive_0" in result.stderr
    result = peftcl(study, "--force")
    assert result.exit_code == 0
    assert "These runs do not share one protocol" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "nowhere does not exist; give the folder of a run record"),
        (("{study}", "--html", "{study}"), "cannot write {study}: it is a folder"),
        (("{study}", "--csv", "{file}/a"), "cannot write {file}/a: "),
        (
            ("{study}", "--csv", "{new}", "--latex", "{new}"),
            "--latex {new} is also the file of another format; give each one",
        ),
    ],
    ids=["folder", "output-folder", "output-below-a-file", "one-output-for-two"],
)
def test_bad_input_is_one_message(peftcl, study, tmp_path, words, said):
    (tmp_path / "file").write_text("kept")
    names = {"study": study, "file": tmp_path / "file", "new": tmp_path / "new"}
    result = peftcl(*(word.format(**names) for word in words))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: " + said.format(**names))
    assert "Traceback" not in result.output
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_earlier_report(peftcl, study, tmp_path, monkeypatch):
    def full(number, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    report = tmp_path / "report.csv"
    report.write_text("earlier")
    monkeypatch.setattr("avalanche_peftcl.files._write", full)
    result = peftcl(study, "--csv", report)
    assert result.exit_code == 2
    assert result.stderr == f"error: cannot write {report}: No space left on device\n"
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.csv"]
    assert report.read_text() == "earlier"


def test_comparing_imports_no_torch(study):
    code = (
        "import sys\n"
        "from avalanche_peftcl.cli import app\n"
        f"app(['compare', {str(study)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'avalanche', 'timm', 'peft', 'matplotlib', 'plotly'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = os.environ | {SWITCH: "", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env=environment,
    )
    assert "naive" in result.stdout
    assert result.stderr == "[]\n"
