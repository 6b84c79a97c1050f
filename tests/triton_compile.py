"""Compile the Triton kernels for GPUs that are not there, as a launch really specialises them, and read the result.

A launcher runs as it is, on CPU tensors, against a stand-in for the CUDA driver that only names the target. So dtypes,
constants, alignment attributes and options are those of the launch, not a copy of them in a test. Nothing is executed.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from fastinfogan.kernels.head_loss import head_loss
from fastinfogan.kernels.image_batch import image_batch
from fastinfogan.kernels.pack_codes import pack_codes
from fastinfogan.kernels.sample_latents import sample_latents
from fastinfogan.kernels.unpack_codes import unpack_codes
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastinfogan import Categorical, LatentSpec, Uniform
from tests.cuda_compile import sass_instructions

ARCHITECTURES = (80, 90, 100)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP_SIZE = 32


@dataclass(frozen=True)
class Launch:
    """One kernel launch as it was compiled: its grid, PTX and cubin, and what they say.

    arguments: (Triton's type, value) in the order of the PTX's parameters; a pointer's value is its tensor. What was
    specialised away is not among them, nor are the two scratch pointers that end the parameters.
    outputs: storages (by data pointer) that the launcher made without filling them.
    """

    kernel: str
    capability: int
    grid: tuple[int, ...]
    ptx: str
    cubin: bytes
    warps: int
    shared_bytes: int
    arguments: tuple[tuple[str, Any], ...] = ()
    outputs: frozenset[int] = frozenset()

    @cached_property
    def _resources(self) -> dict[str, int]:
        text = _tool("cuobjdump", "--dump-resource-usage", cubin=self.cubin)
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}

    @property
    def registers(self) -> int:
        """Registers of one thread."""
        return self._resources["REG"]

    @property
    def spilled_bytes(self) -> int:
        """Bytes of stack and local memory of one thread: 0 where nothing is spilled."""
        return self._resources["STACK"] + self._resources["LOCAL"]

    @cached_property
    def sass_instructions(self) -> int:
        """Instructions of the cubin, without the padding after the last one."""
        return sass_instructions(_tool("nvdisasm", cubin=self.cubin))

    @cached_property
    def ptx_instructions(self) -> int:
        return len(re.findall(r"^\s+(?:@!?%p\d+\s+)?[a-z][\w.:]*\s[^;]*;", self.ptx, re.MULTILINE))

    def access_bits(self, kind: str) -> dict[int, int]:
        """How many global accesses of each width in bits the PTX holds; ``kind`` is "ld" or "st"."""
        return access_bits(self.ptx, kind)


def access_bits(ptx: str, kind: str) -> dict[int, int]:
    """:meth:`Launch.access_bits` of any PTX."""
    widths: dict[int, int] = {}
    for suffix in re.findall(rf"\b{kind}\.global((?:\.[\w:]+)*)", ptx):
        vector = re.search(r"\.v(\d)", suffix)
        bits = int(re.findall(r"\.[bfsu](\d+)", suffix)[-1]) * (int(vector[1]) if vector else 1)
        widths[bits] = widths.get(bits, 0) + 1
    return widths


class _AbsentGPU:
    """What Triton asks of a driver before it launches. One device number per architecture keeps its caches apart."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, _WARP_SIZE)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Unfilled(TorchDispatchMode):
    """Notes the storages that are allocated and not filled: where a kernel's results go."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.new_empty, torch.ops.aten.empty):
            self.storages.add(result.untyped_storage().data_ptr())
        return result


@contextmanager
def _compiling_for(capability: int) -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    run = JITFunction.run
    unfilled = _Unfilled()

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        signature = kernel.src.signature
        launches.append(
            Launch(
                kernel=self.__name__.strip("_"),
                capability=capability,
                grid=tuple(grid),
                ptx=kernel.asm["ptx"],
                cubin=kernel.asm["cubin"],
                warps=kernel.metadata.num_warps,
                shared_bytes=kernel.metadata.shared,
                arguments=tuple((kind, named[name]) for name, kind in signature.items() if kind != "constexpr"),
                outputs=frozenset(unfilled.storages),
            )
        )
        return kernel

    active = triton.runtime.driver
    previous = active._active
    active.set_active(_AbsentGPU(capability))
    JITFunction.run = compile_only
    try:
        with unfilled:
            yield launches
    finally:
        JITFunction.run = run
        active._active = previous


def launches_of(launcher: Callable[[], object], capability: int) -> list[Launch]:
    """Call ``launcher`` with nothing executed: every Triton launch that it makes, compiled for ``capability``."""
    with _compiling_for(capability) as launches:
        launcher()
    return launches


def _tool(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_TOOLS / name, *options, file.name], capture_output=True, text=True, check=True).stdout


PRESETS = {
    "mnist": (LatentSpec(), (28, 28, 1)),
    "celeba": (LatentSpec(128, (Categorical(10),) * 10), (32, 32, 3)),
    "svhn": (LatentSpec(124, (Categorical(10),) * 4 + (Uniform(4),)), (32, 32, 3)),
    "faces": (LatentSpec(128, (Uniform(5),)), (32, 32, 1)),
    "chairs": (LatentSpec(128, (Categorical(20),) * 3 + (Uniform(1),)), (64, 64, 1)),
}
KERNELS = (
    "head_loss D",
    "head_loss G",
    "sample_latents",
    "image_batch",
    "image_batch mirrored",
    "pack_codes",
    "unpack_codes",
)


@dataclass(frozen=True)
class Case:
    """One op as a preset calls it.

    bytes_floor: what must be moved at least: each input read once, each output written once.
    store_bits: the widest store that the addresses of its main output allow.
    reason: why that is less than 128 bits, where it is.
    """

    launcher: Callable[[], object]
    bytes_floor: int
    store_bits: int
    reason: str = ""


def case(kernel: str, preset: str, dtype: torch.dtype, batch: int) -> Case:
    """The launch of one of :data:`KERNELS` that a training step of ``preset`` makes."""
    spec, shape = PRESETS[preset]
    size = dtype.itemsize
    seed = torch.zeros((), dtype=torch.int64)
    categories = torch.zeros(batch, len(spec.categorical), dtype=torch.int64)
    continuous = torch.zeros(batch, len(spec.continuous))
    logits = torch.zeros(batch, dtype=dtype)
    n_codes = len(spec.names)
    if kernel == "head_loss D":
        return Case(
            lambda: head_loss(logits, logits, None, None, None, None, None, (), (), False, False),
            4 * batch * size + 4 * 3,
            128 if batch >= 1024 else 8 * size,
            "" if batch >= 1024 else "no more rows than lanes: one logit a lane",
        )
    if kernel == "head_loss G":
        recognition = torch.zeros(batch, spec.head_dim, dtype=dtype)
        weights = torch.ones(n_codes)
        lines = [spec.head_dim * size, *(k * size for k in spec.categorical)]
        one_value = not spec.categorical
        arguments = (logits, None, recognition, categories, continuous, weights, None, spec.categorical, spec.entropies)
        return Case(
            lambda: head_loss(*arguments, False, False),
            2 * size * (batch + recognition.numel()) + _bytes(categories, continuous, weights) + 4 * (3 + 2 * n_codes),
            8 * size if one_value else _common_bits(*lines),
            "one value a lane" if one_value else f"a code begins at multiples of {_common_bits(*lines) // 8} bytes",
        )
    if kernel == "sample_latents":
        normal = [prior == "normal" for prior in spec.continuous]
        bits = _common_bits(4 * size, spec.dim * size)
        return Case(
            lambda: sample_latents(
                seed, seed, batch, spec.noise, spec.noise_prior == "normal", spec.categorical, normal, 0, 0, dtype
            ),
            16 + batch * spec.dim * size + _bytes(categories, continuous),
            bits,
            f"rows of {spec.dim * size} bytes, four values ({4 * size} bytes) a Philox call" if bits < 128 else "",
        )
    if kernel.startswith("image_batch"):
        images = torch.zeros(2, *shape, dtype=torch.uint8)
        index = torch.zeros(batch, dtype=torch.int64)
        flip_seed = seed if kernel.endswith("mirrored") else None
        values = batch * images[0].numel()
        return Case(
            lambda: image_batch(images, index, -1.0, 1.0, flip_seed, seed, 0, dtype),
            values * (1 + size) + _bytes(index),
            128,
        )
    if kernel == "unpack_codes":
        z = torch.zeros(batch, spec.dim, dtype=dtype)
        return Case(
            lambda: unpack_codes(z, spec.noise, spec.categorical),
            batch * sum(spec.categorical) * size + _bytes(categories),
            64,
            "one index a row and code",
        )
    noise = torch.zeros(batch, spec.noise)
    return Case(
        lambda: pack_codes(noise, categories, continuous, spec.categorical, dtype),
        _bytes(noise, categories, continuous) + batch * spec.dim * size,
        128,
    )


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _common_bits(*lengths: int) -> int:
    return 8 * math.gcd(16, *lengths)
