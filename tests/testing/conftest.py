"""How a contract is shown to bite: an honest part passes it, and what violates it does not."""

import inspect
import itertools
from functools import cache

import pytest


def cases(contract, name):
    """Yield the arguments of each case of a contract test, as its parametrization says."""
    marks = getattr(getattr(contract, name), "pytestmark", [])
    axes = [m.args for m in marks if m.name == "parametrize"]
    names = [axis[0] for axis in axes]
    for values in itertools.product(*(axis[1] for axis in axes)):
        yield dict(zip(names, values, strict=True))


def verdicts(contract, name, noticed):
    """Yield for each case of a contract test whether it was noticed; skipped ones are left out."""
    for case in cases(contract, name):
        try:
            getattr(contract(), name)(**case)
        except pytest.skip.Exception:
            continue
        except noticed:
            yield True
        else:
            yield False


@cache
def passes(contract, name):
    """Say whether a contract test raises nothing, and does not skip every case."""
    return bool(list(verdicts(contract, name, ())))


@pytest.fixture
def notices():
    """Say whether a contract test passes the honest part and fails what violates it."""

    def notice(name, honest, violator, noticed=AssertionError):
        assert issubclass(violator, honest)
        assert passes(honest, name)
        return any(verdicts(violator, name, noticed))

    return notice


@pytest.fixture
def contract_tests():
    """Return the names of the tests of a contract."""

    def names(contract):
        members = inspect.getmembers(contract, inspect.isfunction)
        return {name for name, _ in members if name.startswith("test_")}

    return names
