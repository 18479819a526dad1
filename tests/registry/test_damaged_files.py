"""Damaged files of an installed distribution: told in one line, and no matter to the others."""

import warnings
from importlib.metadata import Distribution

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from avalanche_peftcl.registry import discover, installed
from avalanche_peftcl.registry import packages as discovery

SECTION = "[avalanche_peftcl]"
NAMELESS = "its METADATA is missing or has no Name; install it again"
DAMAGED = {
    "no METADATA": ({"METADATA": None}, "bad-1.0.dist-info unknown", NAMELESS),
    "empty METADATA": ({"METADATA": b""}, "bad-1.0.dist-info unknown", NAMELESS),
    "nameless": ({"METADATA": b"Version: 1.0\n"}, "bad-1.0.dist-info 1.0", NAMELESS),
    "without a version": (
        {"METADATA": b"Name: bad\n"},
        "bad unknown",
        "its METADATA is missing or has no Version; install it again",
    ),
    "no version": (
        {"METADATA": b"Name: bad\nVersion: \x1b[31m1\n"},
        "bad unknown",
        "its METADATA gives the version '\\x1b[31m1', which is none; install it again",
    ),
    "no name of a package": (
        {"METADATA": b"Name: a/b\nVersion: 1.0\n"},
        "bad-1.0.dist-info 1.0",
        "its METADATA names it 'a/b', which is no name of a package; install it again",
    ),
    "METADATA not UTF-8": (
        {"METADATA": b"Name: bad\nVersion: 1.0\n\xff"},
        "bad-1.0.dist-info unknown",
        "its METADATA cannot be read: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in "
        "position 23: invalid start byte; install it again",
    ),
    "entry points not UTF-8": (
        {"entry_points.txt": b"[avalanche_peftcl]\nx = bad\n\xff"},
        "bad 1.0",
        "its entry_points.txt is not a text file in UTF-8",
    ),
    "a line without =": (
        {"entry_points.txt": b"[avalanche_peftcl]\nbad\n"},
        "bad 1.0",
        "line 2 of its entry_points.txt, 'bad', is not of the form name = module",
    ),
    "not a module": (
        {"entry_points.txt": b"[avalanche_peftcl]\nx = not a module!!\n"},
        "bad 1.0",
        "line 2 of its entry_points.txt names 'not a module!!', which is no module",
    ),
    "Requires-Dist": (
        {"METADATA": b"Name: bad\nVersion: 1.0\nRequires-Dist: >>>\n"},
        "bad 1.0",
        None,
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_package_with_damaged_files_is_left_out_alone(
    install, discover_with_warnings, case, left_out
):
    files, package, cause = DAMAGED[case]
    install("bad", **files)
    install("z-good-one", component="last")
    registry, said = discover_with_warnings()
    assert "last" in registry.names("strategy")
    assert "good" not in registry.names("strategy")
    (record,) = [r for r in registry.plugins if not r.loaded]
    assert str(record.provider) == package
    if cause is None:
        assert record.cause.startswith("InvalidRequirement: ")
    else:
        assert record.cause == cause
    assert said == [left_out(package, record.cause, record.entry_point)]
    assert discovery.plugin_modules() >= {"avalanche_peftcl", "z_good_one"}


@pytest.mark.parametrize(
    "files",
    [
        {"METADATA": None, "entry_points.txt": b"[console_scripts]\nx = y\n"},
        {"entry_points.txt": b"[console_scripts]\n\xff = y\n"},
        {"entry_points.txt": b"no = section\n[console_scripts\n]]\nx"},
        {"entry_points.txt": None},
    ],
)
def test_damaged_files_of_a_package_that_offers_us_nothing_are_no_matter(
    install, discover_with_warnings, files
):
    install("not-ours", **files)
    registry, said = discover_with_warnings()
    assert said == []
    assert len(registry.plugins) == 1


_words = st.sampled_from(
    [
        b"[avalanche_peftcl]",
        b"[x]",
        b"a",
        b"=",
        b":",
        b"[",
        b"]",
        b"\n",
        b"\xff",
        b"#",
        b"\x00",
        b"a.b",
        b"Name: ",
        b"Version: ",
        b"1.0",
        b"Requires-Dist: ",
        b"avalanche-peftcl",
        b">",
        b"\x1b",
        b"/",
    ]
)
_contents = st.none() | st.binary(max_size=60) | st.lists(_words, max_size=20).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=_contents, points=_contents)
@example(metadata=None, points=b"[avalanche_peftcl]\nx = os\n")
@example(metadata=None, points=b"\x00[avalanche_peftcl]\n\x00")  # of no section
@example(metadata=b"Name: bad\nVersion: 1\n", points=b"[avalanche_peftcl]\nx = os\ny = \n=z\n")
def test_whatever_dist_info_holds_discovery_lists_what_it_left_out(
    tmp_path, monkeypatch, metadata, points, left_out
):
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir(exist_ok=True)
    for file, content in (("METADATA", metadata), ("entry_points.txt", points)):
        (info / file).unlink(missing_ok=True)
        if content is not None:
            (info / file).write_bytes(content)
    here = list(Distribution.discover(path=[str(tmp_path)]))
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(installed, "distributions", lambda: here)
        warnings.simplefilter("always")
        registry = discover()
    assert registry.entries() == []  # no module of these names offers anything
    assert all(record.cause and not record.loaded for record in registry.plugins)
    assert [str(w.message) for w in caught] == [
        left_out(str(record.provider), record.cause, record.entry_point)
        for record in registry.plugins
    ]
    lines = [line.strip() for line in (points or b"").decode("utf-8", "ignore").split("\n")]
    begins = lines.index(SECTION) + 1 if SECTION in lines[:-1] else len(lines)
    first = "".join(lines[begins : begins + 1])
    if first and first[0] not in "#[":
        assert registry.plugins
