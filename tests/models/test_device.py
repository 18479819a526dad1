import pytest
import torch

from avalanche_peftcl.errors import ConfigWarning
from avalanche_peftcl.models.device import check_device, warn_of_idle_gpu


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
