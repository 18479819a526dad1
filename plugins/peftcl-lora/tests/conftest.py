from pathlib import Path

import pytest
import torch

from avalanche_peftcl.testing import install_for_tests

HERE = Path(__file__).parents[1]
torch.set_num_threads(1)  # of toys a second thread takes longer than it saves


@pytest.fixture(autouse=True, scope="session")
def installed(tmp_path_factory):
    """What pyproject.toml says, as an installation would write it, in front of any other."""
    with pytest.MonkeyPatch.context() as patch:
        yield install_for_tests(HERE, tmp_path_factory.mktemp("installed"), patch)
