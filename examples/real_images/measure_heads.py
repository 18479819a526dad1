"""Run what README's table of heads in closed form holds, and print it.

    python examples/real_images/measure_heads.py --seeds 0 1 2 --set num_threads=1

Runs whose record is complete are not repeated. ``--table`` prints the table from the records that
are there and runs nothing; ``--validate`` tests on held-out training images instead.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from measure import COLUMNS, HERE, measure, read, records, spread
from rich.console import Console

from avalanche_peftcl.compare import paired_t_test
from avalanche_peftcl.runs import Record, run_from_file

FLOAT32 = "mixed_precision: 'no'"  # 'auto' is bfloat16 where a processor has units for it
COMMON = f"train_epochs: 3, train_mb_size: 16, {FLOAT32}"
ADAMW = f"optimizer: adamw, lr: 0.001, weight_decay: 0.0, {COMMON}"
# what the kernel recipe reads: the frozen blocks, and the upper half of the adapted ones
READ = "features: [6, 7, 8, 9, 10, 11], frozen_section: blocks"
PROJECTED = f"{ADAMW}, head_epochs: 0, merge_epochs: 0, threshold: 0.9, n_samples: 256"
DRIFT = "plugins=[{name: drift_compensation, ridge: 1.0}]"
CLOSED_FORM = f"strategy={{name: closed_form, {FLOAT32}}}"
METHODS = {
    "class means": [CLOSED_FORM, "head=prototypes"],
    "LDA": [CLOSED_FORM, "head=lda"],
    "ridge": [CLOSED_FORM, "head=ridge"],
    "RanPAC's head": [CLOSED_FORM, "head={name: random_ridge, n_features: 2000}"],
    "ridge, blocks": [f"strategy={{name: closed_form, features: blocks, {FLOAT32}}}", "head=ridge"],
    "NTK-CL kernel": [f"strategy={{name: ntk_cl, recipe: kernel, {ADAMW}}}"],
    "PEGP, ridge": [f"strategy={{name: pegp, {PROJECTED}, {READ}}}", "head=ridge", DRIFT],
    "PEGP, linear": [f"strategy={{name: pegp, {PROJECTED}}}"],
    "naive, ridge": [f"strategy={{name: naive, {ADAMW}, loss: local, {READ}}}", "head=ridge"],
    "NTK-CL released": [f"strategy={{name: ntk_cl, recipe: released, lr: LR, {COMMON}}}"],
    "joint, ridge": [f"strategy={{name: joint, {ADAMW}, {READ}}}", "head=ridge"],
}
MODULE = "module=adapter"  # beside each MLP, as NTK-CL's, for the methods that take one
HAVE_NO_MODULE = ("closed_form", "ntk_cl")
RELEASED_RATES = {"cifar10": 0.03, "tiny_imagenet": 0.1, "pacs": 0.1, "omniglot": 0.1}
FLOORS = ("class means", "LDA", "ridge", "RanPAC's head", "ridge, blocks")
ONLINE = "cifar10_online"
STREAMS = [*RELEASED_RATES, ONLINE]


def overrides(stream: str, method: str) -> list[str]:
    """Return what a method changes in a stream's configuration."""
    rate = RELEASED_RATES.get(stream, RELEASED_RATES["cifar10"])
    chosen = [each.replace("LR", str(rate)) for each in METHODS[method]]
    if not any(f"name: {name}" in chosen[0] for name in HAVE_NO_MODULE):
        chosen.append(MODULE)
    return [*chosen, "benchmark.scenario=online"] if stream == ONLINE else chosen


def run(path: Path, stream: str, method: str, seed: int, settings: list[str]) -> None:
    """Run one configuration unless its record is complete."""
    if not read(path):
        file = HERE / f"{stream.removesuffix('_online')}.yaml"
        changed = [f"output={path}", f"seed={seed}", *overrides(stream, method), *settings]
        run_from_file(file, changed, True, Console())


def cell(values: list[float | None]) -> str:
    """Return mean and standard deviation; a dash for what joint training has not."""
    there = [value for value in values if value is not None]
    return spread(there) if there else "-"


def above(runs: dict[int, Record], floors: dict[str, dict[int, Record]]) -> str:
    """Return how far the last accuracy is above the best floor's, with a paired test over seeds."""
    whole = {name: of for name, of in floors.items() if set(runs) <= set(of)}
    if not whole or len(runs) < 2:
        return "-"

    def last(of: dict[int, Record]) -> list[float]:
        return [of[seed].accuracy.last_accuracy or 0.0 for seed in sorted(runs)]

    best = max(whole, key=lambda name: statistics.mean(last(whole[name])))
    test = paired_t_test(last(runs), last(whole[best]))
    there, p = test.difference, test.p_value
    if there is None or there.standard_deviation is None:
        return "-"
    said = f"{100 * there.mean:+.1f} ± {100 * there.standard_deviation:.1f} on {best}"
    return said if p is None else f"{said}, p {p:.2g}"


def beside_floors(
    head: str,
    output: Path,
    streams: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    floors: Sequence[str],
    row: Callable[[str, str, dict[int, Record], str], str],
) -> str:
    """Return a table of Markdown: of each method with a record a line that ``row`` makes."""
    lines = [head, f"|{'---|' * (head.count('|') - 1)}"]
    for stream in streams:
        below = {name: records(output, stream, name, seeds) for name in floors}
        for method in methods:
            if found := records(output, stream, method, seeds):
                better = "-" if method in floors else above(found, below)
                lines.append(row(stream, method, found, better))
    return "\n".join(lines)


def row(stream: str, method: str, found: dict[int, Record], better: str) -> str:
    """Return a line of the table."""
    runs = list(found.values())
    cost = runs[0].cost
    seconds = statistics.mean(sum(run.cost.training_seconds) for run in runs)
    numbers = " | ".join(
        cell([getattr(run.accuracy, column) for run in runs]) for column in COLUMNS
    )
    return (
        f"| {stream} | {method} | {numbers} | {better} | {len(runs)} | {seconds:.0f} | "
        f"{cost.stored_floats:,} | {cost.forward_passes} |"
    )


def table(output: Path, streams: list[str], methods: list[str], seeds: list[int]) -> str:
    """Return mean and spread of every cell as Markdown."""
    head = (
        "| stream | method | average | last | forgetting | above the best floor | seeds | "
        "training s | stored floats | passes |"
    )
    return beside_floors(head, output, streams, methods, seeds, FLOORS, row)


if __name__ == "__main__":
    measure(
        str(__doc__),
        run,
        table,
        files={stream: stream.removesuffix("_online") for stream in STREAMS},
        methods=list(METHODS),
        output="runs/heads",
    )
