r"""Look at the tangent kernel of methods, and vary the three factors of NTK-CL's paper alone.

    python examples/real_images/measure_kernel.py --streams digits --seeds 0 1 2
    python examples/real_images/measure_kernel.py --streams pacs cifar10 --seeds 0 \
        --factors none --set benchmark.train_per_class=20

Writes a page of each stream, ``STREAM.html``, of the methods, and prints two tables. Runs whose
record is complete are not repeated; ``--table`` runs nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from measure import HERE, cells, folder, read, spread
from rich.console import Console

from avalanche_peftcl.compare import compare_and_show, correlation
from avalanche_peftcl.runs import Record, run_from_file

FILES = {"digits": HERE.parent / "quickstart.yaml"} | {
    name: HERE / f"{name}.yaml" for name in ("pacs", "cifar10")
}
MINIBATCH = {"digits": 32, "pacs": 16, "cifar10": 16}
RATE = {"digits": 0.03, "pacs": 0.1, "cifar10": 0.03}
COMMON = "train_epochs: 3, train_mb_size: MB, mixed_precision: 'no'"
SGD = f"lr: LR, {COMMON}"
ADAMW = f"optimizer: adamw, lr: 0.001, weight_decay: 0.0, {COMMON}"
CORRECTED = f"name: ntk_cl, recipe: corrected, {SGD}"
METHODS = {
    "naive": [f"strategy={{name: naive, {ADAMW}, loss: local}}", "module=adapter"],
    "NTK-CL corrected": [f"strategy={{{CORRECTED}}}"],
    "NTK-CL kernel": [f"strategy={{name: ntk_cl, recipe: kernel, {ADAMW}}}"],
    "PEGP": [
        f"strategy={{name: pegp, {ADAMW}, head_epochs: 0, merge_epochs: 0, threshold: 0.9, "
        "n_samples: 256}",
        "module=adapter",
    ],
}
FACTORS: dict[str, dict[str, list[str]]] = {
    "sample size": {
        f"{n} images a class": [f"strategy={{{CORRECTED}}}", f"benchmark.train_per_class={n}"]
        for n in (20, 50, 100)
    },
    "orthogonality": {
        f"orthogonality {weight}": [f"strategy={{{CORRECTED}, orthogonality_weight: {weight}}}"]
        for weight in (0, 0.0001, 0.01, 0.1)
    },
    "regularisation": {
        f"retention {weight}": [f"strategy={{{CORRECTED}, retention_weight: {weight}}}"]
        for weight in (0, 0.001, 0.1, 1)
    },
}
KERNEL = ("inter_task", "drift_within", "drift_across_switch", "drift_from_first")


def run(path: Path, stream: str, overrides: list[str], seed: int, metrics: str) -> None:
    """Run one configuration unless its record is complete."""
    if read(path):
        return
    chosen = [
        each.replace("MB", str(MINIBATCH[stream])).replace("LR", str(RATE[stream]))
        for each in overrides
    ]
    settings = [f"output={path}", f"seed={seed}", "num_threads=1", "device=cpu", metrics]
    run_from_file(FILES[stream], [*settings, *chosen], True, Console())


def summary(record: Record, name: str) -> dict[str, Any]:
    """Return what a metric of this class tells."""
    found: dict[str, Any] = record.metric_summaries[name]
    return found


def mean(values: list[float | None]) -> float:
    """Return the mean of the numbers among the values."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def predicted(runs: list[Record]) -> str:
    """Return the correlation of predicted and measured forgetting in each run."""
    pairs = [summary(run, "NTKMetric")["forgetting"] for run in runs]
    found = [
        correlation([each["predicted"] for each in told], [each["measured"] for each in told])
        for told in pairs
    ]
    return "; ".join(f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in found if r)


def row(stream: str, method: str, runs: list[Record]) -> str:
    """Return a line of a table."""
    kernels = [summary(run, "NTKMetric") for run in runs]
    curves = [summary(run, "AnyTimeMetric") for run in runs]
    columns = [stream, method, str(len(runs))]
    columns += [f"{mean([mean(kernel[name][1:]) for kernel in kernels]):.3f}" for name in KERNEL]
    columns += [predicted(runs), *cells(runs)[1:]]
    columns += [spread([c["area"] for c in curves]), spread([c["average_minimum"] for c in curves])]
    return "| " + " | ".join(columns) + " |"


def table(output: Path, wanted: list[tuple[str, str]], seeds: list[int]) -> str:
    """Return the kernels, the predictions and the accuracies as Markdown."""
    lines = [
        "| stream | method | seeds | inter-task | drift within | across a switch | "
        "from the first | predicted and measured forgetting | last | forgetting | area | "
        "average minimum |",
        "|---" * 12 + "|",
    ]
    for stream, method in wanted:
        found = [read(folder(output, stream, method, seed)) for seed in seeds]
        if runs := [record for record in found if record]:
            lines.append(row(stream, method, runs))
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the page and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--factors", nargs="+", default=list(FACTORS), choices=[*FACTORS, "none"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--probe-images", type=int, default=32)
    parser.add_argument("--every", type=int, default=5, help="iterations between accuracies")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides")
    parser.add_argument("--output", type=Path, default=Path("runs/kernel"))
    parser.add_argument("--table", action="store_true", help="only write the page and the tables")
    arguments = parser.parse_args()
    output, seeds = arguments.output, arguments.seeds
    varied = {k: v for name in arguments.factors for k, v in FACTORS.get(name, {}).items()}
    chosen = {name: METHODS[name] for name in arguments.methods} | varied
    ntk = f"{{name: ntk, probe_images: {arguments.probe_images}}}"
    metrics = f"metrics=[{ntk}, {{name: any_time, every: {arguments.every}}}]"
    for seed in () if arguments.table else seeds:
        for stream in arguments.streams:
            for method, overrides in chosen.items():
                path = folder(output, stream, method, seed)
                run(path, stream, [*overrides, *arguments.set], seed, metrics)
    for stream in arguments.streams:
        there = [folder(output, stream, name, s) for name in arguments.methods for s in seeds]
        shown, page = [path for path in there if read(path)], output / f"{stream}.html"
        if shown:
            quiet = Console(quiet=True)
            compare_and_show(shown, {"html": page}, force=False, published=False, console=quiet)
            print(f"page: {page}")
    for names in (arguments.methods, list(varied)):
        print(table(output, [(s, name) for s in arguments.streams for name in names], seeds))


if __name__ == "__main__":
    main()
