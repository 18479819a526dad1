import importlib
import importlib.metadata

import pytest

import avalanche_peftcl


def test_strategies_are_at_the_top_level_too():
    training = importlib.import_module("avalanche_peftcl.training")
    for name in ("NTKCL", "PEGP", "PEFTTemplate"):
        assert getattr(avalanche_peftcl, name) is getattr(training, name)
        assert name in avalanche_peftcl.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        avalanche_peftcl.no_such_name  # noqa: B018 (asking is the test)


def test_version_is_that_of_the_distribution():
    assert avalanche_peftcl.__version__ == importlib.metadata.version("avalanche-peftcl")


def test_no_test_may_run_for_ever(request):
    config = request.config
    assert float(config.getoption("timeout") or config.getini("timeout")) > 0
    assert config.getini("timeout_method") == "thread"
