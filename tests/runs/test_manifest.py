"""The command ``peftcl manifest``, and what a run does with its file."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from avalanche_peftcl import Component, cli
from avalanche_peftcl.benchmarks import manifest_sha256, read_manifest, split_sha256
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import SWITCH, Entry, Provider
from avalanche_peftcl.runs import manifest as listing

CONFIG = """
output: {output}
num_threads: 1
backbone: {{name: vit_glyph}}
benchmark: {{name: digits, n_experiences: 2, train_per_class: 2}}
strategy: {{name: nearest_class_mean}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(output=tmp_path / "run"))
    return path


@pytest.fixture
def peftcl(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SWITCH, "")
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_manifest_of_a_configuration(peftcl, config, tmp_path):
    file = tmp_path / "digits.manifest"
    result = peftcl("manifest", config, file, "seed=3")
    assert result.exit_code == 0, result.stderr
    entries = read_manifest(file)
    assert result.stdout == (
        f"manifest      {file}\n"
        "images        1437 for training, 360 for the test\n"
        "classes       10\n"
        f"sha256        {manifest_sha256(entries)}\n"
        f"split sha256  {split_sha256(entries)}\n"
    )


def test_it_needs_no_order_of_the_classes(peftcl, config, tmp_path):
    """One that follows from a network has none here."""
    files = [tmp_path / "drawn.manifest", tmp_path / "hardest.manifest"]
    for file, order in zip(files, ("null", "hardest"), strict=True):
        result = peftcl("manifest", config, file, f"benchmark.class_order={order}")
        assert result.exit_code == 0, result.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_checks_and_records_it(peftcl, config, tmp_path):
    file = tmp_path / "digits.manifest"
    assert peftcl("manifest", config, file, f"benchmark.manifest={file}").exit_code == 0
    result = peftcl("run", config, f"benchmark.manifest={file}")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    protocol, entries = metrics["protocol"], read_manifest(file)
    assert protocol["manifest_sha256"] == manifest_sha256(entries)
    assert protocol["split_sha256"] == split_sha256(entries)
    assert (protocol["tested_on"], protocol["test_images"]) == ("test images", 360)
    assert protocol["batch_independence"] == "tested"
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert f"- manifest: sha256 {protocol['manifest_sha256']}, every image compared\n" in summary
    assert "- tested on: 360 test images\n" in summary
    assert "- prediction of an image: independent of its minibatch (tested in " in summary


def test_a_run_with_other_images_is_refused(peftcl, config, tmp_path):
    file = tmp_path / "digits.manifest"
    digits = ["benchmark.scenario=domain", "benchmark.n_experiences=1"]
    assert peftcl("manifest", config, file, *digits).exit_code == 0
    result = peftcl("run", config, f"benchmark.manifest={file}")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"error: the images are not those of the manifest {file}:\n  1797 changed: test 0 (domain),"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_manifest_says_how_to_write_one(peftcl, config, tmp_path):
    file = tmp_path / "digits.manifest"
    result = peftcl("run", config, f"benchmark.manifest={file}")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: there is no manifest {file}; write one with: peftcl manifest CONFIG {file}\n",
    )


def test_a_manifest_is_not_replaced_unasked(peftcl, config, tmp_path):
    file = tmp_path / "digits.manifest"
    file.write_text("mine")
    result = peftcl("manifest", config, file)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: there is a manifest {file} already; choose another file or replace it "
        "(--overwrite)\n",
    )
    assert file.read_text() == "mine"
    assert peftcl("manifest", config, file, "--overwrite").exit_code == 0
    assert len(read_manifest(file)) == 1797


def test_a_file_that_cannot_be_written_is_refused_before_hashing(
    peftcl, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(listing, "track", None)  # hashing would fail
    for file, reason in (
        (tmp_path, "it is a folder; name a file"),
        (config / "a" / "m", f"{config} is a file"),
    ):
        result = peftcl("manifest", config, file, "--overwrite")
        assert (result.exit_code, result.stderr) == (
            2,
            f"error: cannot write the manifest to {file}: {reason}\n",
        )
    monkeypatch.setattr(listing.os, "access", lambda path, mode: path != tmp_path)
    result = peftcl("manifest", config, tmp_path / "m")
    assert result.stderr == (
        f"error: cannot write the manifest to {tmp_path / 'm'}: no right to write to {tmp_path}\n"
    )


def test_a_wrong_configuration_is_one_message(peftcl, config, tmp_path):
    result = peftcl("manifest", config, tmp_path / "m", "benchmark.scenari=class")
    assert result.exit_code == 2
    assert "unknown option 'scenari' (did you mean 'scenario'?)" in result.stderr
    assert list(tmp_path.iterdir()) == [config]


def test_a_benchmark_that_does_not_tell_its_images(config, tmp_path, monkeypatch):
    silent = Component(
        "silent", lambda: SimpleNamespace(train_stream=[], test_stream=[]), source="test"
    )
    registry = Registry([*discover().entries(), Entry("benchmark", silent, Provider("a", "1"))])
    monkeypatch.setattr(listing, "discover", lambda: registry)
    with pytest.raises(ConfigError) as caught:
        listing.manifest_from_file(
            config, tmp_path / "m", ["benchmark={name: silent}"], False, Console(file=io.StringIO())
        )
    assert str(caught.value) == (
        "benchmark 'silent' does not tell its images; those that are built with "
        "avalanche_peftcl.benchmarks.make_benchmark do"
    )


def test_a_terminal_sees_progress(config, tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    listing.manifest_from_file(config, tmp_path / "m", [], False, console)
    assert "hashing" in console.file.getvalue()
