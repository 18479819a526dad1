"""Images named in list files, as DomainNet comes: one ``path label`` a line."""

import json
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
from avalanche_peftcl.registry.wording import join, show

_SHOWN = 3  # names in a message


@takes(StreamOptions)
def image_list(
    *,
    root: Path,
    domains: list[str] | None = None,
    class_names: Path | None = None,
    options: StreamOptions,
) -> CLScenario:
    """Make a benchmark from ``root/{train,test}.txt`` or ``root/domain_{train,test}.txt``.

    A line of a list is ``path label``: the path relative to ``root``, with forward slashes, the
    label a number from 0. A class is named after the folder of its images, unless a file has the
    names. No image may be listed for both training and test.

    Args:
        root: Folder of the lists and of the images.
        domains: Names of the domains in order of arrival; scenario ``"domain"`` has one experience
            a domain, the others join them. ``None``: there is one pair of lists and no domain.
        class_names: File of the names of the classes, in order of their labels: one a line, or a
            JSON list where it ends in ``.json``. Images may then lie in any folders. ``None``: a
            label stands for one folder, which has the name.
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
            or a folder for two labels and ``class_names`` is left out; that file has more or fewer
            names than there are labels, an empty one or one twice; a split does not divide; images
            are not those of the manifest.
    """
    root = Path(root)
    if domains is not None and (not domains or len(set(domains)) < len(domains)):
        raise ConfigError(f"domains={domains} does not name each domain once")
    rows: dict[Literal["train", "test"], list[tuple[int, Path, int]]] = {"train": [], "test": []}
    names: dict[int, str] = {}  # of folders
    labels: dict[str, int] = {}
    highest = 0
    listed: dict[Path, tuple[str, str]] = {}
    for part, found in rows.items():
        for d, domain in enumerate(domains or [""]):
            file = root / (f"{domain}_{part}.txt" if domain else f"{part}.txt")
            for number, (path, label) in enumerate(_read(file, root), start=1):
                name = normal(path.parent.name)
                highest = max(highest, label)
                if class_names is None and names.setdefault(label, name) != name:
                    raise DataError(
                        f"{file}, line {number}: label {label} is the folder {name!r} here and "
                        f"{names[label]!r} before; a label stands for one class, whose name may be "
                        "given in a file: class_names"
                    )
                if class_names is None and labels.setdefault(name, label) != label:
                    raise DataError(
                        f"{file}, line {number}: the folder {name!r} has label {label} here and "
                        f"{labels[name]} before; a folder stands for one class, unless names are "
                        "given in a file: class_names"
                    )
                where = f"{file}, line {number}"
                if (before := listed.setdefault(path, (part, where)))[0] != part:
                    raise DataError(
                        f"{where}: {path} is listed for training too, in {before[1]}; no image may "
                        "be trained on and tested on"
                    )
                found.append((d, path, label))
    n_classes = highest + 1
    if n_classes > len(rows["train"]):
        raise DataError(
            f"labels in {root} go up to {highest}, but there are {len(rows['train'])} training "
            "images; number the classes from 0 without gaps"
        )
    if class_names is None:
        told = [names.get(label, str(label)) for label in range(n_classes)]
    else:
        told = _read_names(Path(class_names), n_classes)
    datasets = {
        part: ImageFiles([path for _, path, _ in found], [y for _, _, y in found], root=root)
        for part, found in rows.items()
    }
    return make_benchmark(
        datasets["train"],
        datasets["test"],
        class_names=told,
        train_domains=[d for d, _, _ in rows["train"]] if domains else None,
        test_domains=[d for d, _, _ in rows["test"]] if domains else None,
        domain_names=domains,
        **vars(options),
    )


def _read_names(file: Path, n_classes: int) -> list[str]:
    """Return the name of each label."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        told = json.loads(text) if file.suffix.lower() == ".json" else text.splitlines()
    except FileNotFoundError as error:
        raise DataError(
            f"no file of class names {file}; expected a name a line, or a JSON list; a path is "
            "relative to the working directory, not to root"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the class names {file} cannot be read: {error}") from error
    if not isinstance(told, list):
        raise DataError(f"{file} holds {show(told)}, not a list of names in order of their labels")
    names: dict[str, int] = {}
    for number, each in enumerate(told):
        name = normal(each).strip() if isinstance(each, str) else ""
        if not name or not name.isprintable():
            raise DataError(f"{file}: the name of label {number} is {each!r}; give it in one line")
        if name in names:
            raise DataError(
                f"{file}: {name!r} is the name of the labels {names[name]} and {number}; each "
                "class needs its own"
            )
        names[name] = number
    if len(names) < n_classes:
        raise DataError(
            f"{file} has {len(names)} names for {n_classes} labels: label {len(names)} and those "
            "after it have none; add them in order, the first is of label 0"
        )
    if len(names) > n_classes:
        more = join(map(repr, list(names)[n_classes:]), most=_SHOWN)
        raise DataError(
            f"{file} has {len(names)} names for {n_classes} labels: no image has the label of "
            f"{more}; take the names out, or add the images to the lists"
        )
    return list(names)


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
