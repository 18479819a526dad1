import pytest
import torch

from avalanche_peftcl.errors import ConfigError, ConfigWarning
from avalanche_peftcl.models.device import check_device, check_doubles, warn_of_idle_gpu
from avalanche_peftcl.models.heads.gaussian import GaussianHead
from avalanche_peftcl.models.heads.prototypes import PrototypeHead


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_any(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert check_device("auto") == torch.device(device)


def test_a_gpu_that_lies_idle_is_told(monkeypatch, recwarn):
    warn_of_idle_gpu(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    warn_of_idle_gpu(torch.device("cpu"))
    assert not recwarn
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Big One")
    with pytest.warns(ConfigWarning, match=r"GPU \(Big One\) lies idle.*device=auto"):
        warn_of_idle_gpu(torch.device("cpu"))


def test_apples_gpu_is_untried_and_has_no_float64(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(ConfigWarning, match="ever been run on Apple's GPU.*device=cpu"):
        assert check_device("mps") == torch.device("mps")
    check_doubles(torch.nn.Sequential(PrototypeHead(3)), "mps")
    check_doubles(torch.nn.Sequential(GaussianHead(3)), "cpu")
    with pytest.raises(
        ConfigError, match=r"in which GaussianHead keeps grams, sums, .*another head"
    ):
        check_doubles(torch.nn.Sequential(GaussianHead(3)), "mps")
