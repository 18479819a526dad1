"""Features of a network that does not change, kept on disk: each minibatch is embedded once."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import part_of, replace_file
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.models.counting import uncounted_passes

VARIABLE = "AVALANCHE_PEFTCL_FEATURES"
"""Environment variable with the folder of the cache; unset or empty, there is none."""

_MOST = 4 * 2**30  # bytes in the folder
_KEPT = 0.8  # share of them that is left when there are more
_WIDEST = 2**16  # tokens that a feature can be one of
_END = ".safetensors"
_KEY = re.compile(rf"[0-9a-f]{{64}}{_END}")
_BEGUN = re.compile(r"[0-9a-f]{40}")  # the start of such a name, see part_of()


class FeatureCache:
    """What a network gave for a minibatch, by a hash of all that its bits depend on.

    That is the images to the bit and their number (a matrix product rounds otherwise in a batch of
    another size), the weights, what the network makes of a probe, the precision, the device, the
    threads and the version of torch. So a run is the same with a cache and without. Files are
    replaced in one step, several processes may share a folder, and a file that cannot be read is
    none. Where they take more than 4 GiB, those that were not used for longest are removed; what
    else lies in the folder stays.

    Args:
        network: In eval mode whenever it is asked; its heads do not count.
        folder: Where the files are; made if it is not there.
        most: Bytes in the folder.

    Attributes:
        asked: How many minibatches were asked for.
        found: How many of them were in a file.

    Raises:
        ConfigError: If the folder cannot be made.

    Example:
        >>> from avalanche_peftcl.models import FrozenBranch, PEFTModel
        >>> from avalanche_peftcl.testing import toy_backbone
        >>> network = PEFTModel(toy_backbone(), FrozenBranch()).eval()
        >>> images = torch.rand(2, 3, 16, 16)
        >>> with TemporaryDirectory() as folder, torch.no_grad():
        ...     cache = FeatureCache(network, Path(folder))
        ...     first, again = cache.embed(images), cache.embed(images)
        >>> torch.equal(first, again), cache.asked, cache.found
        (True, 2, 1)
    """

    def __init__(self, network: DynamicModel, folder: Path, *, most: int = _MOST) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"features cannot be kept in {folder} ({error.strerror}); set {VARIABLE} to "
                "another folder, or to nothing"
            ) from error
        self._network, self._folder, self._most = network, folder, most
        self._state: tuple[object, ...] = ()
        self._digest = b""
        self._bytes: int | None = None  # in the folder, as far as is known
        self.asked = self.found = 0

    @classmethod
    def of_environment(cls, network: DynamicModel) -> "FeatureCache | None":
        """Return the cache in the folder that the environment names, if it does."""
        named = os.environ.get(VARIABLE)
        return cls(network, Path(named).expanduser()) if named else None

    def embed(self, images: Tensor) -> Tensor:
        """Return what the network makes of ``images``: ``(B, 3, H, W)`` to ``(B, D)``."""
        digest = hashlib.sha256(self._fingerprint(images))
        digest.update(f"{images.dtype} {tuple(images.shape)} {images.stride()}".encode())
        digest.update(_bytes_of(images))
        path = self._folder / f"{digest.hexdigest()}{_END}"
        self.asked += 1
        known = _read(path, images)
        if known is not None:
            self.found += 1
            return known
        features = self._network.embed(images)
        self._write(path, features)
        return features

    def _fingerprint(self, images: Tensor) -> bytes:
        """Return a hash of what the bits of features depend on beside the images."""
        kind = images.device.type
        behind = [*self._network.heads, self._network.classes]  # they read no image
        apart = {id(module) for part in behind for module in part.modules()}
        tensors = list(_tensors(self._network, lambda module: id(module) not in apart))
        around = (
            str(images.device),
            torch.cuda.get_device_name(images.device) if kind == "cuda" else "",
            torch.get_num_threads(),
            torch.__version__,
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            tuple(images.shape[1:]),
        )
        held = tuple((id(t), t.data_ptr(), t._version) for _, t in tensors)
        if self._state != (around, held):
            names = {name for name, _ in tensors}
            weights = weights_sha256(self._network, only=names)
            steps = torch.arange(images[:1].numel(), device=images.device, dtype=images.dtype)
            probe = torch.sin(steps).reshape(images[:1].shape)
            with uncounted_passes():  # it is no image of anybody's
                given = _bytes_of(self._network.embed(probe))
            said = f"{around} {weights}".encode()
            self._digest = hashlib.sha256(said + given).digest()
            self._state = (around, held)
        return self._digest

    def _write(self, path: Path, features: Tensor) -> None:
        """Keep features; where that is not possible they are computed again another time."""
        flat = features.detach().cpu().contiguous()
        content = save({"features": flat, "strides": torch.tensor(features.stride())})
        with suppress(OSError):
            replace_file(path, content)
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._held())
            else:
                self._bytes += len(content)
            if self._bytes > self._most:
                self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Remove the files that were not used for longest; what others wrote meanwhile counts."""
        held = self._held()
        self._bytes = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if self._bytes <= _KEPT * self._most:
                break
            path.unlink(missing_ok=True)  # another process may have been faster
            self._bytes -= size

    def _held(self) -> list[tuple[int, int, Path]]:
        """Return when each file of the cache was used, its size and its path.

        What a process that was killed left of one counts, and nothing of anybody else.
        """
        held = []
        for path in self._folder.iterdir():
            if _KEY.fullmatch(path.name) or _BEGUN.fullmatch(part_of(path.name) or ""):
                with suppress(FileNotFoundError):  # removed by another process meanwhile
                    there = path.stat()
                    held.append((there.st_mtime_ns, there.st_size, path))
        return held


@contextmanager
def shared_features() -> Iterator[None]:
    """Let the runs in it, and those of child processes, share a cache.

    It is gone afterwards, unless the environment names one, or says by an empty name that there
    shall be none.
    """
    if VARIABLE in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="peftcl-features-", ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def _tensors(
    network: nn.Module, wanted: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of the modules that are wanted, with their names."""
    for prefix, module in network.named_modules():
        if wanted(module):
            for name, tensor in (module._parameters | module._buffers).items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _read(path: Path, images: Tensor) -> Tensor | None:
    """Return what is in a file, laid out in memory as it was: sums over it round the same."""
    try:
        found = load(path.read_bytes())
        features, strides = found["features"], found["strides"].tolist()
        os.utime(path)  # used now
    except (OSError, SafetensorError, KeyError):
        return None
    if features.ndim != 2 or len(features) != len(images) or len(strides) != 2:
        return None
    if not 0 < min(strides) <= max(strides) <= _WIDEST * features.shape[1]:
        return None
    laid = torch.empty_strided(features.shape, strides, dtype=features.dtype, device=images.device)
    return laid.copy_(features)
