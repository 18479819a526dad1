"""Methods of parameter-efficient continual learning on adapters, SimpleCIL, APER and RanPAC first.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, Costs, hookimpl

_HERE = "peftcl_adapters"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the methods; each serves every scenario, if it says no other."""
    adapters = "L*(2*D*r + r + D)"  # floats of a set of them
    yield Component(
        "simplecil",
        f"{_HERE}.simplecil:build_simplecil",
        source="SimpleCIL, arXiv 2303.07338",
        costs=Costs(step="0", per_class="D"),
    )
    yield Component(
        "aper",
        f"{_HERE}.aper:build_aper",
        source="APER, arXiv 2303.07338",
        costs=Costs(test="2", per_class="2*D", once="P + C1*D"),
    )
    yield Component(
        "ranpac",
        f"{_HERE}.ranpac:build_ranpac",
        source="RanPAC, arXiv 2307.02251",
        costs=Costs(per_class="2*M", once="P + C1*D + D*M + M^2"),
    )
    yield Component(
        "ssiat",
        f"{_HERE}.ssiat:build_ssiat",
        source="SSIAT, Tan et al., CVPR 2024; code 3f1f00d",
        costs=Costs(per_class="3*D + D^2", once="P", at_most=("per_class",)),
    )
    yield Component(
        "slca_pp",
        f"{_HERE}.slca_pp:build_slca_pp",
        source="SLCA++, arXiv 2408.08295; SLCA, ICCV 2023, code 169d4e6",
        costs=Costs(per_class="3*D + D^2 + 2", once="P", at_most=("per_class",)),
    )
    yield Component(
        "ease",
        f"{_HERE}.ease:build_ease",
        source="EASE, Zhou et al., CVPR 2024",
        costs=Costs(test="T", per_class="2*T*D + D", per_experience=adapters),
    )
    yield Component(
        "mos",
        f"{_HERE}.mos:build_mos",
        source="MOS, Sun et al., AAAI 2025, as described",
        scenarios=("class", "task", "online"),
        costs=Costs(
            test="5", per_class="4*D + D^2 + 1", per_experience=adapters, at_most=("test",)
        ),
    )
    yield Component(
        "c_ada",
        f"{_HERE}.c_ada:build_c_ada",
        source="C-ADA, ECCV 2024, from its abstract",
        costs=Costs(per_class="D + 1", per_experience=adapters, once="2*L*D"),
    )


@hookimpl
def peftcl_modules() -> Iterable[Component]:
    """Offer what APER adapts beside adapters."""
    yield Component("ssf", f"{_HERE}.ssf:build_ssf", source="SSF, arXiv 2210.08823")
    yield Component("vpt", f"{_HERE}.vpt:build_vpt", source="VPT, arXiv 2203.12119")
