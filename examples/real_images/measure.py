"""Run every method on every stream of this folder and print the table of README.md beside it.

    python examples/real_images/measure.py --seeds 0 1 2

Runs whose record is complete are not repeated. ``--table`` prints the table from the records that
are there and runs nothing.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.runs import Record, read_record, run_from_file

HERE = Path(__file__).parent
COMMON = "train_epochs: 3, train_mb_size: 16"  # the table of README: mixed_precision: bf16 too
METHODS = {
    "nearest class mean": "{name: nearest_class_mean}",
    "naive": f"{{name: naive, lr: LR, {COMMON}}}",
    "NTK-CL released": f"{{name: ntk_cl, recipe: released, lr: LR, {COMMON}}}",
    "NTK-CL corrected": f"{{name: ntk_cl, recipe: corrected, lr: LR, {COMMON}}}",
}
# learning rates with the best last accuracy on held-out training images: --validate
RATES = (0.03, 0.1)
CHOSEN = {
    "cifar10": {"naive": 0.1, "NTK-CL": 0.03},
    "tiny_imagenet": {"naive": 0.03, "NTK-CL": 0.1},
    "pacs": {"naive": 0.03, "NTK-CL": 0.1},
    "omniglot": {"naive": 0.03, "NTK-CL": 0.1},
}
HELD_OUT = {"cifar10": 50, "tiny_imagenet": 10, "pacs": 5, "omniglot": 5}
COLUMNS = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def folder(output: Path, stream: str, method: str, seed: int) -> Path:
    """Return the folder of one run's record."""
    return output / stream / f"{method.lower().replace(',', '').replace(' ', '_')}_seed{seed}"


def read(path: Path) -> Record | None:
    """Return a complete run record, or ``None``."""
    record = read_record(path) if (path / "metrics.json").exists() else None
    return record if record and record.complete else None


def records(output: Path, stream: str, method: str, seeds: Sequence[int]) -> dict[int, Record]:
    """Return the complete run records that are there, by seed."""
    found = {seed: read(folder(output, stream, method, seed)) for seed in seeds}
    return {seed: record for seed, record in found.items() if record}


def spread(values: list[float]) -> str:
    """Return mean and standard deviation of fractions, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def cells(runs: list[Record]) -> list[str]:
    """Return mean and standard deviation over runs of each of the columns."""
    return [spread([getattr(run.accuracy, column) for run in runs]) for column in COLUMNS]


def table(output: Path, streams: list[str], seeds: list[int]) -> str:
    """Return mean and spread of every cell as Markdown."""
    lines = [
        "| stream | method | average | last | forgetting | seeds | training min | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stream in streams:
        for method in METHODS:
            runs = [read(folder(output, stream, method, seed)) for seed in seeds]
            runs = [run for run in runs if run]
            if not runs:
                lines.append(f"| {stream} | {method} | - | - | - | 0 | - | - |")
                continue
            minutes = statistics.mean(sum(run.cost.training_seconds) for run in runs) / 60
            passes = runs[0].cost.forward_passes
            numbers = " | ".join(cells(runs))
            lines.append(
                f"| {stream} | {method} | {numbers} | {len(runs)} | {minutes:.1f} | {passes} |"
            )
    return "\n".join(lines)


def measure(
    doc: str,
    run: Callable[[Path, str, str, int, list[str]], None],
    table: Callable[[Path, list[str], list[str], list[int]], str],
    *,
    files: Mapping[str, str],
    methods: Sequence[str],
    output: str,
) -> None:
    """Run what a command line asks for and what is missing of it, then print the table.

    Args:
        doc: Of the script.
        run: Called with the folder, the stream, the method, the seed and further overrides.
        table: Called with the output folder, the streams, the methods and the seeds.
        files: Of each stream, which file it is of, without its ending.
        methods: All that there are.
        output: Where records go by default.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", default=list(files), choices=list(files))
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--validate", action="store_true", help="test on held-out training images")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides: num_threads=1")
    arguments = parser.parse_args()
    place = arguments.output / "validation" if arguments.validate else arguments.output
    for seed in () if arguments.table else arguments.seeds:
        for stream in arguments.streams:
            settings = list(arguments.set)
            if arguments.validate:
                held_out = HELD_OUT[files[stream]]
                settings.append(f"benchmark.validation_per_class={held_out}")
            for method in arguments.methods:
                run(folder(place, stream, method, seed), stream, method, seed, settings)
    print(table(place, arguments.streams, arguments.methods, arguments.seeds))


def run(path: Path, stream: str, strategy: str, seed: int, settings: list[str]) -> None:
    """Run one configuration unless its record is complete."""
    if not read(path):
        overrides = [f"output={path}", f"seed={seed}", f"strategy={strategy}", *settings]
        run_from_file(HERE / f"{stream}.yaml", overrides, True, Console())


def validate(output: Path, streams: list[str], settings: list[str]) -> None:
    """Try each learning rate on training images that are held out, and print last accuracies."""
    for stream in streams:
        for method in ("naive", "NTK-CL corrected"):
            for rate in RATES:
                path = folder(output / "validation", stream, f"{method} {rate}", 0)
                held = f"benchmark.validation_per_class={HELD_OUT[stream]}"
                strategy = METHODS[method].replace("LR", str(rate))
                run(path, stream, strategy, 0, [held, *settings])
                last = 100 * read(path).accuracy.last_accuracy
                print(f"{stream}: {method}, lr {rate}: {last:.1f}", flush=True)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", default=list(CHOSEN), choices=list(CHOSEN))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/real_images"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--validate", action="store_true", help="only try the learning rates")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides: num_threads=1")
    arguments = parser.parse_args()
    if arguments.validate:
        validate(arguments.output, arguments.streams, arguments.set)
        return
    for seed in () if arguments.table else arguments.seeds:
        for stream in arguments.streams:
            for method in arguments.methods:
                rate = CHOSEN[stream].get(method.split()[0], "")
                strategy = METHODS[method].replace("LR", str(rate))
                path = folder(arguments.output, stream, method, seed)
                run(path, stream, strategy, seed, arguments.set)
    print(table(arguments.output, arguments.streams, arguments.seeds))


if __name__ == "__main__":
    main()
