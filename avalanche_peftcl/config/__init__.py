"""What is asked for: the settings of a run, from text to a checked configuration."""

from avalanche_peftcl.config.asked import config_from
from avalanche_peftcl.config.run_config import (
    ComponentConfig,
    RunConfig,
    load_config,
    parse_seeds,
)

__all__ = ["ComponentConfig", "RunConfig", "config_from", "load_config", "parse_seeds"]
