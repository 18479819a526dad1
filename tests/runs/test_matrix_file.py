"""The accuracy matrix on disk: what is added, what is cut off, what is refused."""

import errno
import os

import pytest
import torch

from avalanche_peftcl.evaluation.running_matrix import MatrixRows
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE, MatrixFile, read_matrix

ROWS = [[1 / 3, None, None], [0.1, 0.7, None], [0.0, 1.0, 2 / 3]]


@pytest.fixture
def written(tmp_path):
    file = MatrixFile(tmp_path, 3)
    file.write(ROWS, 1)
    return file


def whole(folder):
    """What a process writes that finds nothing there."""
    (folder / "other").mkdir()
    MatrixFile(folder / "other", 3).write(ROWS, 3)
    return (folder / "other" / MATRIX_FILE).read_bytes()


def test_rows_one_by_one_are_the_file_of_all_of_them(written, tmp_path):
    hashes = [written.sha256]
    for n in (1, 2, 2, 3):
        written.write(ROWS, n)
        assert written.rows == n
        assert read_matrix(tmp_path, n, sha256=written.sha256) == ROWS[:n]
        hashes.append(written.sha256)
    assert (tmp_path / MATRIX_FILE).read_bytes() == whole(tmp_path)
    assert read_matrix(tmp_path, 1, sha256=hashes[0]) == ROWS[:1]  # an earlier checkpoint's
    assert len(set(hashes)) == 3


def test_every_fraction_comes_back_with_all_its_bits(tmp_path):
    matrix = torch.rand(40, 40, dtype=torch.float64, generator=torch.manual_seed(0))
    MatrixFile(tmp_path, 40).write(MatrixRows(matrix), 40)
    assert torch.equal(torch.tensor(read_matrix(tmp_path, 40), dtype=torch.float64), matrix)


def test_what_a_killed_process_left_is_cut_off(written, tmp_path):
    with (tmp_path / MATRIX_FILE).open("ab") as file:
        file.write(b"2,0.1,0.7,\n3,0.")
    assert read_matrix(tmp_path, 1) == ROWS[:1]
    written.write(ROWS, 3)
    assert (tmp_path / MATRIX_FILE).read_bytes() == whole(tmp_path)


@pytest.mark.parametrize("kind", ["gone", "shorter", "link", "two names", "folder link"])
def test_a_file_that_is_no_longer_ours_is_replaced_not_written_to(written, tmp_path, kind):
    path, mine = tmp_path / MATRIX_FILE, tmp_path / "mine.csv"
    mine.write_bytes(b"something of the user's, long enough to be written into" * 5)
    before = mine.read_bytes()
    path.unlink()
    if kind == "shorter":
        path.write_bytes(b"1")
    elif kind == "link":
        path.symlink_to(mine)
    elif kind == "two names":
        os.link(mine, path)
    elif kind == "folder link":
        path.symlink_to(tmp_path)
    written.write(ROWS, 3)
    assert mine.read_bytes() == before
    assert not path.is_symlink()
    assert path.read_bytes() == whole(tmp_path)


def test_a_full_disk_keeps_the_rows_that_were_there(written, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written.write(ROWS, 3)
    monkeypatch.undo()
    assert written.rows == 1
    assert read_matrix(tmp_path, 1, sha256=written.sha256) == ROWS[:1]
    written.write(ROWS, 3)
    assert (tmp_path / MATRIX_FILE).read_bytes() == whole(tmp_path)


def test_what_was_changed_since_is_refused(written, tmp_path):
    path = tmp_path / MATRIX_FILE
    path.write_text(path.read_text().replace("0.3333333333333333", "0.33"))
    assert read_matrix(tmp_path, 1) == [[0.33, None, None]]
    with pytest.raises(ValueError, match="not what was written, it has been changed"):
        read_matrix(tmp_path, 1, sha256=written.sha256)
    with pytest.raises(ValueError, match="fewer than 2 rows"):
        read_matrix(tmp_path, 2)
