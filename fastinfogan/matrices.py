"""The networks as matrix products: the same layers for a CPU, several times faster than the library's convolutions.

A 4x4 convolution is ``patches`` and a product, a transposed one a product and ``fold``; bias or batch norm and
activation follow in one pass. With bfloat16 the products use copies of the weights that the optimiser refreshes
(:mod:`fastinfogan.ops.adam`), so that nothing is cast in an iteration, and gradients arrive in bfloat16 at the copies.
The values are those of the plain modules up to rounding; what each part brought is measured in bench/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastinfogan.errors import UserError
from fastinfogan.networks import LEAKY_SLOPE, Block, ImageNorm, Norm, VectorNorm, activate, flatten
from fastinfogan.ops.backend import choose
from fastinfogan.ops.convolve import convolve, convolve_transposed
from fastinfogan.ops.fc import fc
from fastinfogan.ops.norm_act import norm_act
from fastinfogan.precision import Precision
from fastinfogan.spectral import weight_matrix

SLOPES = {"relu": 0.0, "lrelu": LEAKY_SLOPE}  # of the activations that norm_act has


class WeightCopy:
    """A bfloat16 copy of a weight as the matrix that the products use: a leaf that collects the gradient."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.matrix = weight_matrix(weight).detach().to(torch.bfloat16).requires_grad_()
        self.version = weight._version

    def current(self) -> torch.Tensor:
        """The matrix, rounded anew if anything but the optimiser's op, which does so itself, wrote the weight.

        What counts no version is not seen: writing through ``.data``, and PyTorch's own fused Adam.
        """
        if self.version != self.weight._version:
            with torch.no_grad():
                self.matrix.copy_(weight_matrix(self.weight))
            self.version = self.weight._version
        return self.matrix if self.weight.requires_grad else self.matrix.detach()


def use_matrices(networks: Sequence[nn.Module], precision: Precision) -> Mapping[nn.Parameter, torch.Tensor] | None:
    """Let every block of ``networks`` compute through matrix products from now on, where that is the fastest.

    Returns the bfloat16 copies by weight, which the optimiser must keep up to date: none in float32. None, and nothing
    is changed, on a GPU, without the C++ extension, and in float16, whose scaler needs PyTorch's own Adam.

    Raises:
        UserError: weights that are not in channels-last memory format, the order that the copies are updated in.
    """
    if precision.device.type != "cpu" or precision.dtype == torch.float16:
        return None
    if choose(None, "cpu", triton=False) != "native":
        return None
    for weight in (weight for network in networks for weight in network.parameters()):
        if weight.dim() == 4 and not weight.is_contiguous(memory_format=torch.channels_last):
            raise UserError(
                f"matrices expected networks in channels-last order, got a weight {tuple(weight.shape)} of strides "
                f"{weight.stride()}: use network.to(memory_format=torch.channels_last) first"
            )
    copies: dict[nn.Parameter, torch.Tensor] = {}
    for block in (module for network in networks for module in network.modules()):
        if isinstance(block, Block):
            copy = None
            # A weight of spectral norm 1 is computed anew in every forward: there is nothing to keep a copy of.
            if precision.dtype == torch.bfloat16 and not is_parametrized(block.linear):
                copy = WeightCopy(cast(nn.Parameter, block.linear.weight))
                copies[copy.weight] = copy.matrix
            block.engine = MatrixEngine(copy)
    return copies


class MatrixEngine:
    """What a block computes when it is a matrix product; a :attr:`Block.engine`."""

    def __init__(self, copy: WeightCopy | None) -> None:
        self.copy = copy

    def __deepcopy__(self, memo: object) -> MatrixEngine:
        return MatrixEngine(None)  # a copy of a network is not what the optimiser updates

    def __call__(self, block: Block, x: torch.Tensor, groups: int) -> torch.Tensor:
        matrix = self.matrix(block)
        with torch.autocast("cpu", enabled=False):
            return _normalise_and_activate(block, _product(block, x.to(matrix.dtype), matrix), groups)

    def matrix(self, block: Block) -> torch.Tensor:
        """The weights of ``block``, in the dtype to compute in."""
        weight = block.linear.weight
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if self.copy is not None and self.copy.weight is weight and dtype == self.copy.matrix.dtype:
            return self.copy.current()
        return weight_matrix(weight).to(dtype)


def _product(block: Block, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The block's linear map without bias: rows ``[n, out]``, or an image ``[n, out, h, w]``."""
    layer, (before, _) = block.layer, block.padding
    if layer.kind == "fc":
        rows = fc(flatten(x), matrix)
        if layer.grid == 1:
            return rows
        return rows.view(len(x), layer.grid, layer.grid, layer.channels).permute(0, 3, 1, 2)
    if layer.kind == "up" and layer.stride == 2:
        return convolve_transposed(x, matrix, stride=2, before=before)
    return convolve(x, matrix, stride=layer.stride, before=before)


def _normalise_and_activate(block: Block, x: torch.Tensor, groups: int) -> torch.Tensor:
    norm, slope = block.norm, SLOPES.get(block.act, 1.0)  # 1 is none
    bias = cast(torch.Tensor, block.linear.bias if norm is None else norm.bias)
    if norm is not None and not (norm.training and type(norm) in (VectorNorm, ImageNorm)):
        return activate(block.normalise(x, groups), block.act)
    if norm is None and block.act not in SLOPES:
        bias = bias.to(x.dtype)
        return activate(x + (bias if x.dim() == 2 else bias[:, None, None]), block.act)
    rows = x if x.dim() == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)
    if norm is None:
        y, _, _ = norm_act(rows, bias, slope=slope)
    else:
        y, mean, variance = norm_act(rows, bias, norm.weight, slope=slope, groups=groups, eps=norm.eps)
        _keep_statistics(norm, mean, variance, len(rows) // groups)
    y = y if x.dim() == 2 else y.view(len(x), *x.shape[2:], y.shape[1]).permute(0, 3, 1, 2)
    return y if block.act in SLOPES else activate(y, block.act)


@torch.no_grad()
def _keep_statistics(norm: Norm, mean: torch.Tensor, variance: torch.Tensor, n: int) -> None:
    """Running statistics as batch norm keeps them: of one group after the other, with the unbiased variance."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    for group_mean, group_variance in zip(mean, variance, strict=True):
        if norm.momentum is None:  # the plain average over all batches
            norm.num_batches_tracked += 1
        share = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(group_mean, share)
        norm.running_var.lerp_(group_variance * (n / (n - 1)), share)
