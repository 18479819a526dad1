"""What mixed_precision means on a device."""

import warnings
from types import MappingProxyType

import pytest
import torch

from avalanche_peftcl.errors import ConfigError, PrecisionWarning
from avalanche_peftcl.models import native_bfloat16
from avalanche_peftcl.models.precision import resolve_precision

NATIVE = "avalanche_peftcl.models.precision.native_bfloat16"


@pytest.mark.parametrize(
    ("capabilities", "there"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_a_processor_has_what_torch_reports(monkeypatch, capabilities, there):
    report = lambda: MappingProxyType(capabilities)  # noqa: E731 (one word of the test)
    monkeypatch.setattr(torch.cpu, "get_capabilities", report, raising=False)
    assert native_bfloat16("cpu") is there


@pytest.mark.parametrize("there", [True, False])
def test_a_torch_without_that_report_is_asked_for_single_units(monkeypatch, there):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert native_bfloat16("cpu") is False  # it cannot tell
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: there, raising=False)
    assert native_bfloat16("cpu") is there


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_card_has_them_from_compute_capability_eight_on(monkeypatch, capability, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert native_bfloat16("cuda:1") is there


def test_of_other_devices_nothing_is_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_bfloat16("mps") is False
    assert native_bfloat16("cuda") is False


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_where_it_is_native(monkeypatch, native, auto):
    monkeypatch.setattr(NATIVE, lambda device: native)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("auto", "cpu") == auto
        assert [resolve_precision(each, "cpu") for each in ("no", "fp16")] == ["no", "fp16"]


def test_emulation_that_was_asked_for_is_done_and_told_once(monkeypatch):
    monkeypatch.setattr(NATIVE, lambda device: False)
    with pytest.warns(PrecisionWarning, match=r"no units for bfloat16 on cpu.*choose 'no'") as told:
        assert resolve_precision("bf16", "cpu") == "bf16"
    assert len(told) == 1
    monkeypatch.setattr(NATIVE, lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", "cpu") == "bf16"


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="must be auto, no, bf16 or fp16, not 'fp8'"):
        resolve_precision("fp8", "cpu")
