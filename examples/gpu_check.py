"""Measure training steps on a GPU against plain passes of the same network, and check its numbers.

    python examples/gpu_check.py --out FOLDER

NTK-CL and PEGP on ViT-B/16 at 224 pixels with random weights: milliseconds a training step and an
evaluation image, peak memory, kernels and host synchronisations a step, and the share of the
card's own matmul rate; then the CIFAR-10 run of ``real_images`` on the GPU against the CPU. It
ends within six minutes; what does not fit is named. ``--tiny --device cpu`` tries the script out.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# read when CUDA starts; a run sets it too, and what comes before a run starts CUDA here
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

sys.path.insert(0, str(Path(__file__).parent))  # also where this is not run as a script
from gpu_check_parts import cells, cifar10

SECONDS = 330.0
FOR_CIFAR10 = 130.0  # seconds kept for the run on real images
HOW = """\
Step: from a minibatch on the device to the updated weights, of `strategy.train` in the second
experience, loading excluded; each begins on an idle device. Plain passes: the unadapted network on
the same minibatch in the same precision, as often as the method passes through it, for NTK-CL four
times: two without a graph and two with a backward pass to the tokens that enter the first block;
for PEGP once, with that backward pass; in evaluation four and one without a graph. Steps and plain
passes take turns; medians. Peak memory: of tensors, weights included, without the plain passes.
Kernels and host synchronisations (waits of the host for the device) are those of one step under the
profiler, in brackets how often it read a number (`item`, also of tensors that lie on the host) and
copied to the host. Share of matmul: FLOPs of the step, as counted, by its time and by the rate of
one large product of matrices in the same precision. float32 is without TF32, which torch by itself
allows in convolutions."""
COLUMNS = [
    "method", "batch", "precision", "step ms", "plain passes ms", "ratio", "evaluation ms/image",
    "plain passes ms/image", "peak GiB", "kernels", "host syncs (item, copies)", "share of matmul",
]  # fmt: skip


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and write it and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and numbers")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toys instead, to try the script out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when to end at the latest")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="see real_images")
    parser.add_argument(
        "--reference", type=Path, help="gpu_check.json that holds the CPU's CIFAR-10 run already"
    )
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    arguments = parser.parse_args(words)
    device = torch.device(arguments.device)
    if not arguments.tiny and (device.type != "cuda" or not torch.cuda.is_available()):
        parser.error("this needs a CUDA device; --tiny --device cpu tries the script out without")
    arguments.out.mkdir(parents=True, exist_ok=True)
    budget = cells.Budget(arguments.seconds)
    result: dict[str, Any] = {
        "tiny": arguments.tiny,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": arguments.commit or commit(),
        "cublas_workspace_config": os.environ["CUBLAS_WORKSPACE_CONFIG"],
    }

    def each(measured: dict[str, Any]) -> None:
        result.update(measured)
        write(arguments.out, result)  # whatever happens to the rest
        print(*table(result).split(HOW)[0].strip().splitlines()[-3:-2], file=sys.stderr, flush=True)

    cells.measure(
        device,
        tiny=arguments.tiny,
        budget=budget.without(0 if arguments.tiny else FOR_CIFAR10),
        each=each,
    )
    result["cifar10"] = cifar10.compare(
        device,
        data=arguments.data,
        tiny=arguments.tiny,
        reference=arguments.reference,
        budget=budget,
    )
    result["seconds"] = budget.elapsed()
    write(arguments.out, result)
    print(table(result))
    return result


def commit() -> str:
    """Return the commit that is checked out, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return told.stdout.strip() or "unknown"


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write the numbers and the table."""
    (folder / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "gpu_check.md").write_text(table(result) + "\n")


def table(result: dict[str, Any]) -> str:
    """Return everything that was measured as Markdown."""
    toys = " (toys: these numbers mean nothing)" if result["tiny"] else ""
    cuda = f", CUDA {result['cuda']}" if result["cuda"] else ""
    lines = [
        f"{result['device']}{toys}, torch {result['torch']}{cuda}, commit {result['commit']}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for cell in result["cells"]:
        head = [cell["method"], str(cell["batch"]), cell["precision"]]
        values = row(cell) if "why" not in cell else [cell["why"], *[""] * (len(COLUMNS) - 4)]
        lines.append("| " + " | ".join(head + values) + " |")
    rates = ", ".join(f"{k} {v / 1e12:.3g}" for k, v in result["matmul_flops"].items())
    lines += ["", f"Rate of one large product of matrices in TFLOP/s: {rates}.", HOW]
    if "cifar10" in result:
        lines += ["", *cifar10.lines(result["cifar10"])]
    return "\n".join(lines)


def row(cell: dict[str, Any]) -> list[str]:
    """Return the measured cells of one line."""
    peak, kernels = cell["peak_bytes"], cell["kernels"]
    share = cell["share_of_matmul"]
    return [
        f"{cell['step_ms']:.1f}",
        f"{cell['plain_ms']:.1f}",
        f"{cell['step_ms'] / cell['plain_ms']:.2f}",
        f"{cell['eval_ms_per_image']:.3f}",
        f"{cell['plain_eval_ms_per_image']:.3f}",
        "-" if peak is None else f"{peak / 2**30:.1f}",
        "-" if kernels is None else str(kernels),
        f"{cell['syncs']} ({cell['items']}, {cell['copies']})",
        f"{100 * share:.0f} %",
    ]


if __name__ == "__main__":
    main()
