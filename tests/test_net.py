"""A net under changes that must change no number: what every strategy ends with, on toys.

``python tests/test_net.py record FILE`` writes it down, ``... check FILE`` compares and names what
differs. Record from the code before a change and check after each of its steps. ``net.json`` is
the last record; bits depend on the processor and on torch, and :func:`fingerprint` says on which.
"""

import hashlib
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from safetensors.torch import load_file

from avalanche_peftcl.config import load_config
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SCENARIOS = ("class", "task", "domain", "online")
QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
RECORD = Path(__file__).with_name("net.json")
_TRAINED: dict[str, Any] = {"train_epochs": 2, "train_mb_size": 4, "mixed_precision": "no"}
_PEGP = _TRAINED | {"head_epochs": 1, "r": 2, "length": 2, "n_samples": 8, "lr": 0.01}
_RELEASED_ADAPTER = {"peft": "adapter", "recipe": "released", "threshold": 0.999}
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "ntk_cl corrected": ("ntk_cl", _TRAINED | {"recipe": "corrected", "r": 4}, {}),
    "ntk_cl released": ("ntk_cl", _TRAINED | {"recipe": "released", "r": 4}, {}),
    "ntk_cl use_pretrained": ("ntk_cl", _TRAINED | {"use_pretrained": True, "n_copies": 2}, {}),
    "pegp adapter": ("pegp", _PEGP | {"peft": "adapter"}, {}),
    "pegp adapter released": ("pegp", _PEGP | _RELEASED_ADAPTER, {}),
    "pegp lora": ("pegp", _PEGP | {"peft": "lora"}, {}),
    "pegp lora released": ("pegp", _PEGP | {"peft": "lora", "recipe": "released"}, {}),
    "pegp prefix": ("pegp", _PEGP | {"peft": "prefix"}, {}),
    "pegp prompt": ("pegp", _PEGP | {"peft": "prompt"}, {}),
    "naive": ("naive", _TRAINED | {"lr": 0.05}, {}),
    "naive replay": ("naive", _TRAINED | {"lr": 0.05}, {"replay": {"mem_size": 12}}),
    "naive ewc": ("naive", _TRAINED | {"lr": 0.05}, {"ewc": {}}),
    "naive lwf": ("naive", _TRAINED | {"lr": 0.05}, {"lwf": {}}),
    "naive projected": ("naive", _TRAINED | {"lr": 0.05}, {"gradient_projection": {}}),
    "nearest_class_mean": ("nearest_class_mean", {"mixed_precision": "no"}, {}),
}


def fingerprint() -> dict[str, str]:
    """Return what the last bits of a float depend on."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def results() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each run, and its matrix and the hash of what it trained."""
    registry = discover(only=["avalanche-peftcl"])
    torch.set_num_threads(1)
    for method in METHODS:
        for scenario in SCENARIOS:
            if scenario == "task" and method in ("naive ewc", "naive lwf"):
                continue  # refused: the host's classes give a model no task labels
            yield f"{method}, {scenario}", _toy_run(registry, method, scenario)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(QUICKSTART, [f"output={folder}/run"])
        record = run(config, registry=registry)
        network = load_file(Path(folder) / "run" / "model.safetensors")
        matrix = record.metrics["accuracy_matrix"]
        yield "quickstart", {"matrix": matrix, "sha256": _sha256(network)}


def _toy_run(registry: Registry, method: str, scenario: str) -> dict[str, Any]:
    name, options, plugins = METHODS[method]
    benchmark = toy_benchmark(scenario)
    torch.manual_seed(7)
    accuracy = AccuracyMatrix()
    given = {
        "backbone": toy_backbone(),
        "device": "cpu",
        "plugins": [registry.build("strategy_plugin", k, v) for k, v in plugins.items()],
        "evaluator": EvaluationPlugin(accuracy),
    }
    strategy = registry.build("strategy", name, options, given)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return {"matrix": accuracy.matrix.tolist(), "sha256": _sha256(strategy.model.state_dict())}


def _sha256(state: dict[str, Any]) -> str:
    """Return the hash of all tensors, whatever their names and order are."""
    tensors = [value.detach().contiguous() for value in state.values() if torch.is_tensor(value)]
    each = sorted(
        hashlib.sha256(f"{list(t.shape)} {t.dtype} ".encode() + t.numpy().tobytes()).hexdigest()
        for t in tensors
    )
    return hashlib.sha256("".join(each).encode()).hexdigest()


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for each run that ended otherwise, or is on one side only."""
    lines = []
    for name in sorted(recorded.keys() | found.keys()):
        was, now = recorded.get(name), found.get(name)
        if was is None or now is None:
            lines.append(f"{name}: {'new' if was is None else 'gone'}")
        elif json.dumps(was) != json.dumps(now):
            what = [key for key in was if json.dumps(was[key]) != json.dumps(now.get(key))]
            lines.append(f"{name}: other {' and '.join(what)}")
    return lines


@pytest.mark.slow
def test_no_number_changed():
    document = json.loads(RECORD.read_text())
    if document["fingerprint"] != (here := fingerprint()):
        pytest.skip(f"recorded with {document['fingerprint']}, this is {here}")
    threads = torch.get_num_threads()
    try:
        assert differences(document["runs"], dict(results())) == []
    finally:
        torch.set_num_threads(threads)


def test_what_differs_is_named():
    was = {"a": {"matrix": [[0.5]], "sha256": "1"}, "b": {"matrix": [], "sha256": "2"}}
    now = {"a": {"matrix": [[0.6]], "sha256": "1"}, "c": {"matrix": [], "sha256": "2"}}
    assert differences(was, was) == []
    assert differences(was, now) == ["a: other matrix", "b: gone", "c: new"]


def main(action: str, path: str) -> int:
    """Record or check; return the exit code."""
    warnings.simplefilter("ignore")
    found = dict(results())
    if action == "record":
        document = {"fingerprint": fingerprint(), "runs": found}
        Path(path).write_text(json.dumps(document, indent=1) + "\n")
        return 0
    document = json.loads(Path(path).read_text())
    if document["fingerprint"] != fingerprint():
        print(f"recorded with {document['fingerprint']}, this is {fingerprint()}")  # noqa: T201  # a script
    lines = differences(document["runs"], found)
    print("\n".join(lines) or f"{len(found)} runs, nothing differs")  # noqa: T201  # a script
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
