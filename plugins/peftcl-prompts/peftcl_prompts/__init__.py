"""Methods that train prompts in front of a frozen network.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, hookimpl

_HERE = "peftcl_prompts"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the methods."""
    yield Component("l2p", f"{_HERE}.l2p:build_l2p", source="L2P, arXiv 2112.08654")
    dualprompt = "DualPrompt, arXiv 2204.04799"
    yield Component("dualprompt", f"{_HERE}.dualprompt:build_dualprompt", source=dualprompt)
    coda = "CODA-Prompt, arXiv 2211.13218"
    yield Component("coda_prompt", f"{_HERE}.coda_prompt:build_coda_prompt", source=coda)
    s_prompts = "S-Prompts, arXiv 2207.12819"
    yield Component(
        "s_prompts", f"{_HERE}.s_prompts:build_s_prompts", source=s_prompts, scenarios=("domain",)
    )
    one = "OnePrompt, arXiv 2402.04129"
    yield Component("one_prompt", f"{_HERE}.one_prompt:build_one_prompt", source=one)
    nsp = "VPT-NSP, arXiv 2406.05658"
    yield Component("vpt_nsp", f"{_HERE}.vpt_nsp:build_vpt_nsp", source=nsp)
