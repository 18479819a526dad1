"""Data sets of the Hugging Face Hub, and local ones in its formats."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_peftcl.benchmarks.images.folders import draw_test
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.benchmarks.images.rows import RowImages
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry.ranges import TestShare
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.registry.wording import did_you_mean, join, say, show

_IMAGES, _LABELS = ("image", "img"), ("label", "labels")  # what they are called as a rule


@takes(StreamOptions)
def hf_dataset(
    *,
    dataset: str,
    subset: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_share: TestShare | None = None,
    image: str | None = None,
    label: str | None = None,
    domain: str | None = None,
    domain_order: list[str] | None = None,
    download: bool = True,
    options: StreamOptions,
) -> CLScenario:
    """Make a benchmark from a data set that the library ``datasets`` reads.

    Needs the extra ``[datasets]``. The library keeps a copy of what it reads in its cache.

    Args:
        dataset: ``"OWNER/NAME"`` on the Hub; or what is there: a folder of Parquet files or of
            images, a folder that ``save_to_disk`` wrote, or one Parquet file, which is the split
            ``"train"``.
        subset: Which of several subsets (configurations) of it.
        revision: Branch, tag or commit on the Hub; a commit never changes.
        train_split: Name of the training images' split.
        test_split: Name of the test images' split.
        test_share: For data without a test split: the share of each class (in each domain) of the
            training split that is the test, as of ``image_folder``; ``test_split`` is not read.
        image: Column of the images; ``None`` finds ``image`` or ``img``, or the only one.
        label: Column of the labels: named classes, whole numbers or texts; ``None`` finds
            ``label`` or ``labels``, or the only one with named classes.
        domain: Column of the domains, likewise; scenario ``"domain"`` has one experience a domain,
            the others join them.
        domain_order: Names of all domains in order of arrival; ``None`` takes their own order, or
            sorts them.
        download: Whether what is not on this machine is fetched.
        n_experiences: Number of experiences with equally many classes; leave it out where each
            domain is an experience.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`. Names of classes are those of the data set, or
        the labels themselves, sorted.

    Raises:
        ConfigError: ``datasets`` is not installed, an option is out of range, names no column or
            makes no sense.
        DataError: The data set cannot be loaded, has no such split, several columns that may be
            meant, or rows without label; an image cannot be decoded when it is read; a split does
            not divide; images are not those of the manifest.
    """
    splits = _load(dataset, subset, revision, download=download)
    parts = {"train": _split(splits, train_split, "train_split")}
    if test_share is None:
        parts["test"] = _split(splits, test_split, "test_split")
    features = parts["train"].features
    image = _column(features, image, "image", _IMAGES, _is_image)
    label = _column(features, label, "label", _LABELS, _has_names)
    if domain is not None:
        domain = _column(features, domain, "domain", (), _has_names)
    elif options.scenario == "domain" or domain_order is not None:
        raise ConfigError(
            "domains need the column that they stand in, domain: NAME; the columns are "
            + join(map(repr, features))
        )
    called = {"train": train_split, "test": test_split}
    labels, names = _numbered(parts, label, called)
    places, domains = _numbered(parts, domain, called, order=domain_order) if domain else ({}, [])
    rows = {part: list(range(len(split))) for part, split in parts.items()}
    if test_share is not None:
        rows = _drawn(labels["train"], places.get("train"), names, test_share)
        parts["test"], called["test"] = parts["train"], train_split
        labels["test"] = labels["train"]
        places |= {"test": places["train"]} if places else {}
    images = {}
    for part, split in parts.items():
        encoded = _encoded(split, image)
        images[part] = RowImages(
            encoded,
            image,
            rows[part],
            [labels[part][i] for i in rows[part]],
            split=called[part],
            sizes=_sizes(encoded, image),
        )
    return make_benchmark(
        images["train"],
        images["test"],
        class_names=names,
        train_domains=[places["train"][i] for i in rows["train"]] if places else None,
        test_domains=[places["test"][i] for i in rows["test"]] if places else None,
        domain_names=domains or None,
        **vars(options),
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"hf_dataset needs the library datasets, which cannot be imported ({say(error)}); "
            "pip install 'avalanche-peftcl[datasets]'"
        ) from error
    return datasets


def _load(
    dataset: str, subset: str | None, revision: str | None, *, download: bool
) -> Mapping[str, Any]:
    """Return every split by its name."""
    if not dataset.strip():
        raise ConfigError("dataset is empty; give OWNER/NAME, a folder or a Parquet file")
    place = Path(dataset)
    try:
        there = place.exists()
    except (OSError, ValueError):  # no path at all
        there = False
    if there and revision is not None:
        raise ConfigError(f"revision={show(revision)} is for the Hub, and {dataset} is here")
    if not there and not download:
        raise ConfigError(
            f"there is no folder or file {show(dataset)}, and download=False lets nothing be "
            "fetched from the Hub"
        )
    library = _library()
    try:
        with _quiet(library, local=there):
            if there and place.is_file():
                found = library.Dataset.from_parquet(str(place))
            elif there and any((place / f).is_file() for f in ("dataset_dict.json", "state.json")):
                found = library.load_from_disk(str(place))
            else:
                found = library.load_dataset(dataset, subset, revision=revision)
    except Exception as error:  # of the library, of files, of the net: each has its own kinds
        kept = "" if there else " from the Hub, and there is no such folder or file"
        raise DataError(f"{show(dataset)} cannot be loaded{kept}: {say(error)}") from error
    return found if isinstance(found, dict) else {"train": found}


@contextmanager
def _quiet(library: Any, *, local: bool) -> Iterator[None]:
    """Let the library draw bars of downloads only."""
    silenced = local and not library.are_progress_bars_disabled()
    if silenced:
        library.disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            library.enable_progress_bars()


def _split(splits: Mapping[str, Any], name: str, option: str) -> Any:
    if name in splits:
        return splits[name]
    drawn = ", or test_share: 0.2 to draw one" if option == "test_split" else ""
    raise DataError(
        f"the data set has no split {name!r}{did_you_mean(name, splits)}, it has {join(splits)}; "
        f"say which with {option}{drawn}"
    )


def _column(
    features: Mapping[str, Any],
    asked: str | None,
    option: str,
    usual: Sequence[str],
    fits: Callable[[Any], bool],
) -> str:
    """Return the column that is asked for, or the one that can only be meant."""
    if asked is not None:
        if asked not in features:
            raise ConfigError(
                f"{option}={asked!r} is no column{did_you_mean(asked, features)}; the columns are "
                + join(map(repr, features))
            )
        if option == "image" and not fits(features[asked]):
            raise ConfigError(f"the column {asked!r} holds no images")
        return asked
    found = [name for name in usual if name in features][:1]
    found = found or [name for name, feature in features.items() if fits(feature)]
    if len(found) == 1:
        return found[0]
    those = f"{join(map(repr, found))} may each be meant" if found else "none is named so"
    raise DataError(
        f"which column has the {option}? {those}; say so with {option}: NAME, the columns are "
        + join(map(repr, features))
    )


def _is_image(feature: Any) -> bool:
    """Whether a column holds encoded images; files of others do not say what they hold."""
    return type(feature).__name__ == "Image" or (
        isinstance(feature, Mapping) and {"bytes", "path"} <= feature.keys()
    )


def _has_names(feature: Any) -> bool:
    return getattr(feature, "names", None) is not None


def _encoded(split: Any, column: str) -> Any:
    """Return the column of images of a split, as they are encoded."""
    return split.select_columns([column]).cast_column(column, _library().Image(decode=False))


def _sizes(encoded: Any, column: str) -> list[int | None]:
    """Return the bytes of each image that the table holds; no image is read."""
    import pyarrow.compute as arrow  # a part of datasets

    table = encoded.with_format("arrow")[:]
    sizes: list[int | None] = arrow.binary_length(
        arrow.struct_field(table[column], "bytes")
    ).to_pylist()
    return sizes


def _numbered(
    parts: Mapping[str, Any],
    column: str,
    called: Mapping[str, str],
    *,
    order: Sequence[str] | None = None,
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the number of each row's class or domain, from 0, and the names of the numbers."""
    given = getattr(parts["train"].features[column], "names", None)
    for part, split in parts.items():
        if column not in split.features:
            raise DataError(f"split {called[part]!r} has no column {column!r}")
        if (other := getattr(split.features[column], "names", None)) != given:
            raise DataError(
                f"column {column!r} has other names in split {called[part]!r}, {show(other)}, than "
                f"in split {called['train']!r}, {show(given)}"
            )
    values = {part: list(split[column]) for part, split in parts.items()}
    for part, rows in values.items():
        for i, value in enumerate(rows):
            if isinstance(value, str) or (isinstance(value, int) and (given is None or value >= 0)):
                continue
            hidden = "; the labels of this split are not given away" if value == -1 else ""
            raise DataError(
                f"row {i} of split {called[part]!r} has {show(value)} in column {column!r}, which "
                f"is no class, whole number or text{hidden}"
            )
    if given is None:
        every = sorted({value for rows in values.values() for value in rows})
        number, names = {value: i for i, value in enumerate(every)}, [str(v) for v in every]
    else:
        number, names = {i: i for i in range(len(given))}, list(given)
    names = [normal(name) for name in names]
    if order is not None:
        wanted = list(map(normal, order))
        if sorted(wanted) != sorted(names):
            raise ConfigError(
                f"domain_order={list(order)} does not name each of the domains once: {names}"
            )
        number = {value: wanted.index(names[i]) for value, i in number.items()}
        names = wanted
    return {part: [number[value] for value in rows] for part, rows in values.items()}, names


def _drawn(
    labels: Sequence[int], places: Sequence[int] | None, names: Sequence[str], share: float
) -> dict[str, list[int]]:
    """Return the rows of training and test, drawn of each class in each domain."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        cells[0 if places is None else places[i], label].append(i)
    split: dict[str, list[int]] = {"train": [], "test": []}
    for (_, label), rows in sorted(cells.items()):
        drawn = draw_test(rows, share, what=f"class {names[label]!r}")
        for part, chosen in zip(split, drawn, strict=True):
            split[part] += chosen
    return {part: sorted(rows) for part, rows in split.items()}
