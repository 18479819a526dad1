"""Every kind of component has a contract, and every contract is shown to bite."""

from pathlib import Path

from avalanche_peftcl import testing
from avalanche_peftcl.registry.kinds import KINDS

CONTRACTS = {name for name in testing.__all__ if name.endswith("Contract")}
NAMES = {"module": "Branch", "strategy_plugin": "Plugin"}


def test_every_kind_has_a_contract():
    wanted = {f"{NAMES.get(kind, kind.capitalize())}Contract" for kind in KINDS}
    assert wanted == CONTRACTS


def test_every_contract_has_violators():
    there = {path.name for path in Path(__file__).parent.glob("test_*_violators.py")}
    assert there == {
        f"test_{name.removesuffix('Contract').lower()}_violators.py" for name in CONTRACTS
    }
