from types import SimpleNamespace

import pytest
import torch

from avalanche_peftcl.functional.precision import in_double


class OnApple:
    """A tensor on a device without float64, which refuses it as that device does."""

    device = SimpleNamespace(type="mps")

    def cpu(self):
        return torch.tensor([1.5])

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


@pytest.mark.parametrize("values", [OnApple(), torch.tensor([1.5], dtype=torch.bfloat16)])
def test_values_are_the_same_in_double(values):
    assert torch.equal(in_double(values), torch.tensor([1.5], dtype=torch.float64))
