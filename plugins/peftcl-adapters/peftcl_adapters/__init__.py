"""SimpleCIL, APER and RanPAC: adapt in the first experience at most, then fit a head.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, hookimpl

_HERE = "peftcl_adapters"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the three methods; each serves every scenario."""
    simplecil = "SimpleCIL, arXiv 2303.07338"
    yield Component("simplecil", f"{_HERE}.simplecil:build_simplecil", source=simplecil)
    yield Component("aper", f"{_HERE}.aper:build_aper", source="APER, arXiv 2303.07338")
    yield Component("ranpac", f"{_HERE}.ranpac:build_ranpac", source="RanPAC, arXiv 2307.02251")
