import errno
import json
import os
import re
import shutil

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
    assert sorted(path.name for path in folder.iterdir()) == [
        "000002.json",
        "000002.safetensors",
        "000003.json",
        "000003.safetensors",
    ]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "000001.safetensors").write_bytes(b"its JSON was never written")
    (tmp_path / ".000002.json.part").write_bytes(b"half")
    assert read_checkpoint(tmp_path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def nested(path):
    path.write_text("[" * 100_000)


def other(path):
    path.write_text('{"format": 1, "sha256": {}, "state": 3}')


@pytest.mark.parametrize("damage", [cut, empty, flip, nested, other, os.unlink])
@pytest.mark.parametrize("end", ["json", "safetensors"])
def test_a_damaged_newest_one_falls_back_with_a_warning(folder, damage, end):
    path = folder / f"000003.{end}"
    damage(path)
    if damage is os.unlink and end == "json":  # then there is no third one
        assert number_and_n(folder) == (2, 2)
        return
    with pytest.warns(CheckpointWarning, match=r"000003\.json is damaged.*going on .* 000002"):
        assert number_and_n(folder) == (2, 2)
    write_checkpoint(folder, state(7), number=next_number(folder), before=2)
    assert number_and_n(folder) == (4, 7)
    flip(folder / "000004.safetensors")
    with pytest.warns(CheckpointWarning, match="going on .* 000002"):  # not the damaged one
        assert number_and_n(folder) == (2, 2)


def test_two_damaged_ones_are_an_error_that_names_both(folder):
    cut(folder / "000003.json")
    flip(folder / "000002.safetensors")
    with pytest.raises(CheckpointError, match=r"000003\.json is damaged.*000002\.json is damaged"):
        read_checkpoint(folder)


def test_a_format_to_come_is_told(tmp_path):
    write_checkpoint(tmp_path, state(1), number=1)
    path = tmp_path / "000001.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="is of format 2, this version reads format 1"):
        read_checkpoint(tmp_path)


def test_nothing_is_executed(folder):
    for path in folder.iterdir():
        if path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict)
        else:  # safetensors: a length, JSON, plain numbers
            length = int.from_bytes(path.read_bytes()[:8], "little")
            head = json.loads(path.read_bytes()[8 : 8 + length])
            ends = [entry["data_offsets"][1] for name, entry in head.items() if name[:2] != "__"]
            assert len(path.read_bytes()) == 8 + length + max(ends)


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("end", ["safetensors", "json"])
def test_a_full_disk_leaves_the_earlier_ones(folder, monkeypatch, failing, end):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real = checkpoint.replace_file

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(path, content, *, durable):
        if path.suffix == f".{end}":
            monkeypatch.setattr(os, failing, full)
        real(path, content, durable=durable)

    monkeypatch.setattr(checkpoint, "replace_file", write)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(folder, state(4), number=4)
    monkeypatch.undo()
    assert number_and_n(folder) == (3, 3)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_left_half_written_is_removed(folder):
    (folder / ".000004.safetensors.0123456789abcdef.part").write_bytes(b"half")
    shutil.copy(folder / "000003.safetensors", folder / "000004.safetensors")  # without its JSON
    (folder / "notes.txt").write_text("mine")
    assert strangers(folder) == ["notes.txt"]
    number = next_number(folder)
    write_checkpoint(folder, state(number), number=number)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"00000{n}.{e}" for n in (3, 5) for e in ("json", "safetensors")} | {
        "notes.txt"
    }
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
@pytest.mark.parametrize("name", ["000009.json", "000009.safetensors"])
def test_what_is_no_checkpoint_stays_and_stops_no_later_one(folder, make, name):
    make(folder / name)
    assert strangers(folder) == [name]
    assert strangers(folder, damaged_too=False) == ([] if make is a_file else [name])
    for n in (4, 5, 6):
        write_checkpoint(folder, state(n), number=next_number(folder))
    assert sorted(path.name for path in folder.iterdir() if path.name != name) == [
        f"0000{n}.{end}" for n in (11, 12) for end in ("json", "safetensors")
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


def test_what_safetensors_cannot_hold_is_told(tmp_path):
    weird = torch.zeros(2, dtype=torch.complex128)
    with pytest.raises(CheckpointError, match=r"^(safetensors refuses|.*complex)"):
        write_checkpoint(tmp_path, {"w": weird}, number=1)
    assert read_checkpoint(tmp_path) is None


def test_the_json_says_what_it_is(folder):
    text = (folder / "000003.json").read_text()
    assert re.match(r'\{"format": 1, "sha256": \{"tensors": "[0-9a-f]{64}"', text)
