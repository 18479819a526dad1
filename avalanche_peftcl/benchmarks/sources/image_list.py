"""Images named in list files, as DomainNet comes: one ``path label`` a line."""

import re
from pathlib import Path
from typing import Literal

from avalanche.benchmarks import CLScenario

from avalanche_peftcl.benchmarks.images.datasets import ImageFiles
from avalanche_peftcl.benchmarks.images.homes import where_to_get
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry.takes import takes


@takes(StreamOptions)
def image_list(
    *, root: Path, domains: list[str] | None = None, options: StreamOptions
) -> CLScenario:
    """Make a benchmark from ``root/{train,test}.txt`` or ``root/domain_{train,test}.txt``.

    A line of a list is ``path label``: the path relative to ``root``, with forward slashes, the
    label a number from 0. A class is named after the folder of its images. No image may be listed
    for both training and test.

    Args:
        root: Folder of the lists and of the images.
        domains: Names of the domains in order of arrival; scenario ``"domain"`` has one experience
            a domain, the others join them. ``None``: there is one pair of lists and no domain.
        n_experiences: Number of experiences with equally many classes; leave it out where each
            domain is an experience.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

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
        class_names=[names.get(label, str(label)) for label in range(n_classes)],
        train_domains=[d for d, _, _ in rows["train"]] if domains else None,
        test_domains=[d for d, _, _ in rows["test"]] if domains else None,
        domain_names=domains,
        **vars(options),
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
