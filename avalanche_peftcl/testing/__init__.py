"""Contract tests for method authors: subclass one, write its method, and pytest runs the suite."""

from avalanche_peftcl.testing.backbone import BackboneContract
from avalanche_peftcl.testing.benchmark import BenchmarkContract
from avalanche_peftcl.testing.branch import BranchContract
from avalanche_peftcl.testing.captions import captioned_backbone, captioned_benchmark
from avalanche_peftcl.testing.costs import Counted, count_costs, differing_costs
from avalanche_peftcl.testing.head import HeadContract
from avalanche_peftcl.testing.learnable import (
    blind_backbone,
    learnable_benchmark,
    learnable_images,
    seeing_backbone,
)
from avalanche_peftcl.testing.logger import LoggerContract
from avalanche_peftcl.testing.metric import MetricContract
from avalanche_peftcl.testing.packages import (
    check_configuration,
    check_export,
    check_goes_on,
    check_run,
    install_for_tests,
    toy_run,
)
from avalanche_peftcl.testing.plugin import PluginContract
from avalanche_peftcl.testing.strategy import StrategyContract
from avalanche_peftcl.testing.toys import (
    toy_backbone,
    toy_benchmark,
    toy_image_text,
    toy_images,
)

__all__ = [
    "BackboneContract",
    "BenchmarkContract",
    "BranchContract",
    "Counted",
    "HeadContract",
    "LoggerContract",
    "MetricContract",
    "PluginContract",
    "StrategyContract",
    "blind_backbone",
    "captioned_backbone",
    "captioned_benchmark",
    "check_configuration",
    "check_export",
    "check_goes_on",
    "check_run",
    "count_costs",
    "differing_costs",
    "install_for_tests",
    "learnable_benchmark",
    "learnable_images",
    "seeing_backbone",
    "toy_backbone",
    "toy_benchmark",
    "toy_image_text",
    "toy_images",
    "toy_run",
]
