import errno
import os
import re

import pytest
import torch

from avalanche_peftcl.checkpoints import folder as checkpoint
from avalanche_peftcl.checkpoints.folder import (
    clear_checkpoints,
    next_number,
    read_checkpoint,
    strangers,
    write_checkpoint,
)
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning


def state(n: int) -> dict:
    return {"n": n, "w": torch.full((3,), float(n)), "nested": [{"b": torch.tensor(n)}]}


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints 1, 2 and 3, of which two are kept."""
    for n in (1, 2, 3):
        write_checkpoint(tmp_path / "a" / "b", state(n), number=n)
    return tmp_path / "a" / "b"


def number_and_n(folder):
    number, found = read_checkpoint(folder)
    assert found["w"].tolist() == [found["n"]] * 3
    return number, found["n"]


def test_the_newest_is_read_and_the_one_before_is_kept(folder):
    assert number_and_n(folder) == (3, 3)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["000002.checkpoint", "000003.checkpoint"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".000002.checkpoint.part").write_bytes(b"half")
    assert read_checkpoint(tmp_path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other(path):
    path.write_text('{"format": 1, "sha256": {}, "state": 3}')


@pytest.mark.parametrize("damage", [cut, empty, flip, other])
def test_a_damaged_newest_one_falls_back_with_a_warning(folder, damage):
    damage(folder / "000003.checkpoint")
    told = r"000003\.checkpoint is (damaged|no checkpoint).*going on .* 000002"
    with pytest.warns(CheckpointWarning, match=told):
        assert number_and_n(folder) == (2, 2)
    write_checkpoint(folder, state(7), number=next_number(folder), before=2)
    assert number_and_n(folder) == (4, 7)
    flip(folder / "000004.checkpoint")
    with pytest.warns(CheckpointWarning, match="going on .* 000002"):  # not the damaged one
        assert number_and_n(folder) == (2, 2)


def test_two_damaged_ones_are_an_error_that_names_both(folder):
    cut(folder / "000003.checkpoint")
    flip(folder / "000002.checkpoint")
    told = r"000003\.checkpoint is damaged.*000002\.checkpoint is damaged"
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(folder)


def test_those_of_an_earlier_version_are_told(tmp_path):
    for end in ("json", "safetensors"):
        (tmp_path / f"000007.{end}").write_bytes(b"of format 1")
    with pytest.raises(CheckpointError, match=r"of an earlier version, .* or remove that folder"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path, state(1), number=1)
    assert number_and_n(tmp_path) == (1, 1)


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_ones(folder, monkeypatch, failing):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real = checkpoint.replace_file

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(path, content, *, durable):
        monkeypatch.setattr(os, failing, full)
        real(path, content, durable=durable)

    monkeypatch.setattr(checkpoint, "replace_file", write)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(folder, state(4), number=4)
    monkeypatch.undo()
    assert number_and_n(folder) == (3, 3)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_left_half_written_is_removed(folder):
    (folder / ".000004.checkpoint.0123456789abcdef.part").write_bytes(b"half")
    (folder / "000004.checkpoint").write_bytes((folder / "000003.checkpoint").read_bytes()[:10])
    (folder / "notes.txt").write_text("mine")
    assert strangers(folder) == ["notes.txt"]
    number = next_number(folder)
    write_checkpoint(folder, state(number), number=number, before=3)
    names = {path.name for path in folder.iterdir()}
    assert names == {"000003.checkpoint", "000005.checkpoint", "notes.txt"}
    clear_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    clear_checkpoints(folder)
    assert not folder.exists()
    clear_checkpoints(folder)


def a_folder(path):
    path.mkdir()


def a_link(path):
    (path.parents[1] / "elsewhere").write_text("mine")
    path.symlink_to(path.parents[1] / "elsewhere")


def a_file(path):
    path.write_text("mine")


@pytest.mark.parametrize("make", [a_folder, a_link, a_file])
def test_what_is_no_checkpoint_stays_and_stops_no_later_one(folder, make):
    name = "000009.checkpoint"
    make(folder / name)
    assert strangers(folder) == [name]
    assert strangers(folder, damaged_too=False) == ([] if make is a_file else [name])
    for n in (4, 5, 6):
        write_checkpoint(folder, state(n), number=next_number(folder))
    assert sorted(path.name for path in folder.iterdir() if path.name != name) == [
        f"0000{n}.checkpoint" for n in (11, 12)
    ]
    assert number_and_n(folder) == (12, 6)
    clear_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == [name]
    if make is not a_folder:
        assert (folder / name).read_text() == "mine"


def test_a_link_in_the_place_of_the_folder_is_not_followed(folder):
    (folder.parent / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="it is a link, which is not followed"):
        write_checkpoint(folder.parent / "link", state(4), number=4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_held_leaves_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="w is a object, which no checkpoint can hold"):
        write_checkpoint(tmp_path / "a", {"w": object()}, number=1)
    assert not (tmp_path / "a").exists()


def test_the_first_line_says_what_it_is(folder):
    line = (folder / "000003.checkpoint").read_bytes().split(b"\n")[0].decode()
    assert re.fullmatch(r"avalanche_peftcl checkpoint 2 sha256 [0-9a-f]{64}", line)
