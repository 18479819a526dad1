"""Run what the table of images_and_texts.md holds, and print it.

    python examples/real_images/measure_image_text.py --seeds 0 1 2 --set num_threads=1

Runs whose record is complete are not repeated. ``--table`` prints the table from the records that
are there and runs nothing; ``--validate`` tests on held-out training images instead.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from measure import COLUMNS, HERE, measure, read, records, spread
from rich.console import Console

from avalanche_peftcl.runs import Record, run_from_file

DATA = HERE.parents[1] / "../shared/data"
WORDS = DATA / "image_text/class_names.json"
TEMPLATES = ["a photo of a {}."]
FLOAT32 = "no"  # of mixed_precision: 'auto' is bfloat16 where a processor has units for it
BACKBONE = {
    "name": "dual_encoder",
    "model_name": "deit_tiny_patch16_224",
    "out_features": 192,
    "img_size": 160,
    "resize_mode": "squash",
    "checkpoint": str(DATA / "deit_tiny_patch16_224.fp16.safetensors"),
    "checkpoint_text": str(DATA / "minilm_l6_v2"),
    "checkpoint_projections": str(DATA / "image_text/lit_deit_tiny_minilm.safetensors"),
}
# of each stream its file, and the sets of images of which it sees none
STREAMS = {
    "cifar10": ("cifar10", ("tiny_imagenet", "pacs")),
    "cifar10_task": ("cifar10", ("tiny_imagenet", "pacs")),
    "pacs": ("pacs", ("cifar10", "tiny_imagenet")),
    "tiny_imagenet": ("tiny_imagenet", ("cifar10", "pacs")),
    "flickr8k": ("flickr8k", ("cifar10", "tiny_imagenet")),
}
SMALL = {
    "cifar10_task": {"test_per_class": 50},
    "tiny_imagenet": {"n_experiences": 5, "train_per_class": 10, "test_per_class": 8},
    "flickr8k": {"train_per_experience": 160, "test_per_experience": 100},
}
FOLDERS = {"pacs": "pacs/photo"}  # the other domains are near chance before any training
PER_CLASS = {"cifar10": 15, "tiny_imagenet": 5, "pacs": 15}
CAPTIONED = 100  # images for retrieval
OLD = 50  # images of each old experience for wrong matches
ADAMW = {"optimizer": "adamw", "weight_decay": 0.0, "mixed_precision": FLOAT32}
TRAINED = {**ADAMW, "train_epochs": 1, "train_mb_size": 16}
LONGER = "adapter, five epochs"
BOTH = "adapter in both towers"
TEXT = "adapter in the text tower"
HARD = "adapter at a rate that harms"
# learning rates with the best last accuracy on held-out images of CIFAR-10, one epoch without
# projection; for the other adapters that of 'adapter', not looked for again; one that harms on
# purpose; of LoRA and prefixes none was looked for
RATES = {
    "prompt": 0.01,
    "adapter": 0.003,
    LONGER: 0.003,
    BOTH: 0.003,
    TEXT: 0.003,
    HARD: 0.07,
    "LoRA": 0.003,
    "prefix": 0.01,
    "linear adapter": 0.001,
    "text context": 0.001,
}
PROJECTION = {"threshold": 0.9, "n_samples": 256}
MODULES = {
    "prompt": {"name": "prompt"},
    "adapter": {"name": "adapter"},
    LONGER: {"name": "adapter"},
    BOTH: {"name": "adapter", "tower": "both"},
    TEXT: {"name": "adapter", "tower": "text"},
    HARD: {"name": "adapter"},
    "LoRA": {"name": "lora"},
    "prefix": {"name": "prefix"},
    "linear adapter": {"name": "linear_adapter"},
}
CLOSED_FORM = {"zero-shot": "zero_shot", "ridge": "ridge", "zero-shot and ridge": "zero_shot_ridge"}
CONTEXT = "text context"
PROJECTED = ", projection"
TRAINING = [name + projected for name in MODULES for projected in ("", PROJECTED)]
METHODS = [*CLOSED_FORM, CONTEXT, *TRAINING]


def words(name: str) -> dict[str, str]:
    """Return what the classes of a set of images are called in the texts."""
    return dict(json.loads(WORDS.read_text())[name])


def strategy(stream: str, method: str) -> list[dict[str, Any]]:
    """Return the parts of a configuration that a method is."""
    module, projected = method.removesuffix(PROJECTED), method.endswith(PROJECTED)
    trained = {**TRAINED, "lr": RATES.get(module)}
    if module == LONGER:
        trained["train_epochs"] = 5
    if stream == "flickr8k":
        plugins = [{"name": "gradient_projection", **PROJECTION}] if projected else []
        chosen = {"name": "contrastive", **trained, "train_mb_size": 64}
        return [chosen, MODULES[module], None, plugins]
    head = {"name": "zero_shot", "class_words": words(STREAMS[stream][0]), "templates": TEMPLATES}
    if method in CLOSED_FORM:
        texts = {} if method == "ridge" else head
        texts = texts | {"name": CLOSED_FORM[method]}
        return [{"name": "closed_form", "mixed_precision": FLOAT32}, None, texts, []]
    if method == CONTEXT:
        head = {"name": "text_context", "class_words": head["class_words"], "n_context": 4}
        return [{"name": "naive", **trained, "loss": "local"}, {"name": "frozen"}, head, []]
    chosen = {"name": "pegp", **trained, "head_epochs": 0, "merge_epochs": 0}
    projection = PROJECTION if projected else {"projection": False}
    return [{**chosen, **projection}, MODULES[module], head, []]


def metrics(stream: str) -> list[dict[str, Any]]:
    """Return what is measured beside accuracies."""
    file, sets = STREAMS[stream]
    named = {"class_words": str(WORDS), "templates": TEMPLATES}
    retention = [
        {
            "name": "zero_shot_retention",
            "root": {name: str(DATA / FOLDERS.get(name, name)) for name in sets},
            "images_per_class": min(PER_CLASS[name] for name in sets),
            **named,
        }
    ]
    captioned = DATA / "flickr8k"
    where = {"root": str(captioned / "test"), "captions": str(captioned / "test.json")}
    retrieval = [{"name": "retrieval", "max_images": CAPTIONED, **where}]
    if file == "flickr8k":
        return [*retention, *retrieval]
    wrong = {"name": "wrong_matches", "images_per_experience": OLD, "templates": TEMPLATES}
    wrong |= {"class_words": words(file)}
    return [*retention, *retrieval, wrong]


def run(path: Path, stream: str, method: str, seed: int, settings: list[str]) -> None:
    """Run one configuration unless its record is complete."""
    if read(path) or (stream == "flickr8k" and method not in TRAINING):
        return
    chosen, module, head, plugins = strategy(stream, method)
    parts = {"strategy": chosen, "module": module, "head": head, "plugins": plugins}
    parts = {"backbone": BACKBONE, "metrics": metrics(stream), **parts}
    changed = [f"{name}={json.dumps(part)}" for name, part in parts.items() if part is not None]
    if stream == "cifar10_task":
        changed.append("benchmark.scenario=task")
    changed += [f"benchmark.{key}={value}" for key, value in SMALL.get(stream, {}).items()]
    file = HERE / f"{STREAMS[stream][0]}.yaml"
    where = [f"output={path}", f"seed={seed}"]
    run_from_file(file, [*where, *changed, *settings], True, Console())


def said_of(values: list[float]) -> str:
    """Return mean and standard deviation, of equal values the value alone."""
    return spread(values[:1] if len(set(values)) == 1 else values)


def signed(values: list[float]) -> str:
    """Return mean and standard deviation of changes, in points."""
    said = said_of(values)
    return said if said.startswith("-") else f"+{said}"


def retained(runs: list[Record], name: str) -> str:
    """Return how the accuracy on a set that is never trained on changed over the stream."""
    found = [run.metric_summaries.get("ZeroShotRetentionMetric") for run in runs]
    sets = [some["sets"][name] for some in found if some]
    change = [each["after"][-1] - each["before"] for each in sets]
    return f"{name} {signed(change)}" if change else "-"


def recalled(runs: list[Record], name: str) -> str:
    """Return recall before the stream, and after it."""
    found = [run.metric_summaries.get("RetrievalMetric") for run in runs]
    there = [(some["before"][name], some["after"][-1][name]) for some in found if some]
    return " → ".join(said_of(list(values)) for values in zip(*there, strict=True)) or "-"


def wrong(runs: list[Record], name: str) -> str:
    """Return the mean over old experiences after the last one."""
    found = [run.metric_summaries.get("WrongMatchesMetric") for run in runs]
    rows = [[each for each in some[name][-1] if each is not None] for some in found if some]
    return spread([statistics.mean(row) for row in rows]) if rows and all(rows) else "-"


def row(stream: str, method: str, runs: list[Record]) -> str:
    """Return a line of the table."""
    sets = STREAMS[stream][1]
    numbers = [spread([getattr(run.accuracy, column) for run in runs]) for column in COLUMNS]
    kept = [retained(runs, name) for name in sets]
    found = [recalled(runs, name) for name in ("image_to_text_r1", "text_to_image_r1")]
    seconds = statistics.mean(sum(run.cost.training_seconds) for run in runs)
    cells = [stream, method, *numbers, *kept, *found, wrong(runs, "rate")]
    return f"| {' | '.join(cells)} | {len(runs)} | {seconds:.0f} |"


def table(output: Path, streams: list[str], methods: list[str], seeds: list[int]) -> str:
    """Return mean and spread of every cell as Markdown."""
    lines = [
        "| stream | method | average | last | forgetting | zero-shot change | and | "
        "image to text R@1 | text to image R@1 | wrong matches | seeds | training s |",
        f"|{'---|' * 12}",
    ]
    for stream in streams:
        for method in methods:
            if found := records(output, stream, method, seeds):
                lines.append(row(stream, method, list(found.values())))
    return "\n".join(lines)


if __name__ == "__main__":
    measure(
        str(__doc__),
        run,
        table,
        files={stream: file for stream, (file, _) in STREAMS.items()},
        methods=list(METHODS),
        output="runs/image_text",
    )
