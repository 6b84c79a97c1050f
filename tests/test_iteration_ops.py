"""An iteration launches a known, small number of ops and never waits for, reads from, or copies to the device.

Proven twice without a GPU: by the ops that a real iteration on the CPU dispatches, and on torch's meta device, where a
tensor that lies on the host stands out.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from recorder import NO_LAUNCH, WAITS, tensors
from short_runs import MakeConfig, MakeTrainer
from torch.utils._python_dispatch import TorchDispatchMode

from bench import iteration_report
from bench.iteration_report import GPUS, META, Launches, count, launches, meta_trainer, on_meta
from fastinfogan.config import PRESETS, TrainConfig

OBJECTIVES: dict[str, dict[str, Any]] = {
    "trunk gets MI": {},
    "Q learns with G": {"trunk_mi": False, "codes": ("cat:3", "gaussian:1", "cat:4")},
    "invariance": {"invariance": 1.0},
    "learnt prior": {"learn_prior": True, "invariance": 0.5, "codes": ("cat:3", "uniform:1", "cat:4")},
    "plain GAN": {"generator_mi": False, "trunk_mi": False},
}


class Strict(TorchDispatchMode):
    """Keeps the names of what is dispatched, and refuses what a captured or merely fast iteration cannot have."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in NO_LAUNCH:
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        assert torch.Tag.nondeterministic_seeded not in func.tags, f"{name} draws from the host's generator"
        results = func(*args, **(kwargs or {}))
        for tensor in (*tensors((args, kwargs)), *tensors(results)):
            assert tensor.device == self.device, f"{name} has a tensor on {tensor.device}"
        self.names.append(f"{func.namespace}.{name}")
        return results


@contextlib.contextmanager
def strict(device: torch.device) -> Iterator[list[str]]:
    """The names of what is dispatched within; whatever would touch the host raises."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor is made from Python numbers on the host")

    with contextlib.ExitStack() as cleanup:
        for name in ("tensor", "as_tensor", "from_numpy"):  # which dispatch nothing on the meta device
            cleanup.enter_context(mock.patch.object(torch, name, refuse))
        yield cleanup.enter_context(Strict(device)).names


@pytest.fixture
def strict_meta(tiny_networks: None) -> Callable[..., list[list[str]]]:
    """``strict_meta(config, dtype, steps)``: the ops of each of so many iterations on the meta device."""

    def run(config: TrainConfig, dtype: torch.dtype, steps: int) -> list[list[str]]:
        with on_meta(dtype) as precision:
            made = meta_trainer(config, precision)
            made.iteration(0)  # makes the optimisers' state
            found = []
            for step in range(1, steps + 1):
                with strict(META) as names:
                    made.iteration(step)
                found.append(names)
        return found

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_an_iteration_on_a_gpu_touches_nothing_on_the_host(
    tiny_config: MakeConfig, strict_meta: Callable[..., list[list[str]]], changes: dict[str, Any], dtype: torch.dtype
) -> None:
    """Also where an epoch ends, which is every second step here, and whatever the batches flip."""
    first, *others = strict_meta(tiny_config(**changes, flip=True), dtype, 5)
    assert all(names == first for names in (others[1], others[3]))
    draws = 1 + ("invariance" in changes) + ("learn_prior" in changes)  # warps and categories are draws of their own
    for op, number in (("sample_latents", draws), ("image_batch", 1), ("head_loss", 2)):
        assert first.count(f"fastinfogan.{op}") == number
    assert first.count("aten._fused_adam_") == 2


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_an_iteration_on_the_cpu_is_the_same_ops_at_every_step(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, changes: dict[str, Any]
) -> None:
    made = make_trainer(tiny_config(**changes), tmp_path, torch.bfloat16)
    made.iteration(0)
    found = []
    for step in (1, 2, 3, 6):
        made.batches.prepare(step)
        made.clock.fill_(step)
        with strict(torch.device("cpu")) as names:
            made._iterate()
        found.append(names)
    assert all(names == found[0] for names in found)


@pytest.mark.parametrize("fault", ["item", "constant", "host tensor", "host generator"])
def test_a_host_access_is_seen(fault: str) -> None:
    """The proofs above can fail."""
    device = torch.device("cpu") if fault == "item" else META
    there = torch.ones(2, device=device)
    faults: dict[str, Callable[[], object]] = {
        "item": lambda: there.sum().item(),
        "constant": lambda: there + torch.tensor([1.0, 2.0], device=device),
        "host tensor": lambda: there * torch.ones(()),
        "host generator": lambda: torch.rand(2, device=device),
    }
    with pytest.raises(AssertionError, match=r"waits|host|cpu"), strict(device):
        faults[fault]()


@pytest.mark.parametrize(
    ("preset", "most"),
    [("mnist-paper", 145), ("celeba", 150), ("chairs-rotation", 220), ("dsprites", 305), ("mnist", 270)],
)
def test_an_iteration_is_few_launches(preset: str, most: int) -> None:
    """And yet so many that a host cannot keep up with a GPU: the reason to capture them."""
    for dtype in (torch.float32, torch.bfloat16):
        counted, flops = count(replace(PRESETS[preset], decay=0.0), dtype)
        assert 100 < sum(counted.ops.values()) <= most
        assert flops > 1e9


def test_launches_count_what_touches_memory_once() -> None:
    with Launches() as counted:
        x = torch.empty(4, 8, device=META)  # no launch
        y = x.t()[1:3]  # nor for views
        z = y.contiguous() + 1.0
        z.mul_(2)
        del z
    assert counted.ops == {"aten.clone": 1, "aten.add": 1, "aten.mul_": 1}
    values = 2 * 4 * 4  # of 4 bytes
    assert counted.bytes == 2 * values + 2 * values + 2 * values


def test_lists_of_tensors_and_the_backward_pass_of_a_convolution_are_more_than_one_launch() -> None:
    adam, backward = torch.ops.aten._fused_adam_.default, torch.ops.aten.convolution_backward.default
    weights = [torch.empty(65_536 * 200 + 1, device=META), torch.empty(65_536 * 120, device=META)]
    assert launches(adam, (weights,)) == 2  # 321 chunks
    assert launches(adam, (weights[:1],)) == 1
    assert launches(backward, (*[None] * 10, [False, True, True])) == 2
    copy, norm = torch.ops.aten._foreach_copy_.default, torch.ops.aten._foreach_norm.Scalar
    assert launches(copy, (weights, weights)) == 2 and launches(copy, (weights[:1], weights[:1])) == 1
    assert launches(norm, (weights,)) == 3


def test_the_report_has_a_row_per_preset_and_gpu_with_a_floor_and_no_measurement(
    tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iteration_report.main(["--batches", "8", "--out", str(tmp_path / "static.csv")])
    with (tmp_path / "static.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 * len(GPUS)
    for row in rows:
        assert row["kind"] == "model, not measured" and row["measured_eager_us"] == row["measured_graph_us"] == ""
        assert row["measure_with"] == f"python -m bench step --presets {row['preset']} --batches 8 --device cuda"
        gpu, dtype = GPUS[row["gpu"]], torch.bfloat16 if row["format"] == "bf16" else torch.float32
        longer = max(float(row["gflop"]) * 1e9 / gpu.flops[dtype], float(row["mbyte"]) * 1e6 / gpu.bandwidth)
        assert float(row["floor_us"]) == pytest.approx(longer * 1e6, rel=2e-3)
    assert "us (model, not measured)" in capsys.readouterr().out
