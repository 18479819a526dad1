import re
from xml.etree import ElementTree

import pytest

from avalanche_peftcl.runs.picture import colour, matrix_picture, record_picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(record):
    root = ElementTree.fromstring(record_picture(record))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    return list(root.iter(f"{SVG}rect")), texts


@pytest.mark.parametrize(("size", "finished"), [(1, 1), (5, 2), (10, 10), (20, 20), (21, 21)])
def test_every_value_of_a_small_matrix_is_drawn_and_written(record_of, size, finished):
    cells, texts = drawn(record_of(size, finished))
    assert len(cells) == finished * (finished + 1) // 2 + finished  # and the curve
    assert (("100.0" if size <= 10 else "100") in texts) is (size <= 20)
    told = [cell.findtext(f"{SVG}title") for cell in cells]
    if size <= 20:
        assert told[0] == "trained up to 1, tested on experience 1: 100.0\u00a0%"
        assert told[1] == "trained up to 1, tested on all seen: 100.0\u00a0%"
        assert cells[0].get("fill") == "#fee838"
    else:
        assert set(told) == {None}


def test_of_a_thousand_experiences_fifty_are_drawn(record_of):
    size = 1000
    rows = [[t / size if i <= t else None for i in range(size)] for t in range(size)]
    cells, texts = drawn(record_of(3, 2, accuracy_matrix=rows))
    assert len(cells) == 50 * 51 // 2 + 1
    assert cells[-1].get("fill") == colour(0.999)
    assert "918" in texts  # of the ticks, every fifth
    assert len(record_picture(record_of(3, 2, accuracy_matrix=rows))) < 300_000


def test_a_name_makes_no_tag_in_the_picture(record_of):
    config = {"output": "a", "backbone": "b", "benchmark": "<script>&", "strategy": "s\x1b"}
    text = record_picture(record_of(1, 1, config=config))
    assert ElementTree.fromstring(text) is not None
    assert "<script>" not in text
    assert "s\\x1b on &lt;script&gt;&amp;, seed 7" in text


def test_in_a_page_it_names_no_address_and_has_no_title():
    text = matrix_picture([[0.5, None], [0.25, 1.0]], [0.5, 0.6])
    assert "http" not in text
    assert re.findall(r">(\d+\.\d)<", text) == ["50.0", "50.0", "25.0", "100.0", "60.0"]


def test_domains_stand_beside_the_cells_and_inside_the_picture(record_of):
    names = ["art_painting", "a <name> that is much too long", "photo"]
    text = matrix_picture([[0.5] * 3] * 3, [0.5] * 3, domains=names)
    assert text.count(">art_painting<") == 2
    assert text.count("a &lt;name&gt; that i…<") == 2
    assert "trained up to 3 (photo), tested on experience 1 (art_painting): 50.0" in text
    left = float(re.search(r'viewBox="-(\d+)', text)[1])
    assert left > 16 * 5.5
    by_number = matrix_picture([[0.5] * 3] * 3, [0.5] * 3, domains=names[:2])  # not of these
    assert by_number == matrix_picture([[0.5] * 3] * 3, [0.5] * 3)
