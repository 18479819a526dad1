"""Where data sets that no library downloads are to be had, and how their files have to lie."""

import re
from pathlib import Path
from typing import NamedTuple


class Home(NamedTuple):
    """A data set's place on the web.

    Args:
        title: Its name.
        url: Its page.
        layout: What to do with its files.
    """

    title: str
    url: str
    layout: str


_NO_SPLIT = "it has class folders and no split: sort them into {train,test}, or give test_share=0.2"
_COLLECTED = "it comes as {train,test}/class"

HOMES = {
    "imagenetr": Home(
        "ImageNet-R (200 classes)", "https://github.com/hendrycks/imagenet-r", _NO_SPLIT
    ),
    "imageneta": Home(
        "ImageNet-A (200 classes)",
        "https://github.com/hendrycks/natural-adv-examples",
        _NO_SPLIT,
    ),
    "domainnet": Home(
        "DomainNet (345 classes in six domains)",
        "http://ai.bu.edu/M3SDA/",
        "put domain/class and the lists domain_train.txt and domain_test.txt into one folder and "
        "read it with the benchmark image_list",
    ),
    "omnibenchmark": Home(
        "OmniBenchmark (300 classes chosen for continual learning)",
        "https://github.com/zhoudw-zdw/RevisitingCIL",
        _COLLECTED,
    ),
    "vtab": Home(
        "VTAB (50 classes of five data sets chosen for continual learning)",
        "https://github.com/zhoudw-zdw/RevisitingCIL",
        _COLLECTED,
    ),
    "plantvillage": Home(
        "PlantVillage (38 classes)",
        "https://github.com/spMohanty/PlantVillage-Dataset",
        "the class folders are in raw/color; " + _NO_SPLIT,
    ),
    "kvasir": Home("Kvasir (8 classes)", "https://datasets.simula.no/kvasir/", _NO_SPLIT),
    "notmnist": Home(
        "notMNIST (letters A to J)",
        "http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
        "unpack notMNIST_small.tar.gz to notMNIST_small/{A,B,...,J}",
    ),
}


def where_to_get(folder: Path) -> str:
    """Return where a data set is to be had that ``folder`` seems to be named after, or nothing.

    Args:
        folder: A folder that is missing, or one in it.

    Example:
        >>> where_to_get(Path("data/kvasir-v2/train"))[:62]
        '; if this is to be Kvasir (8 classes): it is at https://datase'
        >>> where_to_get(Path("data/cats"))
        ''
    """
    for part in reversed(folder.parts[-3:]):
        name = re.sub("[^a-z]", "", part.lower())
        for key, home in HOMES.items():
            if name.startswith(key):
                return f"; if this is to be {home.title}: it is at {home.url} ({home.layout})"
    return ""
