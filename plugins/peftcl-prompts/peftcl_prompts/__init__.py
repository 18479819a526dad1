"""Methods that train prompts in front of a frozen network.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl import Component, Costs, hookimpl

_HERE = "peftcl_prompts"


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the methods; each serves every scenario, if it says no other."""
    head = "D + 1"  # a row of it
    yield Component(
        "l2p",
        f"{_HERE}.l2p:build_l2p",
        source="L2P, arXiv 2112.08654",
        costs=Costs(step="2", test="2", per_class=head, once="P"),
    )
    yield Component(
        "dualprompt",
        f"{_HERE}.dualprompt:build_dualprompt",
        source="DualPrompt, arXiv 2204.04799",
        costs=Costs(
            step="2",
            test="2",
            per_class=head,
            per_experience="31*D",
            once="P - 31*D",
        ),  # three blocks of five keys and values, and a key
    )
    yield Component(
        "coda_prompt",
        f"{_HERE}.coda_prompt:build_coda_prompt",
        source="CODA-Prompt, arXiv 2211.13218",
        costs=Costs(step="2", test="2", per_class=head, per_experience="P"),
    )
    yield Component(
        "s_prompts",
        f"{_HERE}.s_prompts:build_s_prompts",
        source="S-Prompts, arXiv 2207.12819",
        scenarios=("domain",),
        costs=Costs(test="2", per_class="T*(D + 1)", per_experience="P + 5*D"),
    )
    yield Component(
        "s_li_prompts",
        f"{_HERE}.s_li_prompts:build_s_li_prompts",
        source="S-Prompts, arXiv 2207.12819",
        scenarios=("domain",),
        costs=Costs(
            test="2",
            per_class="T*D",
            per_experience="P + 5*D",
            once="32*D",
        ),  # the context, and that of the last texts: as wide as an embedding, which CLIP's are
    )
    yield Component(
        "one_prompt",
        f"{_HERE}.one_prompt:build_one_prompt",
        source="OnePrompt, arXiv 2402.04129",
        costs=Costs(per_class=head, once="P"),
    )
    yield Component(
        "vpt_nsp",
        f"{_HERE}.vpt_nsp:build_vpt_nsp",
        source="VPT-NSP, arXiv 2406.05658",
        costs=Costs(per_class=head, once="2*P + L*(D^2 + 16)"),
    )
    yield Component(
        "hide_prompt",
        f"{_HERE}.hide_prompt:build_hide_prompt",
        source="HiDe-Prompt, arXiv 2310.07234",
        scenarios=("class", "task"),
        costs=Costs(
            step="2",
            test="2",
            per_class="2*(D + 1) + 40*D",
            per_experience="50*D",
            once="P - 50*D",
            at_most=("per_class",),
        ),
    )


@hookimpl
def peftcl_strategy_plugins() -> Iterable[Component]:
    """Offer what completes OnePrompt to OVOR, for any method with one trained head."""
    yield Component(
        "virtual_outliers",
        f"{_HERE}.virtual_outliers:build_virtual_outliers",
        source="OVOR, arXiv 2402.04129",
        scenarios=("class", "task", "domain"),
    )
