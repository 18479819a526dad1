import os

import pytest

from avalanche_peftcl.files import replace_file


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch, durable):
    path, synced = tmp_path / "a.txt", []
    path.write_text("old")
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), real(number)))
    replace_file(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert len(synced) == 2 * durable  # the file and its folder
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, failing):
    def full(*given):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", durable=True)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
