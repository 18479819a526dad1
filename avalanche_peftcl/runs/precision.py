"""What ``mixed_precision: auto`` comes to in a run."""

import torch

from avalanche_peftcl.config.plan import Plan
from avalanche_peftcl.models.precision import WORDS, resolve_precision
from avalanche_peftcl.runs.reading import read_claim


def settle_precision(plan: Plan, *, device: torch.device | None, resume: bool) -> Plan:
    """Put what it means in the place of ``mixed_precision: auto``, for the record and for good.

    Args:
        plan: What to run.
        device: Where to compute; ``None`` leaves what the record does not say.
        resume: Whether a run keeps the precision that the record in its output folder states,
            whatever units there are here.
    """
    (strategy,) = plan.of("strategy")
    if strategy.option("mixed_precision") != "auto":
        return plan
    claim = read_claim(plan.config.output) if resume else None
    recorded = claim.config.get("strategy") if claim else None
    found = recorded.get("mixed_precision") if isinstance(recorded, dict) else None
    if found not in WORDS:
        if device is None:
            return plan
        found = resolve_precision("auto", device)
    return plan.with_option("strategy", "mixed_precision", found)
