"""A first configuration with comments, for a folder of images or a benchmark by name; no torch."""

from collections.abc import Sequence
from pathlib import Path

from avalanche_peftcl.config.asked import config_from
from avalanche_peftcl.config.image_folders import ImageFolder, look_into
from avalanche_peftcl.config.yaml_text import write_yaml
from avalanche_peftcl.console import visible
from avalanche_peftcl.errors import ConfigError, UnknownComponentError
from avalanche_peftcl.files import write_file
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.registry.wording import show

CLASSES = {  # of the benchmarks that divide the classes of one data set
    "cifar10": 10,
    "cifar100": 100,
    "core50": 50,
    "cub200": 200,
    "digits": 10,
    "eurosat": 10,
    "fashion_mnist": 10,
    "mnist": 10,
    "oxford_pets": 37,
    "svhn": 10,
    "tiny_imagenet": 200,
}
_ELSEWHERE = {  # what this starter cannot write
    "image_text": "captioned images need a backbone with a text side and a strategy of their own; "
    "copy examples/real_images/flickr8k.yaml",
    "image_folder": "give the folder itself: peftcl init path/to/images",
}
_DIGITS = ("digits", "mnist", "svhn")  # a mirrored 3 is none
_MOST = 10  # experiences, and names that a comment lists
_TEXT = """\
# {title}
#   peftcl run {file} --dry-run        builds it and says what would be done; nothing trains
#   peftcl run {file}                  runs it; KEY=VALUE behind it replaces a setting
#   peftcl run {file} --seeds 0,1,2    runs it three times, in {output}/seed0, seed1, seed2
# `peftcl list` shows every component, `peftcl list KIND NAME` the options of one.

output: {output_yaml}
seed: 0
device: cpu                 # or cuda, cuda:1, auto; mps is untried
num_workers: 0              # processes that load images

# The stream of experiences.
{about}benchmark:
{benchmark}
# The network, which stays frozen.
backbone:
{backbone}
# What trains beside it: adapter, lora, prefix, prompt, ...
module:
  name: adapter
  r: 16

# What turns features into classes: ridge is fitted in closed form; linear and cosine train.
head: ridge

# The method: PEGP keeps what trains out of the directions that earlier images use.
strategy:
  name: pegp
  optimizer: adamw
  lr: 0.001
  weight_decay: 0.0
  train_epochs: 3
  train_mb_size: 16
  head_epochs: 0
  merge_epochs: 0
  threshold: 0.9            # share of the energy of features that is protected

# What joins it; replay of old images would be {{name: replay, mem_size: 200}}.
plugins:
  - {{name: drift_compensation, ridge: 1.0}}

# Beyond the accuracy matrix and the cost; {{name: any_time, every: 20}} measures while it trains.
metrics: []

# Beside the record in the output folder: tensorboard, wandb.
loggers: []
"""
_PHOTOS = """\
  name: timm_vit
  model_name: vit_tiny_patch16_224
  pretrained: true          # downloads 23 MB, once; or checkpoint: a file of weights
  # img_size: 160           # smaller is faster
"""
_GLYPHS = """\
  name: vit_glyph           # bundled, small; for photographs take
  # name: timm_vit          # any plain vision transformer of timm
  # model_name: vit_tiny_patch16_224
  # pretrained: true
"""


def write_starter(
    what: str,
    file: Path | None,
    registry: Registry,
    *,
    backbone: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write what :func:`starter` returns.

    Args:
        what: A folder of images, or the name of a benchmark.
        file: Where to; ``None`` takes its name, in the working directory.
        registry: Knows the benchmarks and backbones.
        backbone: As in :func:`starter`.
        overwrite: Replace a file that is there.

    Returns:
        Where it was written.

    Raises:
        ConfigError: As :func:`starter`; also if the file is there, or cannot be written.
    """
    name = what.rpartition("/")[2] if what in registry.names("benchmark") else None
    file = file or Path(f"{name or Path(what).expanduser().resolve().name or 'images'}.yaml")
    text = starter(what, file, registry, backbone)
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already; name another file, or give --overwrite")
    write_file(file, text.encode(), parents=True)
    return file


def starter(what: str, file: Path, registry: Registry, backbone: str | None = None) -> str:
    """Return a configuration as YAML with comments.

    Args:
        what: A folder of images, or the name of a benchmark.
        file: Where it will be, for the comments.
        registry: Knows the benchmarks and backbones.
        backbone: Name of a backbone; ``None`` takes one that suits the images.

    Raises:
        ConfigError: If it is both a folder and a benchmark, or a benchmark that needs more.
        DataError: If there are no images in the folder.
        UnknownComponentError: If it is neither, or there is no such backbone.
    """
    if backbone is not None:
        registry.get("backbone", backbone)
    known, folder = what in registry.names("benchmark"), Path(what).expanduser()
    if known and folder.is_dir():
        raise ConfigError(
            f"{show(what)} is a benchmark, and a folder here; for the folder write ./{what}, for "
            "the benchmark call peftcl elsewhere"
        )
    if folder.is_dir() or (not known and ("/" in what or what.startswith("."))):
        found = look_into(folder)
        name = visible(folder.resolve().name) or "images"
        title = f"A run on the images in {visible(folder)}"
        return _fill(file, title, name, *_of_folder(found, backbone))
    if what in _ELSEWHERE:
        raise ConfigError(f"{what}: {_ELSEWHERE[what]}")
    try:
        registry.get("benchmark", what)
    except UnknownComponentError as error:
        raise UnknownComponentError(f"there is no folder {what}, and {error}") from error
    return _fill(file, f"A run on {what}", what.replace("/", "_"), *_of_benchmark(what, backbone))


def _fill(file: Path, title: str, name: str, about: str, benchmark: str, backbone: str) -> str:
    output = f"runs/{name}"
    text = _TEXT.format(
        title=f"{title}, written by peftcl init.",
        file=visible(file),
        output=output,
        output_yaml=_scalar(output),
        about=about,
        benchmark=benchmark,
        backbone=backbone,
    )
    config_from(text)
    return text


def _of_folder(found: ImageFolder, wanted: str | None) -> tuple[str, str, str]:
    count = len(found.classes)
    about = f"# {found.images:,} images of {count} classes: {_listed(found.classes)}\n"
    lines = ["name: image_folder", f"root: {_scalar(str(found.root))}"]
    if found.domains:
        about += f"# in {len(found.domains)} domains: {_listed(found.domains)}\n"
        lines += [
            "scenario: domain          # an experience a domain; class joins them",
            f"# domain_order: {_flow(found.domains[:_MOST])}",
        ]
    else:
        lines += ["scenario: class           # or task, online", *_sizes(count)]
    if not found.split:
        lines.append("test_share: 0.2           # there is no test split: every fifth image, drawn")
    if wanted == "vit_glyph":
        lines.append("augment: none             # letters and digits; random_resized_crop mirrors")
    else:
        lines += [
            "augment: random_resized_crop  "
            "# none for what must not be cropped or mirrored, as text",
            "crop_scale: [0.3, 1.0]",
        ]
    lines.append("# train_per_class: 100    # fewer images, to try it out")
    return about, _indented(lines), _backbone(wanted, _PHOTOS)


def _of_benchmark(name: str, wanted: str | None) -> tuple[str, str, str]:
    lines, backbone = [f"name: {name}"], _PHOTOS
    if name in CLASSES:
        lines += ["scenario: class           # or task, online", *_sizes(CLASSES[name])]
    if name == "image_list":
        lines += [
            "root: path/to/images      # with train.txt and test.txt, see the options",
            "scenario: class           # or task, domain, online",
            "n_experiences: 5",
        ]
    if name == "hf_dataset":
        lines += [
            "dataset: OWNER/NAME       # on the Hub, or a folder, or a Parquet file",
            "scenario: class           # or task, domain, online",
            "n_experiences: 5",
        ]
    if name in _DIGITS:
        backbone = _GLYPHS
    elif name in CLASSES:
        lines.append("# root: path/to/files     # else in Avalanche's data folder")
    lines.append(f"# further options: peftcl list benchmark {name}")
    return "", _indented(lines), _backbone(wanted, backbone)


def _backbone(wanted: str | None, suits: str) -> str:
    """Return the lines of the backbone: one that suits the images, or the one that was named."""
    if wanted is None:
        return suits
    known = {"timm_vit": _PHOTOS, "vit_glyph": _GLYPHS}
    named = f"  name: {_scalar(wanted)}\n  # its options: peftcl list backbone {visible(wanted)}\n"
    return known.get(wanted, named)


def _sizes(classes: int) -> list[str]:
    """Return how many experiences there are: equally large ones, if they can be."""
    if classes < 2:
        raise ConfigError(
            "there is one class, in one domain: nothing to tell apart, and nothing to learn in turn"
        )
    for n in range(min(_MOST, classes // 2), 1, -1):
        if classes % n == 0:
            return [f"n_experiences: {n}          # each with {classes // n} classes"]
    n = min(5, classes)
    sizes = [classes // n + (i < classes % n) for i in range(n)]
    return [f"classes_per_experience: {sizes}  # {classes} classes do not divide evenly"]


def _scalar(text: str) -> str:
    """Return text as YAML reads it back, in one line."""
    return write_yaml({"": text}).partition(":")[2].strip() if text else "''"


def _flow(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_scalar, names))}]"


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _MOST else ""
    return visible(", ".join(names[:_MOST])) + more


def _indented(lines: Sequence[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)
