"""The package to copy: what it offers to avalanche_peftcl; import paths keep this light."""

from collections.abc import Iterable

from avalanche_peftcl import Component, Costs, hookimpl


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Offer the linear probe."""
    yield Component(
        "linear_probe",
        "peftcl_example.probe:linear_probe",
        source="arXiv 1610.01644",
        costs=Costs(per_class="D + 1"),
    )


@hookimpl
def peftcl_benchmarks() -> Iterable[Component]:
    """Offer the stripes."""
    yield Component("stripes", "peftcl_example.stripes:stripes", source="drawn by this package")
