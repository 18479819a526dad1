"""The protocols of examples/protocols are what their names and the papers' tables say."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avalanche_peftcl.benchmarks import ImageArray
from avalanche_peftcl.benchmarks.sources.download import Download
from avalanche_peftcl.config import ComponentConfig, RunConfig, load_config
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.models import InputConfig
from avalanche_peftcl.registry import discover

FOLDER = Path(__file__).parents[1] / "examples" / "protocols"
CIFAR = (0.025, 20, 16, 0.0005, 0.03, False)
IMAGENET_R = (0.02, 20, 16, 0.005, 0.2, False)
DOMAINNET = (0.02, 50, 96, 0.005, 0.2, False)
PEGP_SHORT, PEGP_LONG = (0.0028125, 5, 3, 1), (0.00046875, 50, 30, 17)
# experiences and classes in each; NTK-CL's lr, epochs, batch, weight decay, contrast, pretrained;
# whether the paper has these settings; PEGP's lr, epochs, head-only epochs, merge epochs; likewise
PROTOCOLS: dict[str, tuple[list[int], tuple[Any, ...], bool, tuple[Any, ...], bool]] = {
    "cifar100_10x10": ([10] * 10, CIFAR, True, PEGP_SHORT, True),
    "cifar100_20x5": ([5] * 20, CIFAR, False, PEGP_SHORT, False),
    "imagenet_r_10x20": ([20] * 10, IMAGENET_R, True, PEGP_LONG, True),
    "imagenet_r_5x40": ([40] * 5, IMAGENET_R, False, PEGP_LONG, False),
    "imagenet_r_20x10": ([10] * 20, IMAGENET_R, False, PEGP_LONG, False),
    "imagenet_a_10x20": ([20] * 10, IMAGENET_R, True, PEGP_LONG, False),
    "cub200_10x20": ([20] * 10, IMAGENET_R, False, PEGP_LONG, False),
    "domainnet_domains": ([345] * 6, DOMAINNET, False, PEGP_LONG, False),
    "domainnet_15x23": ([23] * 15, DOMAINNET, True, PEGP_LONG, False),
    "domainnet_5x69": ([69] * 5, DOMAINNET, False, PEGP_LONG, True),
    "omnibenchmark_10x30": ([30] * 10, IMAGENET_R, False, PEGP_LONG, False),
    "vtab_5x10": ([10] * 5, (0.03, 45, 96, 0.005, 0.2, True), True, PEGP_LONG, False),
    "oxford_pets_7_6x5": ([7] + [5] * 6, (0.02, 5, 96, 0.005, 0.2, True), True, PEGP_LONG, False),
    "eurosat_5x2": ([2] * 5, (1e-4, 5, 96, 0.005, 0.2, True), True, PEGP_LONG, False),
    "plantvillage_5x3": ([3] * 5, (0.005, 5, 96, 0.005, 0.2, True), True, PEGP_LONG, False),
    "kvasir_4x2": ([2] * 4, (0.005, 5, 96, 0.005, 0.2, True), True, PEGP_LONG, False),
    "core50_8_sessions": ([50] * 8, CIFAR, False, PEGP_SHORT, False),
    "tiny_imagenet_10x20": ([20] * 10, CIFAR, False, PEGP_SHORT, False),
    "five_datasets": ([10] * 5, CIFAR, False, PEGP_SHORT, False),
}
every_protocol = pytest.mark.parametrize("name", PROTOCOLS)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def comment_of(name: str) -> str:
    """Return the head of the file without the signs of comment."""
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def pegp(name: str) -> RunConfig:
    """Return the configuration of the command that stands in the comment."""
    text = comment_of(name).replace("\\\n", "")
    (command,) = re.findall(r"^ *(peftcl run .*)", text, re.MULTILINE)
    words = shlex.split(command)
    assert words[:3] == ["peftcl", "run", f"examples/protocols/{name}.yaml"]
    return load_config(path_of(name), words[3:])


def test_every_protocol_is_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PROTOCOLS.keys()


@every_protocol
def test_settings_of_ntk_cl(name: str) -> None:
    config = load_config(path_of(name))
    make_plan(config, discover())
    lr, epochs, batch, decay, contrast, pretrained = PROTOCOLS[name][1]
    assert make_plan(config, discover()).settings["strategy"] == {
        "name": "ntk_cl",
        "loss": "local",
        "plugin_order": "before",
        "recipe": "released",
        "r": 16,
        "prompt_length": 10,
        "n_copies": 1,
        "use_pretrained": pretrained,
        "section_weights": [1.0, 0.3, 0.1],
        "dropout": 0.1,
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": decay,
        "contrast_weight": contrast,
        "temperature": 0.1,
        "contrast_prototypes": None,
        "orthogonality_weight": 1e-4,
        "retention_weight": 1e-3,
        "features": None,
        "frozen_section": None,
        "drift_ridge": None,
        "optimizer": "sgd",
        "anneal": None,
        "train_mb_size": batch,
        "train_epochs": epochs,
        "eval_mb_size": 64,
        "max_grad_norm": None,
        "accumulation_steps": 1,
        "mixed_precision": "no",
    }
    benchmark = config.benchmark.options
    if name == "five_datasets":
        assert benchmark["augment"] == "none"
    else:
        assert (benchmark["augment"], benchmark["crop_scale"]) == (
            "random_resized_crop",
            [0.05, 1.0],
        )


@every_protocol
def test_settings_of_pegp_in_the_comment(name: str) -> None:
    config = pegp(name)
    make_plan(config, discover())
    assert (config.seed, config.output.name) == (1, f"pegp_{name}")
    options = make_plan(config, discover()).settings["strategy"]
    lr, epochs, head_epochs, merge_epochs = PROTOCOLS[name][3]
    expected = {
        "name": "pegp",
        "recipe": "released",
        "peft": "attention_adapter",
        "r": 5,
        "threshold": 0.999,
        "n_samples": 768,
        "optimizer": "adam",
        "lr": lr,
        "weight_decay": 0.0,
        "train_mb_size": 24,
        "train_epochs": epochs,
        "head_epochs": head_epochs,
        "merge_epochs": merge_epochs,
        "merge_offset": 1.0,
        "mixed_precision": "no",
    }
    assert {key: options[key] for key in expected} == expected
    if name != "five_datasets":
        assert config.benchmark.options["crop_scale"] == [0.08, 1.0]
        natural = config.benchmark.options.get("class_order") == "natural"
        assert natural is (config.benchmark.options.get("scenario") != "domain")


@every_protocol
def test_numbers_are_quoted_and_borrowed_settings_are_called_so(name: str) -> None:
    _, _, of_ntk_cl, _, of_pegp = PROTOCOLS[name]
    text = " ".join(comment_of(name).split())
    assert ("quoted, not reproduced here" in text) is (name != "tiny_imagenet_10x20")
    assert ("NTK-CL (arXiv 2407.17120" in text) is of_ntk_cl
    assert ("Settings of NTK-CL: those of its release" in text) is of_ntk_cl
    assert ("PEGP (arXiv 2405.13383, project page" in text) is of_pegp
    neither = "Neither NTK-CL nor PEGP published settings for this protocol"
    assert (neither in text) is not (of_ntk_cl or of_pegp)
    assert ("NTK-CL published no settings" in text) is (of_pegp and not of_ntk_cl)
    assert ("PEGP published no settings" in text) is (of_ntk_cl and not of_pegp)


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let downloaded sets have one image a class and split, of the right number of classes."""
    sizes = {"cifar100": 100, "tiny_imagenet": 200, "cub200": 200, "oxford_pets": 37}

    def get(files: Download, root: Path | None, download: bool) -> Any:
        n = sizes.get(files.name, 10)
        if files.name == "core50":
            images: Any = Sessions(np.zeros((400, 2, 2), np.uint8), list(range(50)) * 8)
            return images, images, [f"o{i + 1}" for i in range(50)]
        images = ImageArray(np.zeros((n, 2, 2), np.uint8), list(range(n)))
        return images, images, [f"{files.name}{i}" for i in range(n)]

    monkeypatch.setattr(Download, "get", get)


class Sessions(ImageArray):
    def name(self, index: int) -> str:
        return f"core50_128x128/s{index // 50 + 1}/o{index % 50 + 1}/{index}.png"


def write_classes(folder: Path, n_classes: int, count: int = 1) -> None:
    for c in range(n_classes):
        (folder / f"class{c:03}").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (2, 2)).save(folder / f"class{c:03}" / f"{i}.png")


def write_files(name: str, root: Path, n_classes: int, benchmark: ComponentConfig) -> None:
    """Write empty images in the layout that the protocol's comment names."""
    if benchmark.name == "image_list":
        for domain in benchmark.options["domains"]:
            for part in ("train", "test"):
                lines = [f"{domain}/c{c:03}/{part}.png {c}\n" for c in range(345)]
                root.mkdir(exist_ok=True)
                (root / f"{domain}_{part}.txt").write_text("".join(lines))
    elif name == "five_datasets":
        for letter in "ABCDEFGHIJ":
            write_classes(root / "notMNIST_small", 1, 2)
            (root / "notMNIST_small" / "class000").rename(root / "notMNIST_small" / letter)
    elif "test_share" in benchmark.options:
        write_classes(root, n_classes, 2)
    else:
        write_classes(root / "train", n_classes)
        write_classes(root / "test", n_classes)


@every_protocol
@pytest.mark.usefixtures("no_files")
def test_the_stream_is_that_of_the_name(name: str, tmp_path: Path) -> None:
    config, sizes = load_config(path_of(name)), PROTOCOLS[name][0]
    options = dict(config.benchmark.options)
    if "root" in options:
        assert re.fullmatch(r"data/[a-z_-]+", options["root"])
        assert config.benchmark.name == "image_list" or f"{options['root']}/" in comment_of(name)
        write_files(name, tmp_path / "data", sum(sizes), config.benchmark)
        options["root"] = str(tmp_path / "data")
    given = {"input_config": InputConfig(img_size=4)}
    benchmark = discover().build("benchmark", config.benchmark.name, options, given)
    trained = [len(e.classes_in_this_experience) for e in benchmark.train_stream]
    tested = [len(e.classes_in_this_experience) for e in benchmark.test_stream]
    assert trained == sizes
    assert tested == ([50] if name == "core50_8_sessions" else sizes)
    assert benchmark.scenario == ("domain" if "domains" in name or "sess" in name else "class")


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("pegp_cifar100", "cifar100_10x10"),
        ("pegp_imagenet_r", "imagenet_r_10x20"),
        ("pegp_domainnet", "domainnet_5x69"),
    ],
)
def test_the_presets_of_pegp_are_what_the_protocols_say(preset: str, name: str) -> None:
    one = make_plan(load_config(FOLDER.parent / f"{preset}.yaml"), discover()).settings
    other = make_plan(pegp(name), discover()).settings
    del one["output"], other["output"]
    assert one == other
