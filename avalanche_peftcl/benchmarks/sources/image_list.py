"""Images named in list files, as DomainNet comes: one ``path label`` a line."""

import re
from pathlib import Path
from typing import Literal

from avalanche.benchmarks import CLScenario

from avalanche_peftcl.benchmarks.images.datasets import ImageFiles
from avalanche_peftcl.benchmarks.images.homes import where_to_get
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.benchmarks.stream.make_benchmark import Scenario, make_benchmark
from avalanche_peftcl.benchmarks.stream.splits import ClassOrder
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry.ranges import Count, CountOrNone, CropScale, Seed


def image_list(
    *,
    input_config: InputConfig,
    root: Path,
    domains: list[str] | None = None,
    scenario: Scenario = "class",
    n_experiences: Count | None = None,
    classes_per_experience: list[Count] | None = None,
    seed: Seed = 0,
    class_order: ClassOrder | None = None,
    experience_size: Count = 10,
    augment: Augment = "random_resized_crop",
    crop_scale: CropScale = (0.05, 1.0),
    train_per_class: Count | None = None,
    validation_per_class: CountOrNone = 0,
    manifest: Path | None = None,
) -> CLScenario:
    """Make a benchmark from ``root/{train,test}.txt`` or ``root/domain_{train,test}.txt``.

    A line of a list is ``path label``: the path relative to ``root``, with forward slashes, the
    label a number from 0. A class is named after the folder of its images. No image may be listed
    for both training and test.

    Args:
        input_config: What the backbone expects of an image.
        root: Folder of the lists and of the images.
        domains: Names of the domains in order of arrival; scenario ``"domain"`` has one experience
            a domain, the others join them. ``None``: there is one pair of lists and no domain.
        scenario: ``"class"``, ``"task"``, ``"domain"`` or ``"online"``, see
            :func:`.scenarios.make_benchmark`, also for the options below.
        n_experiences: Number of experiences with equally many classes; leave it out where each
            domain is an experience.
        classes_per_experience: Number of classes in each experience, instead.
        seed: Seed of the class order, of the subsets and of the chunks.
        class_order: Labels in order of arrival, or ``"natural"``, instead of drawing it.
        experience_size: Images in a chunk of scenario ``"online"``.
        augment: Augmentation in training.
        crop_scale: Share of the area that a random crop keeps, smallest and largest.
        train_per_class: Train on at most that many images of a class; ``None``, on all.
        validation_per_class: If positive, that many training images of a class replace the test
            images.
        manifest: File that lists the images; each is compared with it, which reads them all.

    Returns:
        The benchmark, see :func:`.scenarios.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario, a domain
            named twice.
        DataError: A list is missing (the message says where to get a known data set), empty or
            unreadable; an image is listed for training and test; a label stands for two folders
            or a folder for two labels; a split does not divide; images are not those of the
            manifest.
    """
    root = Path(root)
    if domains is not None and (not domains or len(set(domains)) < len(domains)):
        raise ConfigError(f"domains={domains} does not name each domain once")
    rows: dict[Literal["train", "test"], list[tuple[int, Path, int]]] = {"train": [], "test": []}
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    listed: dict[Path, tuple[str, str]] = {}
    for part, found in rows.items():
        for d, domain in enumerate(domains or [""]):
            file = root / (f"{domain}_{part}.txt" if domain else f"{part}.txt")
            for number, (path, label) in enumerate(_read(file, root), start=1):
                name = normal(path.parent.name)
                if names.setdefault(label, name) != name:
                    raise DataError(
                        f"{file}, line {number}: label {label} is the folder {name!r} here and "
                        f"{names[label]!r} before; a label stands for one class"
                    )
                if labels.setdefault(name, label) != label:
                    raise DataError(
                        f"{file}, line {number}: the folder {name!r} has label {label} here and "
                        f"{labels[name]} before; a folder stands for one class"
                    )
                where = f"{file}, line {number}"
                if (before := listed.setdefault(path, (part, where)))[0] != part:
                    raise DataError(
                        f"{where}: {path} is listed for training too, in {before[1]}; no image may "
                        "be trained on and tested on"
                    )
                found.append((d, path, label))
    n_classes = max(names) + 1
    if n_classes > len(rows["train"]):
        raise DataError(
            f"labels in {root} go up to {max(names)}, but there are {len(rows['train'])} training "
            "images; number the classes from 0 without gaps"
        )
    datasets = {
        part: ImageFiles([path for _, path, _ in found], [y for _, _, y in found], root=root)
        for part, found in rows.items()
    }
    return make_benchmark(
        datasets["train"],
        datasets["test"],
        input_config=input_config,
        scenario=scenario,
        n_experiences=n_experiences,
        classes_per_experience=classes_per_experience,
        seed=seed,
        class_order=class_order,
        class_names=[names.get(label, str(label)) for label in range(n_classes)],
        train_domains=[d for d, _, _ in rows["train"]] if domains else None,
        test_domains=[d for d, _, _ in rows["test"]] if domains else None,
        domain_names=domains,
        experience_size=experience_size,
        augment=augment,
        crop_scale=crop_scale,
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        manifest=manifest,
    )


def _read(file: Path, root: Path) -> list[tuple[Path, int]]:
    """Return path and label of each line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            f"no list {file}; expected root/{{train,test}}.txt or, with domains, "
            f"root/domain_{{train,test}}.txt{where_to_get(file)}"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"the list {file} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        path, _, label = line.strip().rpartition(" ")
        if not path or "\0" in path or not re.fullmatch("[0-9]{1,9}", label):
            raise DataError(f"{file}, line {number}: {line!r} is not of the form 'path label'")
        if path.startswith("/") or Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(
                f"{file}, line {number}: {path!r} is not below {root}; give it relative to that"
            )
        rows.append((root / path, int(label)))
    if not rows:
        raise DataError(f"the list {file} names no images")
    return rows
