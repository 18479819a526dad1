"""The guides of this repository and the blocks of code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = sorted([ROOT / "README.md", *ROOT.glob("examples/**/*.md"), *ROOT.glob("plugins/**/*.md")])
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
