"""Search each method's learning rate, run all methods under one budget and print their table.

    python examples/real_images/measure_methods.py --seeds 0 1 2 --set num_threads=1

Needs the packages of ``plugins/``. Runs whose record is complete, and trials, are not repeated.
Learning rates that were found stand in ``searched.json``; a method that has none there is searched.
``--table`` prints the table from the records that are there and runs nothing.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from measure import HERE, folder, measure, read
from measure_heads import beside_floors, cell
from rich.console import Console

from avalanche_peftcl import tune
from avalanche_peftcl.config import load_config
from avalanche_peftcl.runs import Record, run_from_file

PASSES = 4  # through the backbone for each training image of an experience, in its training
TRIALS = 5
SEARCHED_ON = HERE / "photographs.yaml"
FOUND = json.loads((HERE / "searched.json").read_text())
HELD_OUT = 10  # training images of a class there that trials are scored on
SMALL = {
    "cifar10": {"train_per_class": 25, "test_per_class": 40},
    "tiny_imagenet": {"n_experiences": 5, "train_per_class": 5, "test_per_class": 8},
    "pacs": {"train_per_class": 10},
}
ADAMW = {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.0}
FULL = {**ADAMW, "lr": 0.0001}
BLOCKS = {"features": [6, 7, 8, 9, 10, 11], "frozen_section": "blocks"}
PROJECTED = {**ADAMW, "head_epochs": 0, "merge_epochs": 0, "threshold": 0.9, "n_samples": 256}
PGP = {"name": "gradient_projection", "threshold": 0.5, "where": "gradient", "n_samples": 256}
DRIFT = {"name": "drift_compensation", "ridge": 1.0}


class Method(NamedTuple):
    """A method: its strategy, what else it is made of, and where it can run.

    Args:
        strategy: Name and options, without epochs.
        passes: Through the backbone for an image in a training step; 0 of what does not train.
        parts: Module, head and plugins.
        scenarios: Of the streams, those that it claims.
    """

    strategy: dict[str, Any]
    passes: int = 1
    parts: Mapping[str, Any] = MappingProxyType({})
    scenarios: tuple[str, ...] = ("class", "domain")


def _named(name: str, passes: int = 1, **options: Any) -> Method:
    return Method({"name": name, **options}, passes)


ADAPTER = {"module": "adapter"}
RIDGE = {**ADAPTER, "head": "ridge"}
RIDGE_MOVED = {**RIDGE, "plugins": [DRIFT]}
METHODS = {
    "class means": Method({"name": "closed_form"}, 0, {"head": "prototypes"}),
    "LDA": Method({"name": "closed_form"}, 0, {"head": "lda"}),
    "ridge": Method({"name": "closed_form"}, 0, {"head": "ridge"}),
    "linear probe": _named("linear_probe"),
    "sequential adapters": Method({"name": "naive", **ADAMW}, 1, ADAPTER),
    "sequential LoRA": Method({"name": "naive", "loss": "local", **ADAMW}, 1, {"module": "lora"}),
    "sequential full fine-tuning": Method({"name": "naive", **FULL}, 1, {"module": "full"}),
    "NTK-CL released": _named("ntk_cl", 4, recipe="released"),
    "NTK-CL corrected": _named("ntk_cl", 4, recipe="corrected"),
    "NTK-CL kernel": _named("ntk_cl", 4, recipe="kernel", **ADAMW),
    "PEGP": Method({"name": "pegp", **PROJECTED}, 1, ADAPTER),
    "PEGP, ridge": Method({"name": "pegp", **PROJECTED, **BLOCKS}, 1, RIDGE_MOVED),
    "APER": Method({"name": "aper"}, 1, ADAPTER),
    "RanPAC": Method({"name": "ranpac"}, 1, {"head": {"name": "random_ridge", "n_features": 2000}}),
    "EASE": _named("ease"),
    "MOS": Method({"name": "mos"}, 1, scenarios=("class",)),
    "SLCA++": _named("slca_pp"),
    "SSIAT": _named("ssiat"),
    "C-ADA": _named("c_ada"),
    "L2P": _named("l2p", 2),
    "L2P-PGP": Method({"name": "l2p"}, 2, {"plugins": [PGP]}),
    "DualPrompt": _named("dualprompt", 2),
    "DualPrompt-PGP": Method({"name": "dualprompt"}, 2, {"plugins": [PGP]}),
    "CODA-Prompt": _named("coda_prompt", 2),
    "HiDe-Prompt": Method({"name": "hide_prompt"}, 2, scenarios=("class",)),
    "OnePrompt": _named("one_prompt"),
    "VPT-NSP": _named("vpt_nsp"),
    "S-Prompts": Method({"name": "s_prompts"}, 1, scenarios=("domain",)),
    "O-LoRA": _named("o_lora"),
    "InfLoRA": _named("inflora"),
    "SD-LoRA": _named("sd_lora"),
    "LAE": _named("lae"),
    "joint adapters": Method({"name": "joint", **ADAMW}, 1, ADAPTER),
    "joint full fine-tuning": Method({"name": "joint", **FULL}, 1, {"module": "full"}),
    "joint adapters, ridge": Method({"name": "joint", **ADAMW, **BLOCKS}, 1, RIDGE),
}
FLOORS = ("class means", "LDA", "ridge")
NOT_SEARCHED = ("S-Prompts",)  # it has no class stream to search on


def parts(method: str) -> list[str]:
    """Return what a method changes in a stream's configuration."""
    chosen = METHODS[method]
    strategy = {**chosen.strategy, "mixed_precision": "no"}
    if chosen.passes:  # whole schedules within the budget
        strategy |= {"train_epochs": PASSES // chosen.passes, "train_mb_size": 10}
    named = {"strategy": strategy, **chosen.parts, "budget": {"passes": PASSES}}
    return [f"{key}={json.dumps(value)}" for key, value in named.items()]


def searched(output: Path, method: str, settings: list[str]) -> list[str]:
    """Return the strategy with the learning rate that was found, searching it if need be."""
    if not METHODS[method].passes or method in NOT_SEARCHED:
        return []
    if known := FOUND["methods"].get(method):
        rate = known["values"]["strategy.lr"]
        return [f"strategy.lr={rate}", f"tuned={json.dumps(FOUND['common'] | known)}"]
    place = folder(output, "searched", method, 0)
    file = Path(f"{place}-tune") / "tuned.yaml"
    if not file.is_file():
        tune(
            HERE / "cifar10.yaml",
            *parts(method),
            *settings,
            f"output={place}",
            trials=TRIALS,
            phase=f"other:{SEARCHED_ON}",
            search=["strategy.lr"],
            held_out=HELD_OUT,
            console=Console(),
        )
    found = load_config(file)
    told = {"strategy": found.strategy.model_dump(), "tuned": found.tuned.model_dump()}
    return [f"{key}={json.dumps(value)}" for key, value in told.items()]


def run(path: Path, stream: str, method: str, seed: int, settings: list[str]) -> None:
    """Run one configuration unless its record is complete, or the method is not for the stream."""
    if read(path) or ("domain" if stream == "pacs" else "class") not in METHODS[method].scenarios:
        return
    points = {"name": "any_time", "every": 10, "images_per_experience": 20}
    small = [f"benchmark.{key}={value}" for key, value in SMALL[stream].items()]
    changed = [*parts(method), *searched(path.parents[1], method, settings), *small, *settings]
    where = [f"output={path}", f"seed={seed}", f"metrics={json.dumps([points])}"]
    run_from_file(HERE / f"{stream}.yaml", [*where, *changed], True, Console())


def area(run: Record) -> float | None:
    """Return the area under the any-time curve; ``None`` where later experiences take no step."""
    found, steps = run.metric_summaries.get("AnyTimeMetric"), run.cost.training_steps
    return None if found is None or (any(steps) and not steps[-1]) else found["area"]


def passes(run: Record) -> float:
    """Return the passes of the backbone for each training image, in all that training does."""
    counted = run.cost.training_passes
    images = [part.train_images for part in run.protocol.experiences]
    return counted[-1] if run.joint else run.cost.passes_per_image(images) or 0.0


def rate(run: Record) -> str:
    """Return the learning rate that was found for a run; ``-`` where none was searched."""
    tuned = run.config.tuned
    return str(tuned.values["strategy.lr"]) if tuned else "-"


def row(stream: str, method: str, found: dict[int, Record], better: str) -> str:
    """Return a line of the table."""
    runs = list(found.values())
    numbers = [
        cell([run.accuracy.average_incremental_accuracy for run in runs]),
        cell([run.accuracy.last_accuracy for run in runs]),
        cell([area(run) for run in runs]),
        cell([run.accuracy.forgetting for run in runs]),
        better,
    ]
    cost = runs[0].cost
    taken = statistics.mean(map(passes, runs))
    seconds = statistics.mean(sum(run.cost.training_seconds) for run in runs)
    costs = [f"{cost.trainable_parameters:,}", f"{cost.stored_floats:,}", f"{taken:.1f}"]
    costs += [str(cost.forward_passes), f"{seconds:.0f}", str(len(runs))]
    return f"| {' | '.join([stream, method, rate(runs[0]), *numbers, *costs])} |"


def table(output: Path, streams: list[str], methods: list[str], seeds: list[int]) -> str:
    """Return mean and spread of every cell as Markdown."""
    head = (
        "| stream | method | lr | average | last | any time | forgetting | above the best floor | "
        "trainable | stored floats | passes in training | of a test image | training s | seeds |"
    )
    return beside_floors(head, output, streams, methods, seeds, FLOORS, row)


if __name__ == "__main__":
    measure(
        str(__doc__),
        run,
        table,
        files={stream: stream for stream in SMALL},
        methods=list(METHODS),
        output="runs/methods",
    )
