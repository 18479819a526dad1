"""What ``peftcl list KIND NAME`` shows of some components, as recorded before options were shared.

Whoever shares options anew sees here that types, ranges and defaults stay.
"""

import pytest

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover

ORDER = "list[int] | 'natural' | 'hardest' | 'easiest' | None"
CROP = "tuple[float (>= 0.0001, <= 1), float (>= 0.0001, <= 1)]"
BLOCKS = "list[int (>= 0, < 4096)]"
COUNT = "int (>= 1, <= 1000000000)"

CIFAR10 = [
    ("root", "Path | None", "None"),
    ("download", "bool", "True"),
    ("scenario", "'class' | 'task' | 'online'", "'class'"),
    ("n_experiences", f"{COUNT} | None", "None"),
    ("classes_per_experience", f"list[{COUNT}] | None", "None"),
    ("seed", "int (>= 0, < 4294967296)", "0"),
    ("class_order", ORDER, "None"),
    ("experience_size", COUNT, "10"),
    ("augment", "'random_resized_crop' | 'none'", "'random_resized_crop'"),
    ("crop_scale", CROP, "(0.05, 1.0)"),
    ("mirror", "bool | None", "None"),
    ("train_per_class", f"{COUNT} | None", "None"),
    ("validation_per_class", "int (>= 0, <= 1000000000)", "0"),
    ("test_per_class", f"{COUNT} | None", "None"),
    ("manifest", "Path | None", "None"),
]


def changed(options, **new):
    """Return ``options`` with other values in some rows; ``None`` leaves a row out."""
    rows = [(name, *new.get(name, rest)) for name, *rest in options if new.get(name, 1) is not None]
    return [tuple(row) for row in rows]


SCENARIO = ("'class' | 'task' | 'domain' | 'online'", "'class'")
DRAWN = ("'random_resized_crop' | 'none'", "'none'")
RECORDED = {
    ("benchmark", "cifar10"): CIFAR10,
    ("benchmark", "eurosat"): CIFAR10,
    ("benchmark", "mnist"): changed(CIFAR10, augment=DRAWN),
    ("benchmark", "digits"): changed(
        CIFAR10, root=None, download=None, scenario=SCENARIO, augment=DRAWN
    ),
    ("benchmark", "core50"): [
        *CIFAR10[:2],
        ("domain_order", "list[str] | None", "None"),
        *changed(CIFAR10[2:], scenario=SCENARIO),
    ],
    ("benchmark", "image_list"): [
        ("root", "Path", ""),
        ("domains", "list[str] | None", "None"),
        ("class_names", "Path | None", "None"),
        *changed(CIFAR10[2:], scenario=SCENARIO),
    ],
    ("benchmark", "hf_dataset"): [
        ("dataset", "str", ""),
        ("subset", "str | None", "None"),
        ("revision", "str | None", "None"),
        ("train_split", "str", "'train'"),
        ("test_split", "str", "'test'"),
        ("test_share", "float (> 0, < 1) | None", "None"),
        ("image", "str | None", "None"),
        ("label", "str | None", "None"),
        ("domain", "str | None", "None"),
        ("domain_order", "list[str] | None", "None"),
        ("download", "bool", "True"),
        *changed(CIFAR10[2:], scenario=SCENARIO),
    ],
    ("benchmark", "image_folder"): [
        ("root", "Path", ""),
        ("test_share", "float (> 0, < 1) | None", "None"),
        ("domain_order", "list[str] | None", "None"),
        ("own_classes", "bool | None", "None"),
        ("in_memory", "bool", "False"),
        *changed(CIFAR10[2:], scenario=SCENARIO),
    ],
    ("benchmark", "five_datasets"): [
        *CIFAR10[:2],
        (
            "order",
            "list['cifar10' | 'mnist' | 'fashion_mnist' | 'svhn' | 'notmnist'] | None",
            "None",
        ),
        *changed(
            CIFAR10[2:],
            n_experiences=None,
            classes_per_experience=None,
            class_order=None,
            augment=DRAWN,
        ),
    ],
    ("module", "lora"): [
        ("r", "int (>= 1, <= 4096)", "5"),
        ("alpha", "float (>= 1e-06, <= 1e+06) | None", "None"),
        ("target_modules", "tuple[str, ...]", "('qkv',)"),
        ("blocks", "list[int] | None", "None"),
        ("dropout", "float (>= 0, < 1)", "0.0"),
        ("init", "'kaiming' | 'gaussian'", "'kaiming'"),
        ("learn_scale", "bool", "True"),
        ("tower", "'image' | 'text' | 'both'", "'image'"),
        ("text_modules", "tuple[str, ...] | None", "None"),
    ],
    ("strategy_plugin", "lwf"): [
        ("alpha", "float (>= 0, <= 1e+09) | list[float (>= 0, <= 1e+09)]", "1.0"),
        ("temperature", "float (>= 0.001, <= 1000)", "2.0"),
    ],
    ("strategy", "naive"): [
        ("optimizer", "'sgd' | 'adam' | 'adamw'", "'sgd'"),
        ("anneal", "bool | None", "None"),
        ("features", f"'pooled' | 'blocks' | {BLOCKS}", "'pooled'"),
        ("frozen_section", f"'pooled' | 'blocks' | {BLOCKS} | None", "None"),
        ("plugin_order", "'before' | 'after'", "'before'"),
        ("eval_mb_size", "int (>= 1, <= 1048576)", "64"),
        ("mixed_precision", "'auto' | 'no' | 'bf16' | 'fp16'", "'auto'"),
        ("loss", "'local' | 'seen'", "'seen'"),
        ("lr", "float (> 0, <= 1e+06)", "0.025"),
        ("momentum", "float (>= 0, < 1)", "0.9"),
        ("weight_decay", "float (>= 0, <= 1e+06)", "0.0005"),
        ("train_mb_size", "int (>= 1, <= 1048576)", "16"),
        ("train_epochs", "int (>= 1, <= 1000000)", "20"),
        ("max_grad_norm", "float (>= 1e-09, <= 1e+09) | None", "None"),
        ("accumulation_steps", "int (>= 1, <= 1000000)", "1"),
    ],
}


@pytest.mark.parametrize(("kind", "name"), RECORDED, ids=" ".join)
def test_options_are_as_recorded(kind, name):
    registry = discover(only=["avalanche-peftcl"])
    assert registry.schema(kind, name).describe() == RECORDED[kind, name]


ERROR = """\
benchmark 'cifar10' of {provider}:
  unknown option 'nosuch'
  option 'scenario' should be 'class', 'task' or 'online', got 'domain'
  option 'n_experiences' should be greater than or equal to 1, got 0
  option 'class_order' should be a valid list or should be 'natural', 'hardest' or \
'easiest', got {{'a': 1}}
the options there are:
"""


def test_errors_are_as_recorded():
    schema = discover(only=["avalanche-peftcl"]).schema("benchmark", "cifar10")
    with pytest.raises(ConfigError) as raised:
        schema.check(
            {"nosuch": 1, "n_experiences": 0, "class_order": {"a": 1}, "scenario": "domain"}
        )
    rows = [f"  {name}: {kind} = {default}" for name, kind, default in CIFAR10]
    provider = discover(only=["avalanche-peftcl"]).get("benchmark", "cifar10").provider
    assert str(raised.value) == ERROR.format(provider=provider) + "\n".join(rows)
