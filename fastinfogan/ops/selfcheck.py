"""Every fused op against its reference on a device: what ``doctor`` prints and what a run asks before it trusts a GPU.

The kernels were proven without a GPU, so the first device that runs them is also their first real test. Nearly all of
the minute that it may take is Triton's compiler. A disagreement costs speed instead of results.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from fastinfogan import __version__
from fastinfogan.codes import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.ops import native
from fastinfogan.ops.adam import adam
from fastinfogan.ops.arguments import DTYPES
from fastinfogan.ops.backend import VARIABLE, Backend, available, choose
from fastinfogan.ops.convolve import convolve, convolve_transposed
from fastinfogan.ops.fc import fc
from fastinfogan.ops.head_loss import head_loss
from fastinfogan.ops.image_batch import image_batch
from fastinfogan.ops.norm_act import norm_act
from fastinfogan.ops.pack_codes import pack_codes, unpack_codes
from fastinfogan.ops.recognize import recognize
from fastinfogan.ops.sample_latents import sample_latents
from fastinfogan.ops.traversal import traversal

SPECS = (
    LatentSpec(),
    LatentSpec(128, (Categorical(20), Categorical(3), Uniform(1), Gaussian(2)), "normal"),
)
BATCHES = (7, 128, 513)
LAYER_DTYPES = (torch.float32, torch.bfloat16)  # of the CPU's layers
SEED, STEP = 2**63 + 11, 2**33 + 5  # both past 32 bits, where a kernel that cuts them would show

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Check:
    """One backend of one op, run on every case.

    worst: the largest error over all outputs, as a share of what is tolerated; above 1 it disagrees.
    failure: the exception that a case raised, or None.
    """

    op: str
    backend: Backend
    worst: float
    seconds: float
    failure: str | None = None

    @property
    def agrees(self) -> bool:
        return self.failure is None and self.worst <= 1.0


def check_ops(device: torch.device) -> list[Check]:
    """Every op's every backend that can run on ``device``, compared with the reference there."""
    fused = [
        _check(op, cases(device), backend)
        for op, (cases, native_on_cuda, triton) in _OPS.items()
        for backend in available(device.type, native_on_cuda)
        if backend != "reference" and (triton or backend != "triton")
    ]
    layers = [
        # Sums of products, of which each backend rounds its own: judged against twice the largest.
        _check(op, cases(device), "native", cancelling=2.0)
        for op, cases in _LAYERS.items()
        if device.type == "cpu" and "native" in available("cpu")
    ]
    return fused + layers


def serving(device: torch.device) -> dict[str, Backend]:
    """What each op runs on ``device`` unless its caller asks for another backend.

    Raises:
        UserError: ``$FASTINFOGAN_BACKEND`` asks for what is not there.
    """
    fused = {op: choose(None, device.type, on_cuda, triton=triton) for op, (_, on_cuda, triton) in _OPS.items()}
    return fused | {op: choose(None, device.type, triton=False) for op in _LAYERS}


def trust(device: torch.device) -> None:
    """Check the fused ops the first time that they meet a kind of GPU, and tell where they are not to be used.

    On disagreement every op of this process runs its reference. What agreed is remembered in the user's cache folder,
    with the device, the versions, and hashes of the extension and of the Triton kernels; the CPU's backends are tested
    where the package is.
    """
    if device.type != "cuda":
        if native.why_not:
            print(f"notice: {native.why_not}; without it the ops run in plain PyTorch, slower", file=sys.stderr)
        return
    subject = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, fastinfogan {__version__}"
    extension = sorted(Path(native.__file__).parents[1].glob("_C*.so"))
    subject += f", CUDA kernels for {native.cuda_architectures() or 'none'} {_digest(extension)}, Triton's {_kernels()}"
    cache: Path | None = None
    # Without a home, or with another user's, it is checked every time.
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastinfogan" / "trusted"
        if subject in cache.read_text().splitlines():
            return
    print("checking the fused ops on this GPU, once: up to a minute, most of it compiling", file=sys.stderr)
    wrong = [check for check in check_ops(device) if not check.agrees]
    if not wrong:
        if cache is not None:
            with contextlib.suppress(OSError):
                cache.parent.mkdir(parents=True, exist_ok=True)
                with cache.open("a") as file:
                    file.write(subject + "\n")
        return
    os.environ[VARIABLE] = "reference"
    told = [
        f"{check.op} ({check.backend}) "
        + (f"could not be built or run ({check.failure.splitlines()[0]})" if check.failure else "disagrees")
        for check in wrong
    ]
    print(
        f"WARNING: on this GPU {', '.join(told)}, so all ops run in plain PyTorch, slower but right: Triton needs a C "
        f"compiler and Python's headers (Debian: gcc, python3-dev); if they are here, please report what python -m "
        f"fastinfogan.doctor prints",
        file=sys.stderr,
    )


def _kernels() -> str:
    """Triton's version and a hash of the kernels that it compiles; what it lacks where it cannot be used."""
    if "triton" not in available("cuda"):
        return "none"
    try:
        import triton

        folder = Path(import_module("fastinfogan.kernels.elementary").__file__ or "").parent
    except Exception as error:  # the check finds the same, and tells it
        return type(error).__name__
    return f"{triton.__version__} {_digest(sorted(folder.glob('*.py')))}"


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


Case = Callable[[Backend], Tensors]


def _check(op: str, cases: list[Case], backend: Backend, cancelling: float = 0.05) -> Check:
    began = time.perf_counter()
    worst = 0.0
    try:
        for case in cases:
            for found, expected in zip(case(backend), case("reference"), strict=True):
                worst = max(worst, _error(found, expected, cancelling))
    except Exception as error:  # a kernel that does not even compile on this device is what is looked for
        return Check(op, backend, worst, time.perf_counter() - began, f"{type(error).__name__}: {error}")
    return Check(op, backend, worst, time.perf_counter() - began)


def _error(found: torch.Tensor, expected: torch.Tensor, cancelling: float = 0.05) -> float:
    """The largest difference over one unit in the last place of the storage type, or 2e-5 in fp32; integers exactly.

    What is close to zero is the rest of a cancellation: judged against the share ``cancelling`` of the largest value.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if found.numel() == 0:
        return 0.0
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    unit = max(torch.finfo(found.dtype).eps, 2e-5)
    wanted = expected.double()
    size = wanted.abs().clamp(min=cancelling * float(wanted.abs().max()))
    error = float(((found.double() - wanted).abs() / (unit * size.clamp(min=1e-12))).max())
    return error if error == error else float("inf")


def _sample_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype) -> Case:
        def run(backend: Backend) -> Tensors:
            z, categories, continuous = sample_latents(
                spec, batch, seed=SEED, step=STEP, stream=3, row_offset=9, device=device, dtype=dtype, backend=backend
            )
            # A target is a column of z, one unit of z's type apart at most, whatever type it is kept in.
            found = z, categories, continuous.to(dtype)
            if dtype != torch.float32 or any(prior == "normal" for prior in (spec.noise_prior, *spec.continuous)):
                return found
            # Uniform numbers are the same bits everywhere: compared as integers.
            return tuple(one.view(torch.int32) if one.is_floating_point() else one for one in found)

        return run

    return [case(spec, batch, dtype) for spec in SPECS for batch in BATCHES for dtype in DTYPES]


def _loss_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype, d_phase: bool, **switches: bool) -> Case:
        generator = torch.Generator().manual_seed(batch)
        latents = sample_latents(spec, batch, seed=1, step=0, device=device, backend="reference")
        logits = 4 * torch.randn(batch, spec.head_dim + 2, generator=generator)
        logits = logits.to(device, dtype)
        weights = torch.linspace(0.5, 2.0, len(spec.names), device=device)

        def run(backend: Backend) -> Tensors:
            loss = head_loss(
                spec,
                logits[:, 0],
                real_logits=logits[:, 1] if d_phase else None,
                recognition=logits[:, 2:],
                categories=latents.categories,
                continuous=latents.continuous,
                code_weights=weights,
                loss_scale=torch.full((), 8.0, device=device) if switches else None,
                backend=backend,
                **switches,
            )
            return (loss.statistics, *loss.gradients)

        return run

    return [
        case(spec, batch, dtype, d_phase)
        for spec in SPECS
        for batch in BATCHES
        for dtype in DTYPES
        for d_phase in (True, False)
    ] + [case(spec, 128, dtype, False, fixed_std=True, saturating=True) for spec in SPECS for dtype in DTYPES]


def _image_cases(device: torch.device) -> list[Case]:
    store = torch.randint(0, 256, (50, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    store = store.to(device)

    def case(batch: int, dtype: torch.dtype) -> Case:
        index = torch.arange(batch, device=device) * 7 % len(store)
        return lambda backend: (
            image_batch(store, index, low=-1.0, high=1.0, flip_seed=SEED, step=STEP, dtype=dtype, backend=backend),
        )

    return [case(batch, dtype) for batch in BATCHES for dtype in DTYPES]


def _pack_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype) -> Case:
        latents = sample_latents(spec, batch, seed=1, step=0, device=device, backend="reference")
        noise = latents.z[:, : spec.noise]
        return lambda backend: (
            pack_codes(spec, noise, latents.categories, latents.continuous, dtype, backend=backend),
        )

    return [case(spec, batch, dtype) for spec in SPECS for batch in BATCHES for dtype in DTYPES]


def _unpack_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype) -> Case:
        z = sample_latents(spec, batch, seed=1, step=0, device=device, dtype=dtype, backend="reference").z
        return lambda backend: unpack_codes(spec, z, backend=backend)

    return [case(spec, batch, dtype) for spec in SPECS for batch in BATCHES for dtype in DTYPES]


def _traversal_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype, code: int) -> Case:
        latents = sample_latents(spec, batch, seed=1, step=0, device=device, backend="reference")
        parts = (latents.z[:, : spec.noise], latents.categories, latents.continuous)
        values = torch.arange(3, device=device)
        return lambda backend: (traversal(spec, *parts, code=code, values=values, dtype=dtype, backend=backend),)

    last = len(SPECS[0].names) - 1
    return [
        case(spec, batch, dtype, code) for spec in SPECS for batch in BATCHES for dtype in DTYPES for code in (0, last)
    ]


def _recognize_cases(device: torch.device) -> list[Case]:
    def case(spec: LatentSpec, batch: int, dtype: torch.dtype) -> Case:
        generator = torch.Generator().manual_seed(batch)
        outputs = (4 * torch.randn(batch, spec.head_dim, generator=generator)).to(device, dtype)
        return lambda backend: recognize(spec, outputs, backend=backend)

    return [case(spec, batch, dtype) for spec in SPECS for batch in BATCHES for dtype in DTYPES]


def _differentiated(run: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Tensors:
    """What ``run`` makes of ``inputs``, and the gradients of these for an output's that are no round numbers."""
    leaves = [one.clone(memory_format=torch.preserve_format).requires_grad_() for one in inputs]
    output = run(*leaves)
    towards = torch.linspace(-1.0, 1.0, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return (output.detach(), *torch.autograd.grad(output, leaves, towards))


def _normal(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _fc_cases(device: torch.device) -> list[Case]:
    def case(batch: int, dtype: torch.dtype) -> Case:
        rows, matrix = _normal(device, dtype, batch, 74), _normal(device, dtype, 96, 74, seed=1)
        return lambda backend: _differentiated(partial(fc, backend=backend), rows, matrix)

    return [case(batch, dtype) for batch in BATCHES for dtype in LAYER_DTYPES]


def _convolution_cases(op: Callable[..., torch.Tensor], device: torch.device) -> list[Case]:
    def case(batch: int, dtype: torch.dtype, stride: int, before: int) -> Case:
        images, matrix = _normal(device, dtype, batch, 6, 8, 8), _normal(device, dtype, 6, 96, seed=1)
        images = images.contiguous(memory_format=torch.channels_last)
        run = partial(op, stride=stride, before=before)
        return lambda backend: _differentiated(partial(run, backend=backend), images, matrix)

    return [case(batch, dtype, *way) for batch in BATCHES for dtype in LAYER_DTYPES for way in ((2, 1), (1, 2))]


def _norm_cases(device: torch.device) -> list[Case]:
    def case(batch: int, dtype: torch.dtype, normalise: bool) -> Case:
        x = _normal(device, dtype, 3 * batch, 48)
        bias, gain = (_normal(device, torch.float32, 48, seed=seed) for seed in (1, 2))
        leaves = (x, bias, gain) if normalise else (x, bias)
        return lambda backend: _differentiated(
            lambda *of: norm_act(*of, slope=0.1, groups=3, backend=backend)[0], *leaves
        )

    return [case(batch, dtype, normalise) for batch in BATCHES for dtype in LAYER_DTYPES for normalise in (True, False)]


def _adam_cases(device: torch.device) -> list[Case]:
    def case(size: int, dtype: torch.dtype) -> Case:
        weight, first = (_normal(device, torch.float32, size, seed=seed) for seed in (0, 1))
        gradient = _normal(device, dtype, size, seed=2)

        def run(backend: Backend) -> Tensors:
            state = [weight.clone(), first.clone(), first.square(), weight.bfloat16(), torch.full((), 3.0)]
            own, m, v, copy, step = ([one.to(device)] for one in state)
            adam(own, [gradient], m, v, copy, step, learning_rate=0.01, betas=(0.5, 0.999), backend=backend)
            return own[0], m[0], v[0], copy[0], step[0]

        return run

    return [case(size, dtype) for size in (5, 1000, 100_003) for dtype in LAYER_DTYPES]


# cases; whether the extension has a CUDA kernel; whether there is a Triton kernel
_OPS: dict[str, tuple[Callable[[torch.device], list[Case]], bool, bool]] = {
    "sample_latents": (_sample_cases, False, True),
    "head_loss": (_loss_cases, False, True),
    "image_batch": (_image_cases, False, True),
    "pack_codes": (_pack_cases, True, True),
    "unpack_codes": (_unpack_cases, True, True),
    "traversal": (_traversal_cases, True, False),
    "recognize": (_recognize_cases, True, False),
}
_LAYERS: dict[str, Callable[[torch.device], list[Case]]] = {
    "fc": _fc_cases,
    "convolve": partial(_convolution_cases, convolve),
    "convolve_transposed": partial(_convolution_cases, convolve_transposed),
    "norm_act": _norm_cases,
    "adam": _adam_cases,
}
