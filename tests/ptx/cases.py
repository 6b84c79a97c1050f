"""Every Triton op on real values: what its launcher gives on the executed GPU against what its reference gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fastinfogan.kernels.head_loss import head_loss
from fastinfogan.kernels.image_batch import image_batch
from fastinfogan.kernels.pack_codes import pack_codes
from fastinfogan.kernels.sample_latents import sample_latents
from fastinfogan.kernels.unpack_codes import unpack_codes

from fastinfogan import LatentSpec
from fastinfogan.ops.head_loss import _reference as head_loss_reference
from fastinfogan.ops.image_batch import _reference as image_batch_reference
from fastinfogan.ops.pack_codes import _reference as pack_codes_reference
from fastinfogan.ops.pack_codes import _unpack_reference as unpack_codes_reference
from fastinfogan.ops.sample_latents import _reference as sample_latents_reference
from fastinfogan.ops.selfcheck import _error
from tests.ptx.device import Output, run
from tests.triton_compile import ARCHITECTURES

# Both past 32 bits, where a kernel that cuts them would show.
SEED, STEP = 2**63 + 11, 2**33 + 5


@dataclass(frozen=True)
class Case:
    """An op's Triton launcher and its reference, and what both are called with; ``exact``: every bit must agree."""

    launch: Callable[..., Any]
    refer: Callable[..., Any]
    arguments: tuple[Any, ...]
    exact: bool = False

    def launcher(self, device: str = "cpu") -> Any:
        """Call the launcher, with tensors on ``device``."""
        return self.launch(*(on_device(a, device) if isinstance(a, torch.Tensor) else a for a in self.arguments))

    def reference(self) -> Any:
        return self.refer(*self.arguments)


def on_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """``tensor`` on ``device`` as the view that it is: ``Tensor.to`` would leave out what lies between its rows."""
    if tensor.device.type == device:
        return tensor
    elements = tensor.untyped_storage().nbytes() // tensor.itemsize
    whole = tensor.as_strided((elements,), (1,), 0).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def architecture_of_the_device() -> int:
    """The newest of those compiled for here that the CUDA device can run."""
    major, minor = torch.cuda.get_device_capability()
    able = [capability for capability in ARCHITECTURES if capability <= 10 * major]
    if not able:
        pytest.skip(f"no kernel is compiled here for sm_{major}{minor}")
    return max(able)


def case(
    kernel: str, spec: LatentSpec, shape: tuple[int, ...], dtype: torch.dtype, batch: int, strided: bool = False
) -> Case:
    """One of ``tests.triton_compile.KERNELS`` on random values.

    strided: inputs are views into wider tables, and what lies between their rows may not be read.
    """
    generator = torch.Generator().manual_seed(batch)
    seed, step = torch.tensor(SEED - 2**64), torch.tensor(STEP)
    normal = [prior == "normal" for prior in spec.continuous]
    if kernel == "sample_latents":
        drawn = (seed, step, batch, spec.noise, spec.noise_prior == "normal", spec.categorical, normal, 3, 9, dtype)
        # Uniform draws and categories have no rounding of their own; Box-Muller's functions differ in the last bits.
        exact = not any(normal) and spec.noise_prior != "normal"
        return Case(sample_latents, sample_latents_reference, drawn, exact)
    if kernel.startswith("image_batch"):
        images = torch.randint(0, 256, (batch + 3, *shape), dtype=torch.uint8, generator=generator)
        index = torch.randperm(len(images), generator=generator)[:batch]
        mirrored = seed if kernel.endswith("mirrored") else None
        gathered = (images, index, -1.0, 1.0, mirrored, step, 2**32 - 3, dtype)
        return Case(image_batch, image_batch_reference, gathered, exact=True)

    def table(columns: int, of: torch.dtype) -> torch.Tensor:
        wide = (4 * torch.randn(batch, columns + 3 * strided, generator=generator)).to(of)
        return wide[:, 1 : columns + 1] if strided else wide

    _, categories, continuous = sample_latents_reference(
        seed, step, batch, spec.noise, False, spec.categorical, [False] * len(normal), 0, 0, dtype
    )
    if kernel == "pack_codes":
        packed = (
            table(spec.noise, dtype if strided else torch.float32),
            categories,
            continuous,
            spec.categorical,
            dtype,
        )
        return Case(pack_codes, pack_codes_reference, packed, exact=True)
    if kernel == "unpack_codes":
        z = table(spec.dim, dtype)  # not one-hot: a column read from the next code changes the answer
        return Case(unpack_codes, unpack_codes_reference, (z, spec.noise, spec.categorical), exact=True)
    real = table(1, dtype)[:, 0].contiguous() if not strided else table(2, dtype)[:, 1]
    fake = table(1, dtype)[:, 0].contiguous() if not strided else table(2, dtype)[:, 0]
    if kernel == "head_loss D":
        plain = (fake, real, None, None, None, None, None, (), (), False, False)
        return Case(head_loss, head_loss_reference, plain)
    weights = torch.linspace(0.5, 2.0, len(spec.names))
    joint = (
        fake, None, table(spec.head_dim, dtype), categories, continuous, weights, torch.tensor(8.0), spec.categorical,
        spec.entropies, False, False,
    )  # fmt: skip
    return Case(head_loss, head_loss_reference, joint)


def worst_error(one: Case, output: Output) -> float:
    """The largest error over all outputs as a share of the project's tolerance; anything above 1 disagrees."""
    return difference(one, output.value, one.reference())


def difference(one: Case, found: Any, wanted: Any) -> float:
    """As :func:`worst_error`, of any two results of ``one``."""
    found, wanted = (value if isinstance(value, tuple) else (value,) for value in (found, wanted))
    worst = 0.0
    for mine, theirs in zip(found, wanted, strict=True):
        if one.exact and not torch.equal(mine, theirs):
            return float("inf")
        worst = max(worst, _error(mine, theirs))
    return worst


def check(one: Case, capability: int, error: float = 0.0) -> Output:
    """Execute ``one`` and raise an AssertionError on a disagreement or on anything that the sanitizer found."""
    output = run(one.launcher, capability, error)
    assert not output.findings, "\n".join(map(str, output.findings))
    worst = worst_error(one, output)
    assert worst <= 1.0, f"{worst:g} times the tolerated error"
    return output
