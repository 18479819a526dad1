"""Run PEGP with four kinds of module on four streams and print the tables of README.md beside it.

    python examples/real_images/measure_pegp.py --seeds 0 1

Runs whose record is complete are not repeated. ``--table`` prints the tables from the records that
are there and runs nothing; ``--validate`` tries learning rates and thresholds on training images
that are held out. README's numbers were measured with ``mixed_precision: bf16``; as it stands the
precision is that of the device's units.
"""

import argparse
from pathlib import Path

from measure import HELD_OUT, folder, read, run, spread

from avalanche_peftcl.runs import Record

KINDS = ("head alone", "adapter", "lora", "prefix", "prompt")
STREAMS = {  # name in the tables: configuration and what is changed in it
    "cifar10": ("cifar10", []),
    "pacs": ("pacs", []),
    "omniglot": ("omniglot", []),
    "cifar10_online": (
        "cifar10",
        ["benchmark.scenario=online", "benchmark.experience_size=16"],
    ),
}
DRIFT = "cifar10_task"  # with the task label nothing but drift is forgotten
STREAMS[DRIFT] = ("cifar10", ["benchmark.scenario=task"])
VARIANTS = {
    "none": "projection: false",
    "released": "recipe: released",
    "corrected": "recipe: corrected",
    "corrected, head too": "recipe: corrected, project_head: true",
}
PARTS = {  # the three things that the published method adds to sequential tuning, one by one
    "head-only epoch": "projection: false, head_epochs: 1",
    "merging": "projection: false, merge_epochs: 1",
    "projection, head-only epoch, merging": "head_epochs: 1, merge_epochs: 1",
}
# chosen on held-out training images, see --validate
RATE = 0.003
RELEASED_THRESHOLD = "0.999"  # of adapters; that of LoRA is the default
TRIED_RATES = (0.003, 0.01)
TRIED_THRESHOLDS = (0.9, 0.99, 0.999, 1.0)
COLUMNS = ("average_accuracy", "forgetting")


def settings(kind: str, stream: str, changes: str, **options: float) -> str:
    """Return one strategy as YAML."""
    values = {
        "name": "pegp",
        "peft": kind if kind not in ("head alone", "adapter") else "attention_adapter",
        "blocks": "[0, 1, 2, 3, 4]",
        "n_samples": 100,
        "lr": RATE,
        "train_mb_size": 16,
        "train_epochs": 1 if stream.endswith("online") else 3,
        "head_epochs": 0,
        "merge_epochs": 0,
    }
    changed = dict(part.split(": ") for part in changes.split(", ")) if changes else {}
    if changes == VARIANTS["released"] and kind == "adapter":
        changed["threshold"] = RELEASED_THRESHOLD
    values = values | changed | options
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def cells(streams: list[str], kinds: list[str]) -> list[tuple[str, str, str, str]]:
    """Return kind, stream, variant and strategy of every run of both tables."""
    grid = [
        (kind, stream, variant, settings(kind, stream, changes))
        for stream in streams
        for kind in kinds
        for variant, changes in VARIANTS.items()
        if (stream != DRIFT or kind in ("prefix", "prompt"))
        and (
            variant == "none"
            or (variant == "released" and kind in ("adapter", "lora"))
            or (variant == "corrected" and kind != "head alone")
            or (variant == "corrected, head too" and kind != "head alone" and stream == "pacs")
        )
    ]
    parts = [
        ("adapter", "cifar10", part, settings("adapter", "cifar10", changes))
        for part, changes in PARTS.items()
        if "cifar10" in streams and "adapter" in kinds
    ]
    return grid + parts


def place(output: Path, kind: str, stream: str, variant: str, seed: int) -> Path:
    """Return the folder of one run's record."""
    return folder(output, stream, f"{kind} {variant}", seed)


def row(runs: list[Record]) -> tuple[str, str, str]:
    """Return average accuracy, forgetting and accuracy when just learnt, over seeds."""
    learnt = [run.accuracy.learning_accuracy for run in runs]
    average, forgetting = ([getattr(run.accuracy, key) for run in runs] for key in COLUMNS)
    return spread(average), spread(forgetting), spread(learnt)


def table(output: Path, streams: list[str], kinds: list[str], seeds: list[int]) -> str:
    """Return both tables as Markdown: mean and spread over the seeds that are there."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for kind, stream, variant, _ in cells(streams, kinds):
        runs = [run for seed in seeds if (run := read(place(output, kind, stream, variant, seed)))]
        few = "" if len(runs) == len(seeds) else f" ({len(runs)} seeds)"
        found.setdefault((stream, kind), {})[variant] = " / ".join(row(runs)) + few if runs else "-"
    lines = []
    for variants in (list(VARIANTS), list(PARTS)):
        lines += [
            "",
            f"| stream | module | {' | '.join(variants)} |",
            "|---" * (2 + len(variants)) + "|",
        ]
        lines += [
            f"| {stream} | {kind} | {' | '.join(cell.get(name, '') for name in variants)} |"
            for (stream, kind), cell in found.items()
            if any(name in cell for name in variants)
        ]
    return "\n".join(lines)


def validate(output: Path, kinds: list[str], overrides: list[str]) -> None:
    """Try rates without projection, then thresholds, on held-out CIFAR-10 training images."""
    held = [f"benchmark.validation_per_class={HELD_OUT['cifar10']}", "benchmark.train_per_class=50"]
    tried = [
        (kind, f"none, lr {rate}", settings(kind, "cifar10", "projection: false", lr=rate))
        for kind in kinds[kinds[0] == "head alone" :]
        for rate in TRIED_RATES
    ] + [
        (kind, f"threshold {share}", settings(kind, "cifar10", "", threshold=share))
        for kind in kinds[kinds[0] == "head alone" :]
        for share in TRIED_THRESHOLDS
    ]
    for kind, name, strategy in tried:
        path = place(output / "validation", kind, "cifar10", name, 0)
        run(path, "cifar10", strategy, 0, [*held, *overrides])
        average, forgetting, learnt = row([read(path)])
        print(
            f"{kind}, {name}: {average}, forgetting {forgetting}, just learnt {learnt}", flush=True
        )


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--output", type=Path, default=Path("runs/real_images_pegp"))
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--validate", action="store_true", help="only try rates and thresholds")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides: num_threads=1")
    arguments = parser.parse_args()
    if arguments.validate:
        validate(arguments.output, arguments.kinds, arguments.set)
        return
    for seed in () if arguments.table else arguments.seeds:
        for kind, stream, variant, strategy in cells(arguments.streams, arguments.kinds):
            configuration, changes = STREAMS[stream]
            frozen = ["module={name: frozen}"] if kind == "head alone" else []
            path = place(arguments.output, kind, stream, variant, seed)
            run(path, configuration, strategy, seed, [*changes, *frozen, *arguments.set])
    print(table(arguments.output, arguments.streams, arguments.kinds, arguments.seeds))


if __name__ == "__main__":
    main()
