"""Which number format is chosen where, without the hardware at hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype", "reason"),
    [
        (True, True, torch.bfloat16, "AMX"),
        (False, True, torch.bfloat16, "AVX-512 BF16"),
        (False, False, torch.float32, "no bfloat16 in hardware"),
    ],
)
def test_a_cpu_gets_bfloat16_only_where_it_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, dtype: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    precision = choose_precision(CPU, amp=True)
    assert precision.dtype == dtype and reason in precision.reason
    assert not precision.gradient_scaler().is_enabled()


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", torch.float16), ("cuda:1", torch.bfloat16)])
def test_a_gpu_without_bfloat16_gets_float16(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype) -> None:
    """A T4 beside an H100."""
    majors = {torch.device("cuda:0"): 7, torch.device("cuda:1"): 9}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=majors[device]))
    assert choose_precision(torch.device(device), amp=True).dtype == dtype


def test_without_amp_everything_is_float32() -> None:
    precision = choose_precision(CPU, amp=False)
    assert precision.dtype == torch.float32 and "--amp was not given" in precision.reason
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_float32_is_not_tf32_in_the_convolutions_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_device("auto")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu': choose auto, cpu, cuda or cuda:N"),
        ("cuda:7", r"--device cuda:7 asks for a GPU that is not here \(torch sees 0\): choose --device cpu"),
        ("mps", "device 'mps' is not supported"),
        ("cpu:5", "device 'cpu:5' is not supported"),
    ],
)
def test_a_device_that_is_not_here_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        choose_device(name)
