"""Discovery of distributions that are really installed: module and dist-info on the path."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import (
    AmbiguousComponentError,
    ConfigError,
    PEFTCLError,
    UnknownComponentError,
)
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry import packages as discovery
from avalanche_peftcl.registry.packages import Provider

HOST = "avalanche-peftcl"
OURS = f"{HOST} {version(HOST)}"


def test_only_the_built_in(install, discover_with_warnings):
    registry, said = discover_with_warnings()
    assert said == []
    assert [str(r.provider) for r in registry.plugins] == [OURS]
    assert registry.kinds == (
        "backbone",
        "module",
        "head",
        "benchmark",
        "strategy",
        "strategy_plugin",
        "metric",
        "logger",
    )
    assert {e.kind for e in registry.entries()} == set(registry.kinds)


def test_good_package(install, discover_with_warnings):
    install("good-pkg")
    registry, said = discover_with_warnings()
    assert said == []
    entry = registry.get("strategy", "good")
    assert entry.provider == Provider("good-pkg", "1.0")
    assert registry.get("strategy", "good-pkg/good") is entry
    assert registry.get("strategy", "Good_Pkg/good") is entry
    assert registry.build("strategy", "good", {"size": 5}) == ("good-pkg", 5)


def test_same_entry_point_name_in_two_distributions(install):
    install("pkg-a", component="one")
    install("pkg-b", component="two")
    registry = discover()
    assert registry.build("strategy", "one") == ("pkg-a", 3)
    assert registry.build("strategy", "two") == ("pkg-b", 3)


def test_clash_nobody_wins(install, discover_with_warnings):
    install("pkg-b", release="2.0")
    install("pkg-a")
    registry, said = discover_with_warnings()
    assert said == []
    with pytest.raises(AmbiguousComponentError) as raised:
        registry.get("strategy", "good")
    assert str(raised.value) == (
        "strategy 'good' is offered by 2 packages (pkg-a 1.0, pkg-b 2.0); "
        "write 'pkg-a/good' or 'pkg-b/good'"
    )
    assert isinstance(raised.value, PEFTCLError)
    assert isinstance(raised.value, LookupError)
    assert registry.build("strategy", "pkg-a/good") == ("pkg-a", 3)
    assert registry.build("strategy", "pkg-b/good") == ("pkg-b", 3)
    assert {"pkg-a/good", "pkg-b/good"} <= set(registry.names("strategy"))


def test_a_built_in_keeps_its_bare_name(install, discover_with_warnings):
    install("a-pkg", component="ntk_cl")
    registry, said = discover_with_warnings()
    assert said == []
    assert registry.get("strategy", "ntk_cl").provider.name == HOST
    assert registry.get("strategy", "avalanche-peftcl/ntk_cl").provider.name == HOST
    assert registry.get("strategy", "a-pkg/ntk_cl").provider.name == "a-pkg"
    assert registry.names("strategy") == [
        "closed_form", "contrastive", "joint", "naive", "nearest_class_mean", "a-pkg/ntk_cl",
        "ntk_cl", "pegp",
    ]  # fmt: skip
    assert [registry.remark(record) for record in registry.plugins] == [
        "strategy 'ntk_cl' is a built-in's name: write 'a-pkg/ntk_cl'",
        "",
    ]


def test_two_strangers_beside_a_built_in(install):
    install("pkg-a", component="pegp")
    install("pkg-b", component="pegp")
    registry = discover()
    assert registry.get("strategy", "pegp").provider.name == HOST
    assert {"pkg-a/pegp", "pkg-b/pegp", "pegp"} <= set(registry.names("strategy"))


def test_the_command_line_says_who_must_be_written_in_full(install):
    install("pkg-a", component="ntk_cl")
    install("pkg-b")
    install("pkg-c")
    listed = CliRunner().invoke(app, ["list", "strategy"]).stdout
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in listed.splitlines()[3:-1]]
    assert ["strategy", "ntk_cl", HOST] in cells
    assert ["strategy", "pkg-a/ntk_cl", "pkg-a"] in cells
    assert ["strategy", "pkg-b/good", "pkg-b"] in cells
    said = CliRunner().invoke(app, ["plugins"]).stdout
    assert "strategy 'ntk_cl' is a built-in's name: write 'pkg-a/ntk_cl'" in said
    assert "strategy 'good' is offered by pkg-c too: write 'pkg-b/good'" in said


def test_same_name_in_two_kinds_is_no_clash(install):
    install("pkg-a", component="ewc")
    registry = discover()
    assert registry.get("strategy", "ewc").provider.name == "pkg-a"
    assert registry.get("strategy_plugin", "ewc").provider.name == HOST


def test_unknown_name_says_what_is_known_and_what_was_left_out(install, discover_with_warnings):
    install("broken", "import nowhere_to_be_found")
    registry, _ = discover_with_warnings()
    with pytest.raises(UnknownComponentError) as raised:
        registry.get("strategy", "ntk_kl")
    assert str(raised.value) == (
        "unknown strategy 'ntk_kl' (did you mean 'ntk_cl'?); known: closed_form, "
        "contrastive, joint, naive, nearest_class_mean, ntk_cl, pegp; left out: broken 1.0 "
        "(ModuleNotFoundError: No module named 'nowhere_to_be_found')"
    )
    assert isinstance(raised.value, LookupError)


def test_a_network_of_timm_is_no_backbone_by_its_name(install):
    with pytest.raises(UnknownComponentError, match=r"{name: timm_vit, model_name: vit_base"):
        discover().get("backbone", "vit_base_patch16_224")


def test_unknown_name_without_a_near_one(install):
    with pytest.raises(UnknownComponentError) as raised:
        discover().get("strategy", "zzz")
    assert str(raised.value) == (
        "unknown strategy 'zzz'; known: closed_form, contrastive, joint, naive, "
        "nearest_class_mean, ntk_cl, pegp"
    )


def test_wrong_package_in_front_of_a_name(install):
    with pytest.raises(UnknownComponentError, match=r"'other/ntk_cl' \(did you mean 'ntk_cl'\?\)"):
        discover().get("strategy", "other/ntk_cl")


def test_unknown_kind(install):
    with pytest.raises(ConfigError) as raised:
        discover().entries("strategie")
    assert str(raised.value) == (
        "unknown kind 'strategie' (did you mean 'strategy'?); the kinds are backbone, module, "
        "head, benchmark, strategy, strategy_plugin, metric, logger"
    )


def test_switch_unset_loads_all_empty_none_and_a_list_those(
    install, discover_with_warnings, monkeypatch
):
    install("pkg-a", component="one")
    install("pkg-b", component="two")

    def loaded():
        registry, said = discover_with_warnings()
        assert said == []
        return [r.provider.name for r in registry.plugins if r.loaded]

    assert loaded() == [HOST, "pkg-a", "pkg-b"]
    monkeypatch.setenv(discovery.SWITCH, "")
    assert loaded() == [HOST]
    monkeypatch.setenv(discovery.SWITCH, " Pkg_B , ")
    assert loaded() == [HOST, "pkg-b"]
    registry = discover()
    with pytest.raises(UnknownComponentError) as raised:
        registry.get("strategy", "one")
    assert str(raised.value).endswith("left out: pkg-a 1.0 (not named in AVALANCHE_PEFTCL_PLUGINS)")


def test_switch_names_what_is_not_installed(install, discover_with_warnings, monkeypatch):
    install("pkg-a")
    monkeypatch.setenv(discovery.SWITCH, "pkg-a,pkg-x")
    registry, said = discover_with_warnings()
    assert said == [
        "AVALANCHE_PEFTCL_PLUGINS names 'pkg-x', but no installed distribution of that name has "
        "an entry point in group 'avalanche_peftcl'; those that have: avalanche-peftcl, pkg-a"
    ]
    assert "good" in registry.names("strategy")


def test_a_switched_off_package_is_not_imported(install, discover_with_warnings, monkeypatch):
    install("broken", "raise RuntimeError('imported')")
    monkeypatch.setenv(discovery.SWITCH, "")
    _, said = discover_with_warnings()
    assert said == []
