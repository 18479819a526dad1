"""Every block of code of every guide does what it says, or says why it cannot be run here."""

import functools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml
from guides import GUIDES, ROOT, Block, blocks, plan, write_package
from PIL import Image

import avalanche_peftcl
from avalanche_peftcl import benchmarks
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.errors import CheckpointWarning
from avalanche_peftcl.export.write import export_run
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.kinds import KINDS

BLOCKS = blocks()
WITH_MODULES = list(dict.fromkeys(block.guide for block in BLOCKS if block.module))
WITH_CONTRACTS = [
    guide for guide in WITH_MODULES if any("Contract" in block.text for block in blocks(guide))
]
LANGUAGES = {"bash", "python", "toml", "yaml", "text"}
TOY = ("benchmark.n_experiences=2", "benchmark.train_per_class=4")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(chosen: list[Block], *, slow: str = ""):
    """Parametrize over blocks, with the modules of their guide installed as a package.

    Blocks with the word ``slow`` in them take longer than five seconds.
    """
    rows = []
    for block in chosen:
        marks = [pytest.mark.slow] if slow and slow in block.text else []
        rows.append(pytest.param(block, block.guide, id=str(block), marks=marks))
    return pytest.mark.parametrize(("block", "installed"), rows, indirect=["installed"])


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture
def installed(request, tmp_path, monkeypatch, plugin_packages):
    """The modules with hooks of a guide, in a package that is installed beside the others."""
    folder, before = tmp_path / "installed", set(sys.modules)
    folder.mkdir()
    offering = write_package(request.param, folder)
    monkeypatch.syspath_prepend(str(folder))
    yield offering
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_block_has_a_language_that_is_tested():
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.not_run is not None], ids=str)
def test_blocks_that_are_not_run_say_why(block):
    assert len(str(block.not_run).split()) > 2
    pytest.skip(f"{block}: {block.not_run}")  # so that the report of the tests lists them


# --- Python ---------------------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch) -> None:
    """Let code that names no number of training images have 16 a class instead of all 144."""
    fewer = functools.partial(benchmarks.digits, train_per_class=16)
    monkeypatch.setattr(benchmarks, "digits", fewer)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with the files that blocks read: a trained network and an image."""
    folder = tmp_path_factory.mktemp("files")
    method = "strategy=nearest_class_mean"
    quickstart = ROOT / "examples" / "quickstart.yaml"
    run = folder / "run"
    avalanche_peftcl.run(load_config(quickstart, [f"output={run}", method, *TOY]))
    export_run(run, folder / "digits.safetensors")
    shutil.rmtree(run)
    Image.new("L", (8, 8)).save(folder / "five.png")
    return folder


@each([block for block in of("python") if block.module is None])
@pytest.mark.usefixtures("installed", "few_digits")
def test_python_runs(block, capsys, tmp_path, monkeypatch, request):
    if "digits.safetensors" in block.text:
        shutil.copytree(request.getfixturevalue("files"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # a block that writes a file writes it there
    scope = {}
    exec(compile(block.text, str(block), "exec"), scope)
    assert len(scope) > 2


@pytest.mark.usefixtures("few_digits")
def test_python_example_runs(capsys):
    example = runpy.run_path(str(ROOT / "examples" / "plain_python.py"))
    matrix = example["main"](train_epochs=1)
    assert matrix.summary()["last_accuracy"] > 0.3


# --- modules that a guide is to be copied from ----------------------------------------------


@pytest.mark.parametrize(
    ("guide", "installed"),
    [(guide, guide) for guide in WITH_MODULES],
    ids=map(short, WITH_MODULES),
    indirect=["installed"],
)
def test_modules_of_guides_are_packages(guide, installed):
    registry = discover()
    told = {r.entry_point: r.loaded for r in registry.plugins if r.provider.name == "guide"}
    assert told == dict.fromkeys(installed, True)
    entries = [entry for kind in registry.kinds for entry in registry.entries(kind)]
    assert sum(entry.provider.name == "guide" for entry in entries) >= len(installed)
    for block in blocks(guide):
        if block.language == "toml":
            points = tomllib.loads(block.text)["project"]["entry-points"]["avalanche_peftcl"]
            assert points.keys() == set(points.values()) <= set(installed)


@pytest.mark.slow
@pytest.mark.parametrize("guide", WITH_CONTRACTS, ids=short)
def test_contracts_of_guides_hold(guide, tmp_path):
    write_package(guide, tmp_path)
    tests = [str(path) for path in sorted(tmp_path.glob("test_*.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# --- YAML -----------------------------------------------------------------------------------


def whole(block: Block, *overrides: str, toy: bool = False) -> RunConfig:
    """Return the run that a block describes; the quickstart has what the block leaves out."""
    text = (ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text) | yaml.safe_load(block.text)
    if toy:
        settings.pop("seeds", None)
        if settings["benchmark"]["name"] == "digits":
            settings["benchmark"] |= {"n_experiences": 2, "train_per_class": 4}
        if "train_epochs" in settings["strategy"]:
            settings["strategy"]["train_epochs"] = 1
    elif "seeds" in settings:
        del settings["seed"]
    return load_config(block.guide, overrides, settings=settings)


@each(of("yaml"))
@pytest.mark.usefixtures("installed")
def test_yaml_is_a_run_or_a_part_of_one(block):
    said, planned = yaml.safe_load(block.text), plan(whole(block)).settings
    assert said.keys() <= planned.keys() | {"seeds"}
    for key in said.keys() & {kind.key for kind in KINDS.values()}:
        parts = said[key] if isinstance(said[key], list) else [said[key]]
        names = [part if isinstance(part, str) else part["name"] for part in parts]
        kept = planned[key] if isinstance(planned[key], list) else [planned[key]]
        assert [part["name"] for part in kept] == names


@each([block for block in of("yaml") if block.not_run is None], slow="wandb")
@pytest.mark.usefixtures("installed")
def test_yaml_runs(block, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)  # such a run could not be resumed
        avalanche_peftcl.run(whole(block, f"output={tmp_path / 'run'}", toy=True))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert record["complete"]


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("plugins/**/*.yaml")]),
    ids=lambda path: path.name,
)
@pytest.mark.usefixtures("plugin_packages")
def test_configurations_of_the_examples_are_valid(path):
    config = load_config(path)
    plan(config)
    assert config.output.parts[0] == "runs"


# --- links ----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors that headings of Markdown get.

    Example:
        >>> sorted(anchors("# On a GPU\\n## `peft`, and more"))
        ['on-a-gpu', 'peft-and-more']
    """
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide):
    text = guide.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        path = guide.parent / name if name else guide
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target
    for name in re.findall(r"(?:examples|plugins|tests)/[\w./-]+\.(?:yaml|py|md)", text):
        assert (ROOT / name).exists() or (guide.parent / name).exists(), name
