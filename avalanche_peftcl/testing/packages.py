"""Checks of a plugin package by whole runs: found, run, stopped and gone on with, exported."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.export.load import load
from avalanche_peftcl.export.write import export_run
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.component import Component
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.registry.registry import Registry
from avalanche_peftcl.runs import RunResult
from avalanche_peftcl.runs.run import run


def install_for_tests(project: Path, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let a package be found as if it were installed, in front of any other of its name.

    Args:
        project: Its folder, with ``pyproject.toml``.
        folder: Empty; what an installation writes goes there.
        patch: Undoes it.

    Returns:
        The table ``project`` of ``pyproject.toml``.
    """
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    told: dict[str, Any] = tomllib.loads(text)["project"]
    info = folder / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
    info.mkdir()
    metadata = ["Metadata-Version: 2.1", f"Name: {told['name']}", f"Version: {told['version']}"]
    metadata += [f"Requires-Dist: {needed}" for needed in told["dependencies"]]
    (info / "METADATA").write_text("\n".join(metadata) + "\n", encoding="utf-8")
    ((group, points),) = told["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    patch.syspath_prepend(str(folder))
    patch.syspath_prepend(str(project))
    return told


def toy_run(output: Path, *, scenario: str = "class", **settings: Any) -> RunConfig:
    """Return a run of seconds: a small random ViT on a few digits, in two experiences.

    Args:
        output: Its folder.
        scenario: ``"class"``, ``"task"``, ``"domain"`` or ``"online"``.
        settings: Everything else: ``strategy={"name": ...}``, ``module=...``.
    """
    backbone = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 32}
    backbone |= {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}
    benchmark = {"name": "digits", "scenario": scenario, "n_experiences": 2}
    benchmark |= {"train_per_class": 3 if scenario == "online" else 6}
    given = {"output": output, "backbone": backbone, "benchmark": benchmark, "num_threads": 1}
    config = RunConfig.model_validate(given | settings)
    options = config.strategy.model_dump() | {"mixed_precision": "no"}
    return RunConfig.model_validate(given | settings | {"strategy": options})


def check_run(config: RunConfig) -> RunResult:
    """Run to the end, and see that it could have gone on at any time and has left its network."""
    done = run(config)
    assert done.record.complete
    assert done.record.resume_obstacles == []
    assert done.record.not_exported is None
    return done


class _StopError(Exception):
    """What stops a run here."""


def check_goes_on(config: RunConfig, *, at: int = 1) -> None:
    """Stop a run, go on with it, and see that it ends as one that was not, to the bit.

    Args:
        config: The run; in its folder are two, ``whole`` and ``halves``.
        at: Experience that is not begun, from 0; online a chunk.
    """
    armed = [False]

    class Stop(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
        remembers = ()

        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            if armed[0] and strategy.experience.current_experience == at:
                raise _StopError

    offered = Component("stop", Stop, source="a test")
    entry = Entry("strategy_plugin", offered, Provider("a-test", "1"))
    registry = Registry([*discover().entries(), entry])
    plugins = [*(each.model_dump() for each in config.plugins), {"name": "stop"}]
    asked = config.model_dump() | {"plugins": plugins, "checkpoint_every": 1}
    whole, halves = (
        RunConfig.model_validate(asked | {"output": config.output / name})
        for name in ("whole", "halves")
    )
    one = run(whole, registry=registry)
    armed[0] = True
    with pytest.raises(_StopError):
        run(halves, registry=registry)
    armed[0] = False
    other = run(halves, registry=registry, resume=True)
    assert len(other.record.resumed_at) == 1
    assert list(one.record.accuracy_matrix) == list(other.record.accuracy_matrix)
    kept = [load(each.output).state_dict() for each in (whole, halves)]
    assert kept[0].keys() == kept[1].keys()
    assert [name for name in kept[0] if not torch.equal(kept[0][name], kept[1][name])] == []


def check_export(config: RunConfig, file: Path) -> None:
    """Run, export, and see that the file predicts as the record says.

    Args:
        config: The run, of benchmark ``digits``.
        file: Where to.
    """
    record = run(config).record
    export_run(config.output, file)
    network = load(file)
    benchmark = digits(input_config=network.input_config, **config.benchmark.options)
    accuracies = []
    for experience in benchmark.test_stream:
        pairs = [(image, label) for image, label, *_ in experience.dataset.eval()]
        told = network(torch.stack([image for image, _ in pairs])).argmax(dim=1).tolist()
        right = sum(a == b for a, (_, b) in zip(told, pairs, strict=True))
        accuracies.append(right / len(pairs))
    assert accuracies == pytest.approx(list(record.accuracy_matrix)[-1])


def check_configuration(file: Path) -> None:
    """See that a configuration names components and options that there are.

    Raises:
        PEFTCLError: If it does not.
    """
    config, registry = load_config(file), discover()
    for kind in ("backbone", "module", "head", "benchmark", "strategy"):
        if (component := getattr(config, kind)) is not None:
            registry.schema(kind, component.name).check(component.options)
    for plugin in config.plugins:
        registry.schema("strategy_plugin", plugin.name).check(plugin.options)
