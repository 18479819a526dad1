"""What a record says of where its run was made."""

from importlib.metadata import version

from avalanche_peftcl import Component
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.facts import describe_versions
from avalanche_peftcl.runs.identity import versions_of


def entry(kind, *libraries):
    component = Component("thing", "functools:reduce", source="test", libraries=libraries)
    return Entry(kind, component, Provider("test-package", "1.2"))


def test_what_a_component_computes_with_is_told_where_it_is_installed():
    entries = [entry("backbone", "scipy", "no-such-package"), entry("head", "scipy")]
    told, plain = describe_versions(entries), describe_versions([])
    assert told == plain | {"scipy": version("scipy")}
    assert "scipy" not in plain
    assert versions_of(entries)["scipy"] == version("scipy")
    assert "scipy" not in versions_of([entry("logger", "scipy")])
