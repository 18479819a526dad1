"""In what precision to compute."""

import warnings
from typing import Literal, cast

import torch

from avalanche_peftcl.errors import ConfigError, PrecisionWarning

Precision = Literal["no", "bf16", "fp16"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
WORDS: dict[str, str] = {"no": "float32", "bf16": "bf16 autocast", "fp16": "fp16 autocast"}
"""Each precision as records name it."""

_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86 and ARM
_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch before these


def native_bfloat16(device: str | torch.device) -> bool:
    """Return whether torch reports units for bfloat16 on ``device``.

    Elsewhere it is emulated, several times slower than float32. A torch that cannot tell counts as
    no.

    Args:
        device: A CPU or CUDA device; of any other kind nothing is known.
    """
    device = torch.device(device)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", None)
        if capabilities is not None:
            there = capabilities()
            return any(there.get(name, False) is True for name in _CAPABILITIES)
        return any(getattr(torch.cpu, name, bool)() for name in _CHECKS)
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if torch.version.hip is None:  # is_bf16_supported's rule, for any device and torch
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.cuda.is_bf16_supported())


def resolve_precision(asked: str, device: str | torch.device) -> Precision:
    """Return what ``mixed_precision`` means on ``device``.

    Args:
        asked: ``"auto"`` is ``"bf16"`` where :func:`native_bfloat16` says so, else ``"no"``.
        device: Where to compute.

    Raises:
        ConfigError: If it is none of the four.

    Warns:
        PrecisionWarning: If ``"bf16"`` is asked for where it is emulated.

    Example:
        >>> resolve_precision("no", "cpu")
        'no'
    """
    if asked not in ("auto", *WORDS):
        raise ConfigError(f"mixed_precision must be auto, no, bf16 or fp16, not {asked!r}")
    if asked == "auto":
        return "bf16" if native_bfloat16(device) else "no"
    if asked == "bf16" and not native_bfloat16(device):
        warnings.warn(
            f"mixed_precision=bf16, but torch reports no units for bfloat16 on {device}: emulated, "
            "it takes several times the time of float32; choose 'no' (float32), or 'auto'",
            PrecisionWarning,
            stacklevel=3,
        )
    return cast(Precision, asked)
