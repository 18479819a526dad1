import sys

import numpy as np
import pytest

import avalanche_peftcl
from avalanche_peftcl.errors import ConfigError, RecordError
from avalanche_peftcl.runs.names import experience_names
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.result import RunResult, load_run


@pytest.fixture
def result(record_of, tmp_path):
    names = [["cat", "dog"], ["<b>", "cow"], ["fox"]]
    record = record_of(3, 3)
    stream = [
        part.model_copy(update={"class_names": called})
        for part, called in zip(record.protocol.experiences, names, strict=True)
    ]
    protocol = record.protocol.model_copy(update={"experiences": stream})
    record = record.model_copy(update={"protocol": protocol})
    RunRecord(tmp_path, record).write()
    return load_run(tmp_path)


def test_numbers_are_those_of_the_record(result, tmp_path):
    assert (result.average_accuracy, result.last_accuracy) == (0.9312, 0.5)
    assert result.forgetting is None
    assert result.folder == tmp_path
    assert isinstance(result, RunResult)
    assert repr(result) == (
        "<ntk_cl on digits, seed 7: average accuracy 93.1 %, last accuracy 50.0 %, forgetting -; "
        f"{tmp_path}>"
    )


def test_the_matrix_is_an_array_with_names(result):
    matrix = result.accuracy_matrix
    assert matrix.names == ("cat, dog", "<b>, cow", "fox")
    assert matrix["fox", "cat, dog"] == matrix[2, 0] == pytest.approx(0.98)
    assert np.isnan(matrix["cat, dog", "fox"])
    np.testing.assert_array_equal(matrix["fox"], np.asarray(matrix)[2])
    assert np.nanmean(matrix) == pytest.approx((3 + 2 * 0.99 + 0.98) / 6)
    assert (len(matrix), matrix.shape) == (3, (3, 3))
    with pytest.raises(KeyError, match=r"no experience is called 'foxx'.*fox"):
        matrix["foxx"]
    lines = repr(matrix).splitlines()
    assert lines[-1] == "fox           98.0      99.0  100.0"
    assert len({len(line) for line in lines}) == 1


def test_a_large_matrix_is_shown_in_part(record_of, tmp_path):
    matrix = RunResult(tmp_path, record_of(100, 100)).accuracy_matrix
    assert matrix.shape == (100, 100)
    assert matrix.names[0] == "1"  # its experiences have the same classes, so no name tells them
    assert len(repr(matrix).splitlines()) == 21


def test_a_run_that_has_not_finished_any_is_shown(record_of, tmp_path):
    started = RunResult(
        tmp_path,
        record_of(
            2,
            0,
            accuracy={
                "average_incremental_accuracy": None,
                "last_accuracy": None,
                "forgetting": None,
                "accuracy_curve": [],
            },
        ),
    )
    assert np.isnan(started.accuracy_matrix).all()
    assert "<svg" not in started._repr_html_()
    assert "0 of 2 experiences" in repr(started)


def test_domains_are_names(record_of):
    protocol = record_of(2, 2).protocol
    named = protocol.model_copy(update={"domains": ["photo", "art"], "scenario": "domain"})
    assert experience_names(named) == ["photo", "art"]
    assert experience_names(protocol) == ["1", "2"]


def test_html_is_escaped_and_has_the_picture(result):
    page, table = result._repr_html_(), result.accuracy_matrix._repr_html_()
    assert "<td>93.1\u00a0%</td>" in page
    assert page.count("<svg") == 1
    assert "&lt;b&gt;, cow" in table
    assert "<b>, cow" not in page + table


def test_the_picture_is_saved(result, tmp_path):
    picture = result.plot()
    assert picture._repr_svg_().startswith("<svg")
    picture.save(tmp_path / "new" / "matrix.svg")
    assert (tmp_path / "new" / "matrix.svg").read_text(encoding="utf-8") == picture.svg
    with pytest.raises(ConfigError, match=r"matrix.png' does not end in .svg"):
        picture.save("matrix.png")


def test_pandas_is_named_where_it_is_missing(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for shown in (result, result.accuracy_matrix):
        with pytest.raises(ConfigError, match=r'pip install "avalanche-peftcl\[notebook\]"'):
            shown.to_pandas()


def test_tables_for_pandas(result):
    pytest.importorskip("pandas", reason="the extra [notebook] is not installed")
    table = result.to_pandas()
    assert list(table.index) == ["cat, dog", "<b>, cow", "fox"]
    assert list(table["train_images"]) == [8, 8, 8]
    assert table["accuracy_on_seen"].iloc[-1] == pytest.approx(0.99)
    matrix = result.accuracy_matrix.to_pandas()
    assert matrix.loc["fox", "cat, dog"] == pytest.approx(0.98)
    assert (matrix.index.name, matrix.columns.name) == ("trained up to", "tested on")


def test_no_run_is_told_with_its_folder(tmp_path):
    with pytest.raises(RecordError, match=f"{tmp_path}: metrics.json"):
        load_run(tmp_path)


def test_a_run_of_a_mapping_gives_a_result(tmp_path):
    asked = {
        "output": str(tmp_path / "run"),
        "backbone": "vit_glyph",
        "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
        "strategy": "nearest_class_mean",
    }
    result = avalanche_peftcl.run(asked, "seed=3")
    again = avalanche_peftcl.load_run(tmp_path / "run")
    assert result.record.seed == 3
    np.testing.assert_array_equal(result.accuracy_matrix, again.accuracy_matrix)
    assert result.last_accuracy == again.last_accuracy > 0.3
