"""Images in the rows of a table of the library ``datasets``, encoded, in the table or in files."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from avalanche_peftcl.benchmarks.images.names import unreadable
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.backbones.images import read_image


class RowImages(Dataset[tuple[Image.Image, int]]):
    """Some rows of a table, as labelled images.

    Args:
        rows: Sequence of mappings; an image is a mapping with ``"bytes"`` or ``"path"``.
        column: Where the image is.
        indices: Which rows, in which order.
        targets: The label of each of these.
        split: Name of the table, for the names of images.
        sizes: Bytes of the image of every row of the table, ``None`` of one in a file; left out,
            rows are read for them.

    Example:
        >>> file = BytesIO()
        >>> Image.new("RGB", (4, 3)).save(file, "png")
        >>> rows = [{"image": {"bytes": file.getvalue(), "path": None}}] * 2
        >>> images = RowImages(rows, "image", [1], [7], split="train")
        >>> images[0][0].size, images[0][1], images.name(0)
        ((4, 3), 7, 'train/1')
    """

    def __init__(
        self,
        rows: Any,
        column: str,
        indices: Sequence[int],
        targets: Sequence[int],
        *,
        split: str,
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        self.rows, self.column, self.split, self._sizes = rows, column, split, sizes
        self.indices = list(indices)
        self.targets = [int(target) for target in targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        content, name = self.content(index), f"row {self.indices[index]} of split {self.split!r}"
        return read_image(BytesIO(content), name), self.targets[index]

    def name(self, index: int) -> str:
        """Return the name of the split and the number of the row."""
        return f"{self.split}/{self.indices[index]}"

    def size(self, index: int) -> int:
        """Return the number of bytes of the encoded image.

        Raises:
            DataError: As :meth:`content`.
        """
        size = None if self._sizes is None else self._sizes[self.indices[index]]
        if size is not None:
            return size
        cell = self._cell(index)
        if cell.get("bytes") is not None:
            return len(cell["bytes"])
        try:
            return Path(cell["path"]).stat().st_size
        except OSError as error:
            raise unreadable(Path(cell["path"]), error) from error

    def content(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: If there is none, or its file cannot be read.
        """
        cell = self._cell(index)
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise unreadable(Path(cell["path"]), error) from error

    def _cell(self, index: int) -> Mapping[str, Any]:
        """Return an image as the table has it: one of its bytes and its path is there."""
        cell: Mapping[str, Any] = self.rows[self.indices[index]][self.column] or {}
        if cell.get("bytes") is None and not cell.get("path"):
            raise DataError(
                f"row {self.indices[index]} of split {self.split!r} has no image in column "
                f"{self.column!r}; take it out"
            )
        return cell
