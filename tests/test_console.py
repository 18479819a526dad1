"""Names that others chose give no orders to a terminal, a Markdown reader or a spreadsheet."""

import csv
import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import avalanche_peftcl
from avalanche_peftcl import cli
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.console import (
    csv_cell,
    markdown,
    markdown_row,
    plain,
    standard_console,
    visible,
)
from avalanche_peftcl.registry.packages import SWITCH

SIGNS = st.sampled_from(
    "\x1b\x07\n\r\t\x00\x85\u2028\u202e[]()<>|`*_~#&;=+-@.!\\ '\"0123ab\U0001f600"
)
EVIL = "\x1b]0;title\x07\x1b[31m=1+1|<b>`x`\n# [y](z) *s* \u202e"


@given(st.text(SIGNS | st.characters()))
def test_nothing_unseen_is_left(text):
    seen = visible(text)
    assert not any(sign < " " or "\x7f" <= sign <= "\x9f" or sign == "\u202e" for sign in seen)
    seen.encode()  # no half characters
    assert visible(seen) == seen
    if text.isascii() and text.isprintable():
        assert seen == text


def test_lines_stay_where_they_are_wanted():
    assert visible("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert visible("a\n\tb\x1b") == r"a\n\tb\x1b"


@given(st.text(SIGNS | st.characters()))
@example("[bold red]x[/]")
@example(EVIL)
def test_a_console_writes_it_as_it_is(text):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=10_000)
    console.print(plain(text), soft_wrap=True)
    assert out.getvalue() == visible(text) + "\n"


READER = MarkdownIt("gfm-like", {"linkify": False, "typographer": False})


def read(text):
    """Return the kinds of all tokens of a Markdown text, and its plain text."""
    kinds, words = [], []
    for token in READER.parse(text):
        kinds.append(token.type)
        for inner in token.children or ():
            if inner.type not in ("text", "text_special"):
                kinds.append(inner.type)
            words.append(inner.content)
    return kinds, "".join(words)


@given(st.text(SIGNS | st.characters(categories=["L", "N", "P", "S"]), min_size=1))
@example("1. one")
@example("- one")
@example("---")
@example("===")
@example("&lt;b&gt;")
@example("~~gone~~")
@example("![a](b)")
@example("<!-- c -->")
@example("a\\|b")
@example("__init__")
@example(EVIL)
def test_markdown_reads_plain_text_only(text):
    escaped, seen = markdown(text), visible(text).strip()
    if not seen:
        return
    paragraph = ["paragraph_open", "inline", "paragraph_close"]
    for before in ("x ", ""):
        kinds, words = read(before + escaped.strip())
        assert (kinds, words) == (paragraph, before + seen)
    kinds, words = read("\n".join(map(markdown_row, ["ab", ["---"] * 2, [text, "end"]])))
    assert kinds.count("td_open") == 2
    assert {"html_inline", "code_inline", "link_open", "em_open", "s_open"}.isdisjoint(kinds)
    assert words == f"ab{seen}end"


@given(st.text(SIGNS | st.characters(codec="utf-8")))
@example("=cmd|' /C calc'!A0")
@example("\t=1")
@example(" =1")
@example("\uff1d1")
def test_a_spreadsheet_reads_no_formula(text):
    cell = csv_cell(text)
    assert cell in (text, f"'{text}")
    if cell == text and text.lstrip(" ")[:1] in tuple("=+-@\t\r\n\uff1d"):
        float(text)


@pytest.mark.parametrize("cell", ["-1.5", "+3", "1e-9", "-inf", 0.5, -2, None, "cat", "", "a=b"])
def test_numbers_and_words_stay(cell):
    assert csv_cell(cell) == cell


def test_no_text_reaches_a_console_by_another_way():
    """Text( and markup strings are in console.py only; elsewhere it is plain()."""
    root = Path(avalanche_peftcl.__file__).parent
    other = {
        path.relative_to(root).as_posix(): found
        for path in root.rglob("*.py")
        if (
            found := re.findall(
                r"\bText\((?!\))|from rich\.text|typer\.echo|click\.echo", path.read_text()
            )
        )
    }
    assert other == {"console.py": ["from rich.text", "Text(", "Text("]}
    printed = {
        path.relative_to(root).as_posix(): found
        for path in root.rglob("*.py")
        if (found := re.findall(r"console(?:\(\))?\.print\(\s*f?\"[^\"]*\"", path.read_text()))
    }
    assert printed == {"cli/__init__.py": ['console().print(f"avalanche-peftcl {__version__}"']}


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory):
    """A run on the command line whose classes and images have such names."""
    folder = tmp_path_factory.mktemp("evil")
    for part in ("train", "test"):
        for c, name in enumerate([EVIL, "@class", "[bold]c[9]", "d"]):
            place = folder / "data" / part / name
            place.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (60 * c + i,) * 3).save(place / f"=\x1b[2J{i}.png")
    settings = {
        "output": str(folder / "run"),
        "backbone": {
            "name": "timm_vit",
            "model_name": "vit_tiny_patch16_224",
            "img_size": 16,
            "patch_size": 8,
            "depth": 1,
            "embed_dim": 24,
            "num_heads": 2,
        },
        "benchmark": {
            "name": "image_folder",
            "root": str(folder / "data"),
            "n_experiences": 2,
            "augment": "none",
        },
        "strategy": "nearest_class_mean",
    }
    (folder / "c.yaml").write_text(dump_settings(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "")
        result = CliRunner().invoke(cli.app, ["run", str(folder / "c.yaml")])
    assert result.exit_code == 0, result.stderr
    return folder, result


def harmless(text):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_run_shows_them_and_obeys_none(evil_run):
    folder, result = evil_run
    harmless(result.stdout + result.stderr)
    assert "[bold]c[9]" in result.stdout
    assert r"\x1b]0;title\x07" in result.stdout
    summary = (folder / "run" / "summary.md").read_text()
    harmless(summary)
    kinds, words = read(summary)
    assert {"html_inline", "html_block", "link_open", "em_open", "code_inline"}.isdisjoint(kinds)
    heads = [line for line in summary.splitlines() if line.startswith("# ")]
    assert heads == ["# nearest_class_mean on image_folder"]
    assert visible(EVIL) in words
    rows = re.findall(r"^\| [12] \| [^|].*$", summary, re.MULTILINE)
    assert [len(re.split(r"(?<!\\)\|", row)) for row in rows] == [6, 6]


def test_so_does_predict(evil_run, monkeypatch):
    folder, _ = evil_run
    monkeypatch.setenv(SWITCH, "")
    words = ["predict", str(folder / "run"), str(folder / "data" / "test"), "--csv"]
    result = CliRunner().invoke(cli.app, [*words, str(folder / "p.csv")])
    assert result.exit_code == 0, result.stderr
    harmless(result.stdout + result.stderr)
    rows = list(csv.DictReader(io.StringIO((folder / "p.csv").read_text())))
    assert "'@class" in {row["class"] for row in rows}
    assert all(csv_cell(cell) == cell for row in rows for cell in row.values())


def test_so_do_errors(evil_run, tmp_path, monkeypatch):
    folder, _ = evil_run
    monkeypatch.setenv(SWITCH, "")
    broken = tmp_path / "\x1b[31mbroken.png"
    broken.write_bytes(b"nothing")
    result = CliRunner().invoke(cli.app, ["predict", str(folder / "run"), str(broken)])
    assert result.exit_code == 1
    harmless(result.stderr)
    assert r"\x1b[31mbroken.png cannot be decoded" in result.stderr
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "\x1b[31mno.yaml")])
    assert result.exit_code == 2
    harmless(result.stderr)


def test_so_does_compare(evil_run, monkeypatch):
    folder, _ = evil_run
    monkeypatch.setenv(SWITCH, "")
    formats = ("markdown", "latex", "csv", "html")
    named = [word for kind in formats for word in (f"--{kind}", str(folder / f"c.{kind}"))]
    result = CliRunner().invoke(cli.app, ["compare", str(folder / "run"), *named])
    assert result.exit_code == 0, result.stderr
    harmless(result.stdout + result.stderr)
    for kind in formats:
        harmless((folder / f"c.{kind}").read_text())
    assert "<b>" not in (folder / "c.html").read_text().partition('id="library"')[0]


@pytest.mark.parametrize(
    ("columns", "width"), [(None, 200), ("80", 80), ("", 200), ("wide", 200), ("0", 200)]
)
def test_what_is_piped_is_wide_unless_somebody_says_how_wide(monkeypatch, columns, width):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert standard_console().width == width
