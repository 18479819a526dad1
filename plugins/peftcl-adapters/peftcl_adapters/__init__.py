"""Methods of parameter-efficient continual learning on adapters, SimpleCIL, APER and RanPAC first.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, hookimpl

_HERE = "peftcl_adapters"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the methods; each serves every scenario, if it says no other."""
    simplecil = "SimpleCIL, arXiv 2303.07338"
    yield Component("simplecil", f"{_HERE}.simplecil:build_simplecil", source=simplecil)
    yield Component("aper", f"{_HERE}.aper:build_aper", source="APER, arXiv 2303.07338")
    yield Component("ranpac", f"{_HERE}.ranpac:build_ranpac", source="RanPAC, arXiv 2307.02251")
    ssiat = "SSIAT, Tan et al., CVPR 2024; code 3f1f00d"
    yield Component("ssiat", f"{_HERE}.ssiat:build_ssiat", source=ssiat)
    slca = "SLCA++, arXiv 2408.08295; SLCA, ICCV 2023, code 169d4e6"
    yield Component("slca_pp", f"{_HERE}.slca_pp:build_slca_pp", source=slca)
    ease = "EASE, Zhou et al., CVPR 2024"
    yield Component(
        "ease",
        f"{_HERE}.ease:build_ease",
        source=ease,
        scenarios=("class", "task", "online"),
    )
    yield Component(
        "mos",
        f"{_HERE}.mos:build_mos",
        source="MOS, Sun et al., AAAI 2025, as described",
        scenarios=("class", "task", "online"),
    )
    yield Component(
        "c_ada",
        f"{_HERE}.c_ada:build_c_ada",
        source="C-ADA, ECCV 2024, from its abstract",
        scenarios=("class", "task", "online"),
    )


@hookimpl
def peftcl_modules() -> Iterable[Component]:
    """Offer what APER adapts beside adapters."""
    yield Component("ssf", f"{_HERE}.ssf:build_ssf", source="SSF, arXiv 2210.08823")
    yield Component("vpt", f"{_HERE}.vpt:build_vpt", source="VPT, arXiv 2203.12119")
