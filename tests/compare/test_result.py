import subprocess
import sys

import pytest

import avalanche_peftcl
from avalanche_peftcl import compare, load_run
from avalanche_peftcl.errors import ConfigError


def test_the_room_is_a_function_too(study):
    shown = compare(study)
    assert type(shown).__name__ == "ComparisonResult"
    assert avalanche_peftcl.compare is sys.modules["avalanche_peftcl.compare"]
    assert "Paired tests" in repr(shown)
    assert max(map(len, repr(shown).splitlines())) <= 100


def test_results_and_folders_are_taken(study):
    folders = sorted(path.parent for path in study.rglob("metrics.json"))
    by_result = compare(*(load_run(folder) for folder in folders))
    assert repr(by_result) == repr(compare(*folders)) == repr(compare(study))
    with pytest.raises(ConfigError, match="give the runs to compare"):
        compare()


def test_html_holds_every_table_escaped(study):
    page = compare(study)._repr_html_()
    assert page.count("<table") == 2
    assert page.count("<div") == page.count("</div") == 1


def test_files_by_their_ending(study, tmp_path):
    shown = compare(study)
    for name, begins in (("a.md", "## Methods"), ("a.tex", "% needs"), ("a.csv", "source,method")):
        shown.save(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    with pytest.raises(
        ConfigError, match=r"a.pdf must end in one of .md, .tex, .csv, .html, which"
    ):
        shown.save(tmp_path / "a.pdf")


def test_a_table_for_pandas(study):
    pytest.importorskip("pandas", reason="the extra [notebook] is not installed")
    table = compare(study).to_pandas()
    own = table[(table["source"] == "own") & (table["quantity"] == "last_accuracy")]
    assert own["mean"].between(0, 1).all()
    assert len(own) == len(compare(study).comparison.methods)


def test_importing_the_names_loads_nothing_heavy():
    code = (
        "import sys, avalanche_peftcl; from avalanche_peftcl import load_run; "
        "print(sorted({'torch', 'avalanche', 'scipy', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
