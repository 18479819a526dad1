"""The guides of this repository and the blocks of code in them."""

import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.plan import Plan, make_plan
from avalanche_peftcl.registry import discover

ROOT = Path(__file__).parents[2]
GUIDES = sorted([ROOT / "README.md", *ROOT.glob("examples/**/*.md"), *ROOT.glob("plugins/**/*.md")])
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r"# (\w+)\.py\n")
_NOT_RUN = "not run: "


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code: its guide, the line it begins at, what stands behind its fence, its text."""

    guide: Path
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def not_run(self) -> str | None:
        """The reason for which a block that a reader can run is not run here."""
        _, found, reason = self.info.partition(_NOT_RUN)
        return reason if found else None

    @property
    def module(self) -> str | None:
        """The name of the module that a Python block is the whole of: its first line says it."""
        named = _MODULE.match(self.text) if self.language == "python" else None
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.guide.relative_to(ROOT)}:{self.line}"


def blocks(*guides: Path) -> list[Block]:
    """Return the blocks of guides, by default of all, in the order in which they stand."""
    found = []
    for guide in guides or GUIDES:
        text = guide.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(guide=guide, line=line, info=match[1], text=match[2]))
    return found


def write_package(guide: Path, folder: Path) -> list[str]:
    """Write the modules of a guide as an installed distribution; return those with hooks."""
    modules = [block for block in blocks(guide) if block.module]
    for block in modules:
        (folder / f"{block.module}.py").write_text(block.text, encoding="utf-8")
    offering = [str(block.module) for block in modules if "@hookimpl" in block.text]
    _write_info(folder, "guide", {name: name for name in offering})
    return offering


def write_plugins(folder: Path) -> list[Path]:
    """Write of each package under plugins/ that is not installed what an installation would write.

    Returns:
        Folders that have to be on the path then.
    """
    wanted = []
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        try:
            version(project["name"])
        except PackageNotFoundError:
            points = project["entry-points"]["avalanche_peftcl"]
            _write_info(folder, project["name"].replace("-", "_"), points)
            wanted.append(file.parent)
    return wanted


def _write_info(folder: Path, name: str, points: dict[str, str]) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    said = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n",
        "entry_points.txt": "\n".join(
            ["[avalanche_peftcl]", *(f"{point} = {module}" for point, module in points.items()), ""]
        ),
    }
    for file, text in said.items():
        (info / file).write_text(text, encoding="utf-8")


def plan(config: RunConfig) -> Plan:
    """Plan a run; of several seeds that of the first."""
    one = config if config.seeds is None else config.for_seed(config.seeds[0])
    return make_plan(one, discover())
