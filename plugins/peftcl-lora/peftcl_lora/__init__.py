"""O-LoRA, InfLoRA, SD-LoRA and LAE: low-rank updates that leave earlier experiences alone.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, Costs, hookimpl

_HERE = "peftcl_lora"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the methods; each serves every scenario."""
    o_lora = "O-LoRA, arXiv 2310.14152"
    inflora = "InfLoRA, CVPR 2024; code e08b00e"
    lae = "LAE, ICCV 2023; code 1680e49"
    sd_lora = "SD-LoRA, ICLR 2025; code 8bacded"
    yield Component(
        "o_lora",
        f"{_HERE}.o_lora:build_o_lora",
        source=o_lora,
        costs=Costs(per_class="D + 1", per_experience="P"),
    )
    yield Component(
        "inflora",
        f"{_HERE}.inflora:build_inflora",
        source=inflora,
        costs=Costs(per_class="D + 1", per_experience="2*P", once="L*D^2/2", at_most=("once",)),
    )
    yield Component(
        "lae",
        f"{_HERE}.lae:build_lae",
        source=lae,
        costs=Costs(test="2", per_class="D + 1", once="2*P"),
    )
    yield Component(
        "sd_lora",
        f"{_HERE}.sd_lora:build_sd_lora",
        source=sd_lora,
        costs=Costs(per_class="D + 1", per_experience="P"),
    )
