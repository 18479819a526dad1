"""CORe50: objects filmed in sessions; by classes, or session by session."""

from pathlib import Path

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.datasets import CORe50Dataset

from avalanche_peftcl.benchmarks.images.datasets import ImageFiles
from avalanche_peftcl.benchmarks.images.plain_pickle import read_plain
from avalanche_peftcl.benchmarks.sources.classic import folder_names
from avalanche_peftcl.benchmarks.sources.download import Download, Loaded
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry.takes import takes

_IMAGES = "core50_128x128"
_EXPERIENCES = 10


class _Files(CORe50Dataset):
    """The host's data set, whose pickles are read as data; it writes no lists of its own."""

    def _load_metadata(self) -> bool:
        files = [self.root / f"{name}.pkl" for name in ("paths", "labels", "LUP")]
        if not (self.root / _IMAGES).is_dir() or not all(file.is_file() for file in files):
            return False
        paths, labels, places = map(read_plain, files)
        # any run of the scenario of new instances has all images; its last batch is the test
        labels, places = labels["ni"][0], places["ni"][0]
        targets = [label for batch in labels for label in batch]
        chosen = [i for batch in places[:-1] for i in batch] if self.train else places[-1]
        self.paths = [_below(str(paths[i])) for i in chosen]
        self.targets = [int(targets[i]) for i in chosen]
        return True


def _below(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"paths.pkl names {path!r}, which is not below {_IMAGES}")
    return path


def _load(root: Path, train: bool, download: bool) -> Loaded:
    dataset = _Files(root, train=train, download=download)
    paths = [root / _IMAGES / path for path in dataset.paths]
    return ImageFiles(paths, dataset.targets, root=root), folder_names(paths, dataset.targets)


CORE50_FILES = Download(
    "core50",
    "CORe50",
    _load,
    folder="core50",
    files="the folder core50_128x128, paths.pkl, LUP.pkl and labels.pkl",
    default_experiences=_EXPERIENCES,
)


@takes(StreamOptions)
def core50(
    *,
    root: Path | None = None,
    download: bool = True,
    domain_order: list[str] | None = None,
    options: StreamOptions,
) -> CLScenario:
    """Make a benchmark from CORe50: 50 objects, 128 pixels, filmed in 11 sessions.

    The images of the sessions s3, s7 and s10 are the test images. Scenario ``"domain"`` has the
    other eight sessions in turn, each with all objects, and one test experience of all test images.

    Args:
        root: Folder of the files; ``None`` takes ``core50`` in Avalanche's data folder.
        download: Fetch what is missing in ``root``.
        domain_order: Names of the eight sessions in order of arrival; ``None``: s1, s2, s4, s5, s6,
            s8, s9, s11.
        n_experiences: Number of experiences with equally many classes. ``None``: 10, or as many as
            ``classes_per_experience`` or the sessions are.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: The files are missing or could not be downloaded; a split does not divide; images
            are not those of the manifest.
    """
    domains, n_experiences = options.scenario == "domain", options.n_experiences
    if not domains and n_experiences is None and options.classes_per_experience is None:
        n_experiences = _EXPERIENCES
    if domain_order is not None and not domains:
        raise ConfigError(
            f"domain_order={domain_order} orders the sessions of scenario 'domain'; leave it out"
        )
    train, test, class_names = CORE50_FILES.get(root, download)
    sessions = [train.name(i).split("/")[1] for i in range(len(train))]
    names = sorted(set(sessions), key=lambda name: (len(name), name))  # s2 before s11
    if domain_order is not None:
        if sorted(domain_order) != sorted(names):
            raise ConfigError(
                f"domain_order={domain_order} does not name each session once: {names}"
            )
        names = domain_order
    number = {name: d for d, name in enumerate(names)}
    return make_benchmark(
        train,
        test,
        class_names=class_names,
        train_domains=[number[name] for name in sessions],
        domain_names=names,
        **vars(options) | {"n_experiences": n_experiences},
    )
