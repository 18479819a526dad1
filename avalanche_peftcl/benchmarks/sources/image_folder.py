"""Images in folders, one folder a class, with or without domains."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from avalanche.benchmarks import CLScenario

from avalanche_peftcl.benchmarks.images.datasets import ImageFiles
from avalanche_peftcl.benchmarks.images.folders import (
    LAYOUT,
    class_folders,
    draw_test,
    images_in,
    subfolders,
)
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry.ranges import TestShare
from avalanche_peftcl.registry.takes import takes

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")


@takes(StreamOptions)
def image_folder(
    *,
    root: Path,
    test_share: TestShare | None = None,
    domain_order: list[str] | None = None,
    own_classes: bool | None = None,
    in_memory: bool = False,
    options: StreamOptions,
) -> CLScenario:
    """Make a benchmark from ``root/{train,test}/class/`` or ``root/domain/{train,test}/class/``.

    Labels follow the sorted names of the class folders. Files count as images by their ending
    (``.jpg``, ``.png`` and whatever torchvision's ``ImageFolder`` takes); others and hidden ones
    are left out.

    With domain folders, scenario ``"domain"`` has one experience a domain, ``"class"`` and
    ``"online"`` join the domains, and ``"task"`` makes each domain a task with classes of its own,
    unless ``own_classes`` is false.

    Args:
        root: The folder.
        test_share: For data without a split, in ``root/class/`` or ``root/domain/class/``: the
            share of each class (in each domain) that is the test, drawn by
            :func:`.folders.draw_test`, the same for every ``seed``.
        domain_order: Names of all domains in order of arrival; ``None`` sorts them.
        own_classes: Whether folders of one name in two domains are two classes, named
            ``domain/class`` (the characters of alphabets), or one (photographs and sketches of a
            dog). ``None``: true in scenario ``"task"``, false in the others.
        in_memory: Decode every image at the start and keep it, 3 bytes a pixel: finds a broken
            file at once and saves the decoding in every epoch. Otherwise a broken file is found
            when it is read.
        n_experiences: Number of experiences with equally many classes; leave it out where each
            domain is an experience.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense for this folder.
        DataError: A folder is missing (the message says where to get a known data set) or has no
            images, an image lies beside or below them, a class has no test images, an image cannot
            be decoded (the message names the file), a split does not divide, images are not those
            of the manifest.
    """
    root = Path(root)
    domains = _find_domains(root, domain_order, split=test_share is None)
    if own_classes is None:
        own_classes = options.scenario == "task" and domains is not None
    if own_classes and (domains is None or options.scenario == "domain"):
        reason = f"{root} has no domain folders" if domains is None else "scenario is 'domain'"
        raise ConfigError(f"own_classes=True makes no sense: {reason}; leave it out")

    found: dict[str, list[tuple[int, str, Path]]] = {"train": [], "test": []}
    for d, domain in enumerate(domains or [""]):
        for part, folder, paths in _class_folders(root / domain, test_share):
            name = normal(f"{domain}/{folder.name}" if own_classes else folder.name)
            found[part] += [(d, name, path) for path in paths]
    cells = {part: {(d, name) for d, name, _ in files} for part, files in found.items()}
    for part, other in (("train", "test"), ("test", "train")):
        if lacking := sorted(cells[other] - cells[part]):
            d, name = lacking[0]
            domain = domains[d] if domains else ""
            more = f" (and {len(lacking) - 1} more classes)" if lacking[1:] else ""
            raise DataError(
                f"class {name!r} of {root / domain / other} has no images in "
                f"{root / domain / part}{more}; add some or take the class out"
            )
    class_names = sorted({name for _, name in cells["train"]})
    if own_classes:  # domain by domain, in order of arrival
        class_names = [name for _, name in sorted(cells["train"])]
    arrival: dict[str, Any] = {}
    by_domain = own_classes and options.scenario == "task"
    if by_domain:
        for option in ("n_experiences", "classes_per_experience", "class_order"):
            if (value := vars(options)[option]) is not None:
                raise ConfigError(
                    f"{option}={value}: each of the {len(domains or [])} domains is a task with "
                    "its own classes; leave it out (domain_order gives the order), or say "
                    "own_classes=False to join the domains"
                )
        sizes = [sum(d == at for at, _ in cells["train"]) for d in range(len(domains or []))]
        arrival = {"classes_per_experience": sizes, "class_order": list(range(len(class_names)))}

    elif domains and options.scenario != "domain" and not _says_sizes(options):
        raise ConfigError(
            f"{root} has the domains {', '.join(domains)}: take scenario='domain' for one "
            f"experience each; scenario={options.scenario!r} joins them, and needs n_experiences "
            "or classes_per_experience"
        )

    label = {name: i for i, name in enumerate(class_names)}
    datasets = {
        part: ImageFiles(
            [path for _, _, path in files],
            [label[name] for _, name, _ in files],
            root=root,
            in_memory=in_memory,
        )
        for part, files in found.items()
    }
    benchmark = make_benchmark(
        datasets["train"],
        datasets["test"],
        class_names=class_names,
        train_domains=[d for d, _, _ in found["train"]] if domains else None,
        test_domains=[d for d, _, _ in found["test"]] if domains else None,
        domain_names=[normal(domain) for domain in domains] if domains else None,
        **vars(options) | arrival,
    )
    if by_domain:
        benchmark.domains = [normal(domain) for domain in domains or []]
    return benchmark


def _class_folders(
    root: Path, test_share: float | None
) -> Iterator[tuple[Part, Path, Sequence[Path]]]:
    """Yield split, folder and images of each class, classes in order of their names."""
    if test_share is None:
        for part in PARTS:
            for folder in class_folders(root / part):
                yield part, folder, images_in(folder)
        return
    for folder in subfolders(root):  # of a whole data set, a picture beside them is usual
        split = draw_test(images_in(folder), test_share, what=f"the class folder {folder}")
        yield from ((part, folder, paths) for part, paths in zip(PARTS, split, strict=True))


def _says_sizes(options: StreamOptions) -> bool:
    return options.n_experiences is not None or options.classes_per_experience is not None


def _find_domains(root: Path, domain_order: list[str] | None, *, split: bool) -> list[str] | None:
    """Return the names of the domain folders in order, or None if there are none.

    Args:
        root: The folder.
        domain_order: Their order, or ``None`` for that of the names.
        split: Whether there are folders ``train`` and ``test``.
    """
    folders = subfolders(root)
    if not folders:
        raise DataError(f"{root} has no folders; expected {LAYOUT}")
    if not split:
        _refuse_a_split(root, folders)
    names = [folder.name for folder in folders]
    if split:
        flat = bool(set(PARTS) & set(names)) and not all(map(_parts, folders))
    else:
        flat = not subfolders(folders[0])
    if flat:
        if domain_order is not None:
            raise ConfigError(f"domain_order={domain_order}, but {root} has no domain folders")
        return None
    if domain_order is None:
        return names
    spelt = {normal(name): name for name in names}
    if sorted(map(normal, domain_order)) != sorted(spelt):
        raise ConfigError(
            f"domain_order={domain_order} does not name each of the domains of {root} once: {names}"
        )
    return [spelt[normal(name)] for name in domain_order]


def _refuse_a_split(root: Path, folders: Sequence[Path]) -> None:
    """Refuse to draw a test split where there is one; a class may be named like a part of it.

    Raises:
        ConfigError: If a folder named ``train`` or ``test`` holds folders of classes.
    """
    for place in (root, *folders):
        if not (parts := _parts(place)):
            continue
        way_out = "leave test_share out"
        if len(parts) == 1:
            other = next(part for part in PARTS if part != parts[0])
            way_out = f"put {other} beside it and leave test_share out"
            way_out += f", or give root={root / parts[0]}" if place == root else ""
        raise ConfigError(
            f"test_share draws a test split, but {place} has one: there are folders of classes in "
            f"{' and '.join(parts)}; {way_out}"
        )


def _parts(folder: Path) -> list[str]:
    """Return the parts of a split in ``folder``, each of which holds folders of classes."""
    found = subfolders(folder)
    return sorted(each.name for each in found if each.name in PARTS and subfolders(each))
