"""A model card from the record of a run: what was trained on what, how well, and its limits."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import yaml

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.console import markdown
from avalanche_peftcl.models.exportable import is_place
from avalanche_peftcl.runs.report import percent, protocol_rules, title
from avalanche_peftcl.runs.schema import HEADLINES, Record
from avalanche_peftcl.runs.tables import Sheet, markdown_table

_MOST = 20  # classes of an experience that are named
_OVERLAPS = {  # what is known of backbones and data that come with the package
    ("vit_glyph", "digits"): "none: the backbone has seen letters and symbols, and no digit"
}
_UNKNOWN = (
    "not known. The record has no labels of the backbone's pre-training to hold the names of these "
    "classes against; if they were among them, the accuracies are those of recognising "
    "them again."
)


def model_card(
    record: Record,
    others: Sequence[Record] = (),
    *,
    overlap: str | None = None,
    name: str = "model",
    with_backbone: bool = False,
    adapter: bool = False,
) -> str:
    """Return a model card in Markdown, as the Hugging Face Hub shows it.

    Args:
        record: Of the run whose network it is.
        others: Of the same configuration under other seeds.
        overlap: Which classes the backbone knew from its pre-training; ``None`` says what is known.
        name: Where the network can be found, ``"owner/name"``.
        with_backbone: Whether the backbone's weights are beside it.
        adapter: Whether an adapter in peft's format is beside it.
    """
    lines = [
        "---",
        *yaml.safe_dump(_head(record), sort_keys=True).splitlines(),
        "---",
        "",
        f"# {markdown(title(record))}",
        "",
        f"A network of [avalanche_peftcl](https://pypi.org/project/avalanche-peftcl) for continual "
        f"image classification, trained by `{record.config.strategy.name}`, one experience after "
        "the other.",
        "",
        *_use(record, name, with_backbone=with_backbone, adapter=adapter),
        *_method(record),
        *_data(record, overlap),
        *_numbers(record, others),
        *_limits(record, others, with_backbone=with_backbone),
    ]
    return "\n".join(lines)


def _head(record: Record) -> dict[str, Any]:
    tags = ["continual-learning", "parameter-efficient-fine-tuning", "avalanche"]
    return {
        "library_name": "avalanche_peftcl",
        "pipeline_tag": "image-classification",
        "tags": [*tags, record.config.strategy.name],
    }


def _use(record: Record, name: str, *, with_backbone: bool, adapter: bool) -> list[str]:
    weights = "" if with_backbone else "  # and where the backbone's weights are, if it needs any"
    lines = [
        "## Use",
        "",
        "```python",
        "import avalanche_peftcl",
        "from huggingface_hub import hf_hub_download",
        "",
        f'file = hf_hub_download("{name}", "model.safetensors")',
        f"model = avalanche_peftcl.load(file){weights}",
        "logits = model(model.transform(image)[None])  # of a PIL image, by class id",
        "```",
        "",
    ]
    if adapter:
        lines += [
            "The module is here in peft's own format too, without the head:",
            "",
            "```python",
            "import peft, timm",
            "",
            f'vit = timm.create_model("{record.model_name or "..."}", num_classes=0)',
            "# with the weights, image size and options that the backbone had",
            f'features = peft.PeftModel.from_pretrained(vit, "{name}").eval()(images)',
            "```",
            "",
        ]
    return lines


def _method(record: Record) -> list[str]:
    config = record.config
    named: dict[str, ComponentConfig | None] = {
        "backbone": config.backbone,
        "module": config.module,
        "head": config.head,
        "benchmark": config.benchmark,
        "strategy": config.strategy,
    }
    options: dict[str, Any] = {k: _options(part) for k, part in named.items() if part is not None}
    options["plugins"] = [_options(part) for part in config.plugins]
    made = [
        (part.kind, part.name, f"{part.provider} {part.version}", part.source)
        for part in record.components
        if part.kind not in ("metric", "logger")
    ]
    columns = ("part", "name", "package", "source")
    return [
        "## Method",
        "",
        *markdown_table(Sheet("", columns, tuple(made), words=True)),
        "",
        "With these settings; places of files are left out:",
        "",
        "```yaml",
        *yaml.safe_dump(options, sort_keys=False).splitlines(),
        "```",
        "",
        f"Weights of the backbone: sha256 `{record.weights_sha256}`.",
        "",
    ]


def _options(part: ComponentConfig) -> dict[str, Any]:
    """Return name and options of a component, without what names a place."""
    told: Mapping[str, Any] = part.model_dump()
    return {k: v for k, v in told.items() if k == "name" or not _names_a_place(k, v)}


def _names_a_place(name: str, value: Any) -> bool:
    return is_place(value) or name.startswith(("checkpoint", "root", "manifest"))


def _data(record: Record, overlap: str | None) -> list[str]:
    protocol = record.protocol
    rows = [
        (str(t), _names(each.class_names), str(each.train_images), str(each.test_images))
        for t, each in enumerate(protocol.experiences, start=1)
    ]
    if protocol.domains is not None:
        named = zip(rows, protocol.domains, strict=False)
        rows = [(f"{t} ({domain})", *rest) for (t, *rest), domain in named]  # type: ignore[misc]  # four texts
    known = _OVERLAPS.get((record.config.backbone.name, record.config.benchmark.name), _UNKNOWN)
    if record.overlap is not None:
        known = record.overlap.said(most=_MOST)
    columns = ("experience", "classes", "training images", "test images")
    return [
        "## Data",
        "",
        f"`{record.config.benchmark.name}`, scenario {protocol.scenario or 'unknown'}:",
        "",
        *markdown_table(Sheet("", columns, tuple(rows), words=True)),
        "",
        *(f"- {name}: {markdown(value)}" for name, value in protocol_rules(protocol)),
        f"- class overlap with the backbone's pre-training: {markdown(overlap or known)}",
        "",
    ]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _numbers(record: Record, others: Sequence[Record]) -> list[str]:
    runs = sorted([record, *others], key=lambda each: each.seed)
    rows = [
        (f"{each.seed}{' (this one)' if each is record else ''}", *_headlines(each))
        for each in runs
    ]
    if len(runs) > 1:
        rows.append(("mean ± standard deviation", *(_spread(runs, key) for key in HEADLINES)))
    return [
        "## Numbers",
        "",
        *markdown_table(Sheet("", ("seed", *HEADLINES.values()), tuple(rows))),
        "",
        "Average accuracy is the mean over the experiences of the accuracy on all test images seen "
        "so far; last accuracy is that after the last experience; forgetting is the mean drop of "
        "the earlier experiences from their best accuracy.",
        "",
    ]


def _headlines(record: Record) -> list[str]:
    return [percent(value) for value in record.accuracy.headlines().values()]


def _spread(runs: Sequence[Record], key: str) -> str:
    values = [value for each in runs if (value := getattr(each.accuracy, key)) is not None]
    if len(values) < 2:
        return "-"
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f} %"


def _limits(record: Record, others: Sequence[Record], *, with_backbone: bool) -> list[str]:
    count, protocol = record.experiences, record.protocol
    told = []
    if not record.complete:
        told.append(f"The stream was not finished: {count.finished} of {count.total} experiences.")
    if not others:
        told.append("The numbers are of one seed; no spread is known.")
    if protocol.tested_on not in (None, "test images"):
        told.append(f"The accuracies are of {protocol.tested_on}, not of the test images.")
    if protocol.task_label_at_test:
        told.append("A prediction needs the task label; the accuracies were measured with it.")
    told += [
        "It knows the classes above and no other: every image is given one of them.",
        "Accuracies hold for images like the test images; others were not tried.",
        "What a score is depends on the head (`model.score_name`): similarities and estimates are "
        "no probabilities.",
    ]
    if not with_backbone:
        told.append("The weights of the backbone are not here; their own licence and card apply.")
    told.append("Licences of the data are those of its makers; no image is here.")
    return ["## Limits", "", *(f"- {line}" for line in told), ""]
