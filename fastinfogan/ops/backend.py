"""Which implementation serves an op: a request, the environment, or the device's best.

Kept apart from the ops so that ``FASTINFOGAN_BACKEND`` and the messages mean the same for all of them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch.autograd import forward_ad

from fastinfogan.errors import UserError

Backend = Literal["reference", "native", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
VARIABLE = "FASTINFOGAN_BACKEND"


@lru_cache
def available(device_type: str, native_on_cuda: bool = False) -> tuple[Backend, ...]:
    """What serves the fused ops on a kind of device, fastest first; the reference serves them everywhere.

    ``native_on_cuda``: the op has a CUDA kernel in the extension as well.
    """
    native = import_module("fastinfogan.ops.native")
    found: list[Backend] = []
    if device_type == "cpu" and native.available():
        found.append("native")
    if device_type == "cuda" and native_on_cuda and native.on_cuda():
        found.append("native")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") and (device_type == "cuda" or (device_type == "cpu" and interpreted)):
        found.append("triton")
    return (*found, "reference")


def cuda_kernel_takes(categorical: tuple[int, ...]) -> bool:
    """Whether the extension's CUDA kernels take that many categorical codes (``MAX_CODES`` of csrc/pack_codes.cu)."""
    return len(categorical) <= 256


# For torch.compile the choice is made once, while it traces.
@torch.compiler.assume_constant_result
def choose(
    requested: str | None,
    device_type: str,
    native_on_cuda: bool = False,
    fused: bool = True,
    triton: bool = True,
) -> Backend:
    """The backend to run on a kind of device: ``requested``, else ``$FASTINFOGAN_BACKEND``, else the fastest.

    A request must be met. The variable is a preference: an op that lacks that backend, or cannot use it for these
    arguments, takes its fastest instead.

    ``fused``: whether the arguments are such as the fused kernels take; float64 is for the reference alone.
    ``triton``: whether the op has a Triton kernel; those that no training step needs have none.

    Raises:
        UserError: an unknown name, a request that cannot run here, or a preference for what this device has for no
            op at all.
    """
    candidates = available(device_type, native_on_cuda) if fused else ("reference",)
    if not triton:
        candidates = tuple(backend for backend in candidates if backend != "triton")
    wanted = requested or os.environ.get(VARIABLE)
    if wanted and wanted not in BACKENDS:
        raise UserError(f"unknown backend {wanted!r}: choose one of {', '.join(BACKENDS)}")
    for backend in candidates:
        if backend == wanted:
            return backend
    if wanted and (requested or wanted not in available(device_type, native_on_cuda=True)):
        raise UserError(
            f"the {wanted} backend cannot run this on {device_type} here: available are {', '.join(candidates)}"
        )
    return candidates[0]


_LIBRARY = torch.library.Library("fastinfogan", "FRAGMENT")
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(torch._C.DispatchKey.AutocastCUDA)


def register_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``function`` as the op ``fastinfogan::<its name>``, like ``torch.library.custom_op`` without its layers.

    Those check at every call what the tests check once (opcheck), for 12 us; the ops of a training step are called
    thousands of times a minute. The function must neither return nor change its inputs. Autocast ends at it: what it
    calls would give bfloat16 for float32, to a caller that was told float32, or to C++ that reads it as such.
    """

    @functools.wraps(function)
    def as_given(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return function(*arguments)

    name = function.__name__.removeprefix("_")
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, as_given, "CompositeExplicitAutograd")
    found: Callable[..., Any] = getattr(torch.ops.fastinfogan, name).default
    return found


def below_autograd(*tensors: torch.Tensor) -> AbstractContextManager[object]:
    """Skip PyTorch's autograd layer, 7 us of Python a call, where none of an op's ``tensors`` asks for a gradient.

    Raises:
        UserError: one carries a forward-mode derivative, of which that layer would make zeros.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(one).tangent is not None for one in tensors):
        raise UserError(
            "fastinfogan's ops have no forward-mode derivatives: use backward() or torch.func.vjp, or compute what "
            "needs them with PyTorch's own layers"
        )
    if any(one.requires_grad for one in tensors):
        return nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` that refuses to be differentiated again: the gradients that it makes carry no graph of their own."""

    @functools.wraps(backward)
    def refusing(ctx: Any, *gradients: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # as create_graph=True has it
            raise UserError(
                "fastinfogan's ops are differentiable once, not twice: leave out create_graph=True, or compute what "
                "needs it with PyTorch's own layers"
            )
        return backward(ctx, *gradients)

    return refusing


@lru_cache
def constant(
    values: tuple[float, ...] | tuple[int, ...] | tuple[bool, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``values`` on ``device``, made once for good: while a stream is captured nothing may be copied from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache
def implementation(
    op: str, backend: str, reference: Callable[..., Any], *, native: str = "native"
) -> Callable[..., Any]:
    """The function of that name in the extension's adaptor ``native`` or the kernel's file; loaded when first used.

    ``backend``: one of :data:`BACKENDS`, as :func:`choose` gave it; a plain str, as the schema of an op knows no other.
    """
    if backend == "reference":
        return reference
    module = f"fastinfogan.ops.{native}" if backend == "native" else f"fastinfogan.kernels.{op}"
    found: Callable[..., Any] = getattr(import_module(module), op)
    return found
