"""4x4 convolutions as matrix products: forward, transposed, and the gradient of the weights.

The CPU's library multiplies matrices at up to 2,800 GFLOP/s in bfloat16 where its convolutions, above all their
backward passes, reach a tenth of that. A convolution is the product of the image's patches with the weights, its
transpose the product followed by the sum of overlapping patches. The patches are made and used a few images at a time,
so that they stay in the cache: written out whole they are the largest tensor of the iteration, and cost more than the
products. Each of the three ops is a gradient of the others. Only the CPU uses them; there is no Triton kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastinfogan.errors import UserError
from fastinfogan.ops.backend import Backend, below_autograd, choose, first_order, implementation, register_op

KERNEL = 4


def convolve(
    images: torch.Tensor, matrix: torch.Tensor, *, stride: int, before: int, backend: str | None = None
) -> torch.Tensor:
    """``[n, out, h / stride, w / stride]``, channels-last: the convolution of ``images`` ``[n, in, h, w]``.

    Args:
        images: float64, float32, bfloat16 or float16; channels-last is read as it lies.
        matrix: the weights ``[out, 16 * in]``, columns (ky, kx, in), of the same dtype.
        stride: 1 or 2; it must divide ``h`` and ``w``.
        before: rows and columns of zeros above and to the left; ``4 - stride - before`` follow below and to the right.

    Raises:
        UserError: shapes, or a stride or padding, that do not fit.
    """
    _check(images, matrix, stride, before)
    if images.shape[2] % stride or images.shape[3] % stride or matrix.shape[1] != KERNEL**2 * images.shape[1]:
        raise UserError(
            f"convolve at stride {stride} expected images whose sides it divides and a matrix "
            f"[out, {KERNEL**2 * images.shape[1]}], got {tuple(images.shape)} and {tuple(matrix.shape)}"
        )
    with below_autograd(images, matrix):
        small: torch.Tensor = _convolve(images, matrix, stride, before, _backend(backend, images))
        return small


def convolve_transposed(
    images: torch.Tensor, matrix: torch.Tensor, *, stride: int, before: int, backend: str | None = None
) -> torch.Tensor:
    """``[n, out, h * stride, w * stride]``, channels-last: the transposed convolution of ``images`` ``[n, in, h, w]``.

    ``matrix``: the weights ``[in, 16 * out]``, columns (ky, kx, out); ``before`` is the padding of the convolution that
    this is the transpose of. The rest as in :func:`convolve`.
    """
    _check(images, matrix, stride, before)
    if matrix.shape[0] != images.shape[1] or matrix.shape[1] % KERNEL**2:
        raise UserError(
            f"convolve_transposed expected a matrix [{images.shape[1]}, 16 * out], got {tuple(matrix.shape)}"
        )
    with below_autograd(images, matrix):
        large: torch.Tensor = _convolve_transposed(images, matrix, stride, before, _backend(backend, images))
        return large


def _backend(requested: str | None, tensor: torch.Tensor) -> Backend:
    return choose(requested, tensor.device.type, fused=tensor.dtype != torch.float64, triton=False)


def _check(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> None:
    if images.dim() != 4 or stride not in (1, 2) or not 0 <= before <= KERNEL - stride:
        raise UserError(
            f"4x4 convolutions take images [n, c, h, w] at stride 1 or 2 with 0 to 4 - stride rows of padding before, "
            f"got {tuple(images.shape)} at {stride} with {before}"
        )
    if matrix.dim() != 2:
        raise UserError(f"4x4 convolutions take their weights as a matrix, got {tuple(matrix.shape)}")


def _weight(matrix: torch.Tensor) -> torch.Tensor:
    """``[rows, 16 * columns]`` as a kernel ``[rows, columns, ky, kx]``."""
    return matrix.unflatten(1, (KERNEL, KERNEL, -1)).permute(0, 3, 1, 2)


def _padded(images: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    after = KERNEL - stride - before
    return F.pad(images, (before, after, before, after))


def _convolve_reference(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    small = F.conv2d(_padded(images, stride, before), _weight(matrix), stride=stride)
    return small.contiguous(memory_format=torch.channels_last)


def _transposed_reference(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    height, width = (stride * side for side in images.shape[2:])
    padded = F.conv_transpose2d(images, _weight(matrix), stride=stride)
    large = padded[:, :, before : before + height, before : before + width]
    return large.contiguous(memory_format=torch.channels_last)


def _gradient_reference(large: torch.Tensor, small: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    patches = _padded(large, stride, before).unfold(2, KERNEL, stride).unfold(3, KERNEL, stride)
    return torch.einsum("nchwyx,nohw->oyxc", patches, small).flatten(1)


@register_op
def _convolve(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int, backend: str) -> torch.Tensor:
    return implementation("convolve", backend, _convolve_reference, native="native_layers")(
        images, matrix, stride, before
    )


@register_op
def _convolve_transposed(
    images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int, backend: str
) -> torch.Tensor:
    run = implementation("convolve_transposed", backend, _transposed_reference, native="native_layers")
    return run(images, matrix, stride, before)


@register_op
def _convolve_gradient(
    large: torch.Tensor, small: torch.Tensor, stride: int, before: int, backend: str
) -> torch.Tensor:
    """d / d matrix of either op, ``[channels of small, 16 * channels of large]``: one side is the output's gradient."""
    run = implementation("convolve_gradient", backend, _gradient_reference, native="native_layers")
    return run(large, small, stride, before)


@torch.library.register_fake("fastinfogan::convolve")
def _(images, matrix, stride, before, backend):  # type: ignore[no-untyped-def]
    n, _, height, width = images.shape
    return images.new_empty((n, height // stride, width // stride, matrix.shape[0])).permute(0, 3, 1, 2)


@torch.library.register_fake("fastinfogan::convolve_transposed")
def _(images, matrix, stride, before, backend):  # type: ignore[no-untyped-def]
    n, _, height, width = images.shape
    return images.new_empty((n, height * stride, width * stride, matrix.shape[1] // KERNEL**2)).permute(0, 3, 1, 2)


@torch.library.register_fake("fastinfogan::convolve_gradient")
def _(large, small, stride, before, backend):  # type: ignore[no-untyped-def]
    return small.new_empty((small.shape[1], KERNEL**2 * large.shape[1]))


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    images, matrix, *ctx.rest = inputs
    ctx.save_for_backward(images, matrix)


@first_order
def _convolve_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    images, _ = ctx.saved_tensors
    return _gradients(ctx, torch.ops.fastinfogan.convolve_transposed, gradient, large=images, small=gradient)


@first_order
def _transposed_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    images, _ = ctx.saved_tensors
    return _gradients(ctx, torch.ops.fastinfogan.convolve, gradient, large=gradient, small=images)


def _gradients(ctx, adjoint, gradient, *, large, small):  # type: ignore[no-untyped-def]
    _, matrix = ctx.saved_tensors
    for_images, for_matrix = ctx.needs_input_grad[:2]
    return (
        adjoint(gradient, matrix, *ctx.rest) if for_images else None,
        torch.ops.fastinfogan.convolve_gradient(large, small, *ctx.rest) if for_matrix else None,
        None, None, None,
    )  # fmt: skip


torch.library.register_autograd("fastinfogan::convolve", _convolve_backward, setup_context=_context)
torch.library.register_autograd("fastinfogan::convolve_transposed", _transposed_backward, setup_context=_context)
