"""Bytes that are no checkpoint, damaged, or forged: refused, and nothing of them is executed."""

import hashlib
import io
import os
import pickle
import re
import tracemalloc
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_peftcl.checkpoints.archive import FORMAT, MAGIC, decode_state, encode_state
from avalanche_peftcl.checkpoints.plain import plain_state
from avalanche_peftcl.errors import CheckpointError


def read(content: bytes) -> Any:
    return decode_state(content, "it")


STATE = {"w": torch.arange(3.0), "n": [1, (2.5, "text")], "s": {1}, 4: torch.ones(2, 2).T}


def error_of(content: bytes) -> str:
    """Return what is said of bytes; of those that give a plain state what is said of others."""
    try:
        plain_state(read(content))
    except CheckpointError as error:
        return str(error)
    return "the checkpoint it is damaged: not at all"


def same(state: Any) -> bool:
    return str(state) == str(STATE)


@pytest.fixture(scope="module")
def whole() -> bytes:
    return encode_state(STATE)


def test_it_can_be_read_cut_off_nowhere(whole):
    for end in range(len(whole)):
        with pytest.raises(CheckpointError, match="it is damaged: "):
            read(whole[:end])


def test_no_bit_can_change(whole):
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        with pytest.raises(
            CheckpointError, match=r"is damaged: it is|is no checkpoint: |format \d+,"
        ):
            read(bytes(changed))


@pytest.mark.parametrize(
    "content", [b"\x89PNG" + bytes(99), b'{"format": 1, "sha256": {}}', pickle.dumps(STATE)]
)
def test_bytes_of_something_else_are_told(content):
    with pytest.raises(CheckpointError, match=r"it is no checkpoint: its \d+ bytes .*start anew"):
        read(content)


def test_a_format_to_come_is_told(whole):
    told = f"is of format 99, this version reads format {FORMAT}; .* or start anew"
    with pytest.raises(CheckpointError, match=told):
        read(whole.replace(MAGIC + b"2", MAGIC + b"99", 1))


def stamped(body: bytes) -> bytes:
    """Return bytes whose hash is right, as somebody would forge them."""
    return MAGIC + b"%d sha256 %b\n" % (FORMAT, hashlib.sha256(body).hexdigest().encode()) + body


def body_of(content: bytes) -> bytes:
    return content[content.index(b"\n") + 1 :]


def forged(whole: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """Return an archive with the entries that ``change`` makes of those of a real one."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(body_of(whole))) as given:
        entries = {entry.filename: given.read(entry) for entry in given.infolist()}
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)
    return stamped(made.getvalue())


def with_pickle(whole: bytes, pickled: bytes) -> bytes:
    return forged(whole, lambda entries: entries | {"archive/data.pkl": pickled})


def test_an_archive_that_was_made_again_is_as_good(whole):
    assert same(read(forged(whole, dict)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_program_runs(whole, tmp_path, protocol):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    pickled = pickle.dumps({"w": Program()}, protocol=protocol)
    with pytest.raises(CheckpointError, match=r"which is in no checkpoint"):
        read(with_pickle(whole, pickled))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # it would have run


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0%bX\3\0\0\0cpuJ%btQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("


def storage(key: bytes = b"0", count: int = 3) -> bytes:
    return STORAGE % (key, count.to_bytes(4, "little", signed=True))


def tensor(memory: bytes, rest: bytes) -> bytes:
    """Return the pickle of a tensor of this memory, with offset, size and stride as given."""
    return b"\x80\2" + REBUILD + memory + rest + b"\x89ccollections\nOrderedDict\n)RtR."


def test_the_tensor_that_is_forged_below_would_be_read(whole):
    assert read(with_pickle(whole, tensor(storage(), b"K\0K\3\x85K\1\x85"))).tolist() == [0, 1, 2]


LONG = b"\x8a\6" + (2**40).to_bytes(6, "little")  # a number of entries that no memory has
HUGE = b"\x8a\x08" + (2**62).to_bytes(8, "little")
FORGED = {
    "a function": b"\x80\2cos\nsystem\n(X\4\0\0\0truetR.",
    "a builtin": b"\x80\2c__builtin__\neval\n(X\1\0\0\0001tR.",
    "memory by its size": b"\x80\2c__builtin__\nbytearray\n" + LONG + b"\x85R.",
    "a tensor by its size": b"\x80\2ctorch\nTensor\n" + LONG + b"\x85R.",
    "storage by its size": b"\x80\2ctorch.storage\nUntypedStorage\n" + LONG + b"\x85R.",
    "storage by its size, named": b"\x80\2X\7\0\0\0storagectorch.storage\nUntypedStorage\n"
    + LONG
    + b"\x85R.",
    "storage by its size, recalled": b"\x80\2ctorch.storage\nUntypedStorage\nq\0h\0"
    + LONG
    + b"\x85R.",
    "more than the memory": tensor(storage(), b"K\0" + LONG + b"\x85K\1\x85"),
    "one entry many times": tensor(storage(), b"K\0" + LONG + b"\x85K\0\x85"),
    "strides beyond": tensor(storage(), b"K\0K\3\x85" + LONG + b"\x85"),
    "strides beyond any": tensor(storage(), b"K\0K\5\x85" + HUGE + b"\x85"),
    "an offset beyond": tensor(storage(), LONG + b"K\3\x85K\1\x85"),
    "a negative offset": tensor(storage(), b"J\xff\xff\xff\xffK\1\x85K\1\x85"),
    "a negative stride": tensor(storage(), b"K\2K\2\x85J\xff\xff\xff\xff\x85"),
    "a negative size": tensor(storage(), b"K\0J\xff\xff\xff\xff\x85K\1\x85"),
    "memory beyond its own": tensor(storage(count=300), b"K\0K\3\x85K\1\x85"),
    "less memory than its own": tensor(storage(count=2), b"K\0K\2\x85K\1\x85"),
    "memory that is not there": tensor(storage(b"7"), b"K\0K\3\x85K\1\x85"),
    "memory twice": b"\x80\2(" + 2 * tensor(storage(), b"K\0K\3\x85K\1\x85")[2:-1] + b"l.",
    "memory alone": b"\x80\2" + storage() + b".",
    "one part twice": b"\x80\2]q\0(h\0h\0e.",
    "itself": b"\x80\2]q\0h\0a.",
    "a set of a tensor": b"\x80\2c__builtin__\nset\n"
    + tensor(storage(), b"K\0K\3\x85K\1\x85")[2:-1]
    + b"\x85R.",
    "a dtype": b"\x80\2ctorch\nfloat32\n.",
    "a kind": b"\x80\2ccollections\nOrderedDict\n)R.",
    "nothing": b"",
    "no end": b"\x80\2]",
    "text that is longer": b"\x80\2X\xff\xff\xff\x7fa.",
    "two ends": b"\x80\2N.N.",
    "depth": b"\x80\2" + 100_000 * b"]" + 99_999 * b"a" + b".",
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_pickle_is_refused_and_asks_for_no_memory(whole, kind):
    content = with_pickle(whole, FORGED[kind])
    tracemalloc.start()
    if kind == "two ends":  # the first one counts, for torch too
        assert read(content) is None
    else:
        with pytest.raises(CheckpointError, match="it is damaged: ") as error:
            read(content)
        assert not re.search(r"allocate|MemoryError", str(error.value))  # it was not asked for
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 + 1000 * len(content)


def test_an_archive_that_unfolds_is_refused(whole):
    bomb = forged(
        whole, lambda entries: entries | {"archive/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 10**6
    with pytest.raises(CheckpointError, match="would unfold to more than its size"):
        read(bomb)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_pickles_is_refused(whole):
    made = io.BytesIO(body_of(forged(whole, dict)))
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2cos\nsystem\n(X\4\0\0\0truetR.")
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read(stamped(made.getvalue()))


def test_a_program_of_torch_is_none_of_ours(whole):
    content = forged(whole, lambda entries: entries | {"archive/constants.pkl": b"x"})
    assert same(read(content))  # what torch would take for one is left out


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_forged_bytes_give_an_error_of_ours_or_a_plain_state(whole, data):
    """Whatever is changed, with a hash that is right: nothing else is raised."""
    body = bytearray(body_of(forged(whole, dict)) if data.draw(st.booleans()) else body_of(whole))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    assert error_of(stamped(bytes(body))).startswith("the checkpoint it is damaged: ")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_forged_pickle_gives_an_error_of_ours_or_a_plain_state(whole, data):
    with zipfile.ZipFile(io.BytesIO(body_of(whole))) as given:
        pickled = bytearray(given.read("archive/data.pkl"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(pickled) - 1))
        pickled[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    content = with_pickle(whole, bytes(pickled))
    assert error_of(content).startswith("the checkpoint it is damaged: ")
