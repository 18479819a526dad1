"""From a configuration to the manifest of its benchmark's images."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from avalanche_peftcl.benchmarks.images.manifest import split_sha256, write_manifest
from avalanche_peftcl.benchmarks.stream.likeness import DIFFICULTIES
from avalanche_peftcl.config import load_config
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.console import plain
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.offers import BenchmarkOffers


def manifest_from_file(
    path: str | Path, file: Path, overrides: Sequence[str], overwrite: bool, console: Console
) -> None:
    """Write the manifest of the images that a configuration's benchmark is made of.

    The benchmark is built, its data downloaded if need be; no backbone is. A ``manifest`` that the
    configuration gives to it is not checked.

    Args:
        path: YAML file of a run.
        file: The manifest.
        overrides: Settings that replace the file's, such as ``"benchmark.root=data"``.
        overwrite: Whether an earlier manifest is replaced.
        console: Where progress and result are shown.

    Raises:
        ConfigError: The configuration cannot be used, the manifest is there already or cannot be
            written, or the benchmark does not tell its images.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.
        DataError: Images that are missing or cannot be used.
    """
    plan = make_plan(load_config(path, overrides), discover())
    _check_target(file, overwrite)
    (benchmark,) = plan.of("benchmark")
    if benchmark.option("manifest") is not None:
        plan = plan.with_option("benchmark", "manifest", None)
    if benchmark.option("class_order") in DIFFICULTIES:  # no network is built, nor an order needed
        plan = plan.with_option("benchmark", "class_order", None)
    # how images are shown, not which they are
    built = plan.build("benchmark", input_config=InputConfig(img_size=224))
    contents = BenchmarkOffers.of(built).contents
    if contents is None:
        raise ConfigError(
            f"benchmark {benchmark.asked.name!r} does not tell its images; those that are built "
            "with avalanche_peftcl.benchmarks.make_benchmark do"
        )
    entries = list(
        track(
            contents.entries(hashed=True),
            "hashing",
            total=len(contents),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )
    total = write_manifest(file, entries)
    for name, value in (
        ("manifest", str(file)),
        ("images", f"{len(contents.train)} for training, {len(contents.test)} for the test"),
        ("classes", str(len(contents.class_names))),
        ("sha256", total),
        ("split sha256", split_sha256(entries)),
    ):
        console.print(plain(f"{name:13} {value}"), soft_wrap=True)


def _check_target(file: Path, overwrite: bool) -> None:
    """Refuse before the images are hashed what could not be written after."""
    if file.is_dir():
        raise ConfigError(f"cannot write the manifest to {file}: it is a folder; name a file")
    if file.exists() and not overwrite:
        raise ConfigError(
            f"there is a manifest {file} already; choose another file or replace it (--overwrite)"
        )
    there = next(folder for folder in file.absolute().parents if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"cannot write the manifest to {file}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"cannot write the manifest to {file}: no right to write to {there}")
