"""Plain values in YAML: one reading for each, or a refusal that prints both."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from avalanche_peftcl.config import load_config
from avalanche_peftcl.config.yaml_text import parse_yaml, write_yaml
from avalanche_peftcl.errors import ConfigError

CONFIG = """
output: runs/a
backbone: vit_glyph
benchmark: digits
strategy: {name: naive, lr: 1e-3}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0", 0),
        ("-3", -3),
        ("+3", 3),
        ("07", 7),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1E+3", 1000.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("01.5", 1.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("y", "y"),
        ("1.2.3", "1.2.3"),
        ("cuda:1", "cuda:1"),
        ("~/x", "~/x"),
        ("a: |\n  010\n", {"a": "010\n"}),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)
def test_what_has_one_reading(text, value):
    read = parse_yaml(text, "it")
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("010", "010 can be read as 8 or as 10; write 8 or 10 or '010' if text is meant"),
        ("-010", "-010 can be read as -8 or as -10; write -8 or -10 or '-010' if text is meant"),
        ("08", "08 can be read as text or as 8; write 8 or '08' if text is meant"),
        ("1:30", "1:30 can be read as 90 or as text; write 90 or '1:30' if text is meant"),
        ("1:30.5", "1:30.5 can be read as 90.5 or as text; write 90.5 or '1:30.5' if text"),
        ("1_000", "1_000 can be read as 1000 or as text; write 1000 or '1_000' if text is meant"),
        ("1_0.5", "1_0.5 can be read as 10.5 or as text"),
        ("0b11", "0b11 can be read as 3 or as text"),
        ("0o17", "0o17 can be read as text or as 15"),
        ("-0x1f", "-0x1f can be read as -31 or as text"),
        ("yes", "yes can be read as true or as text; write true or 'yes' if text is meant"),
        ("No", "No can be read as false or as text; write false or 'No' if text is meant"),
        ("on", "on can be read as true or as text"),
        ("OFF", "OFF can be read as false or as text"),
        ("2024-01-02", "2024-01-02 can be read as a date or as text; write '2024-01-02' if text"),
        ("2024-01-02 03:04:05", "2024-01-02 03:04:05 can be read as a date or as text"),
        ("=", "= can be read as nothing at all or as text"),
        ("9" * 5000, "is a whole number of more than 64 bits"),
        ("!!timestamp x", "the tag 'tag:yaml.org,2002:timestamp' is not allowed"),
        ("!!int '3'", "the tag 'tag:yaml.org,2002:int' is not allowed; leave it out"),
        ("!!str 3", "the tag 'tag:yaml.org,2002:str' is not allowed; leave it out, quote text"),
        ("!!binary aaaa", "binary' is not allowed"),
        ("!!set {a, b}", "set' is not allowed"),
        ("!!omap [a: 1]", "omap' is not allowed"),
        ("!!python/tuple [1]", "python/tuple' is not allowed"),
        ("!mine 1", "the tag '!mine' is not allowed"),
        ("&a [*a]", "the alias 'a' stands within what it names"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("*a", "is not valid YAML: found undefined alias"),
        ("<<", "is not valid YAML"),
    ],
)
def test_what_has_two_readings_or_none_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "it")
    assert said in str(caught.value)
    file = tmp_path / "run.yaml"
    file.write_text(f"{CONFIG}seed: {text}\n")
    with pytest.raises(ConfigError, match="line 6"):
        load_config(file)
    file.write_text(CONFIG)
    with pytest.raises(ConfigError, match=r"^the value of the override .seed="):
        load_config(file, [f"seed={text}"])


def test_a_key_that_has_two_readings(tmp_path):
    with pytest.raises(ConfigError, match=r"on can be read as true or as text.*\(line 2\)"):
        parse_yaml("a: 1\non: 2\n", "it")


@pytest.mark.parametrize("item", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_do_not_multiply(item):
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} {item.format(', '.join([f'*a{i - 1}'] * 10))}")
    with pytest.raises(ConfigError, match=r"hold more than 100000 values \(line"):
        parse_yaml("\n".join(lines), "it")


def test_the_examples_have_one_reading():
    for file in (Path(__file__).parents[2] / "examples").rglob("*.yaml"):
        assert parse_yaml(file.read_text(), str(file)) == yaml.load(
            file.read_text().replace("1e-", "1.0e-"), Loader=yaml.SafeLoader
        )


_odd = st.text(alphabet="0123456789+-_.:eExXobinfayNOTrue~ =<!*&", max_size=8)


@given(text=_odd)
@example(text="0o8")
@example(text="1__0")
@example(text="0_")
@example(text="1e400")
@example(text="190:20:30")
def test_text_is_read_as_by_both_or_refused(text):
    try:
        value = parse_yaml(f"[{text}]", "it")
    except ConfigError:
        return
    try:
        before = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError):
        before = None
    numbers = [v for v in value if isinstance(v, float)]
    assert repr(value) == repr(before) or len(numbers) == len(value)  # 1e-3


@given(text=_odd | st.text(max_size=8).filter(str.isprintable))
def test_text_is_written_so_that_either_reads_it_back(text):
    written = write_yaml({"a": text})
    assert parse_yaml(written, "it") == {"a": text}
    assert yaml.safe_load(written) == {"a": text}
