"""Q's head and its rivals computed together: one after the other they are most of the launches of an iteration.

Each is small, and all are given the same features. So a layer of all heads is one product, of their weights one below
the other where all have the same input and a batch of them behind that, and one batch norm over the units of all. The
heads stay modules of their own, since they change places and are copied (:mod:`fastinfogan.rivals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F

from fastinfogan.matrices import SLOPES, MatrixEngine
from fastinfogan.networks import Block, Blocks, VectorNorm, activate
from fastinfogan.ops.fc import fc
from fastinfogan.ops.norm_act import norm_act


def answers(heads: Sequence[Blocks], features: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """What each of ``heads`` makes of ``features`` ``[rows, n_features]``: ``[n_heads, rows, head_dim]``.

    groups: the rows are as many equal parts, each with its own batch-norm statistics. Norms that do not learn, or learn
    over several processes, have the heads computed one after the other.
    """
    if len(heads) == 1:
        return cast(torch.Tensor, heads[0](features, groups))[None]
    layers = [cast(tuple[Block, ...], blocks) for blocks in zip(*heads, strict=True)]
    norms = [block.norm for blocks in layers for block in blocks if block.norm is not None]
    if not all(norm.training and norm.momentum is not None and type(norm) is VectorNorm for norm in norms):
        return torch.stack([head(features, groups) for head in heads])
    units = _layer(layers[0], features, groups, shared=True)
    for blocks in layers[1:]:
        units = _layer(blocks, units, groups, shared=False)
    return units.unflatten(1, (len(heads), -1)).transpose(0, 1)


def _layer(blocks: tuple[Block, ...], x: torch.Tensor, groups: int, *, shared: bool) -> torch.Tensor:
    """``[rows, n_heads * out]``: the same layer of all heads, of rows ``[rows, in]`` that they share, or of
    ``[rows, n_heads * in]``."""
    engines = [cast(MatrixEngine | None, block.engine) for block in blocks]
    plain = [block.weights or (block.linear.weight, block.linear.bias) for block in blocks]
    weights = [
        weight if engine is None else engine.matrix(block)
        for engine, block, (weight, _) in zip(engines, blocks, plain, strict=True)
    ]
    on_cpu = engines[0] is not None
    if on_cpu:
        x = x.to(weights[0].dtype)
    with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
        if shared:
            together = torch.cat(weights)
            y = fc(x, together) if on_cpu else F.linear(x, together)
        else:
            batched = x.unflatten(1, (len(blocks), -1)).permute(1, 2, 0)
            # With the weights in front their gradients lie in memory as they do, and nothing is copied to turn them.
            y = torch.bmm(torch.stack(weights), batched).permute(2, 0, 1).flatten(1)
        if blocks[0].norm is None:
            biases = torch.cat([cast(torch.Tensor, bias) for _, bias in plain])
            return activate(y + biases.to(y.dtype), blocks[0].act)
        return _normalise_and_activate(blocks, y, groups, fused=on_cpu)


def _normalise_and_activate(blocks: tuple[Block, ...], y: torch.Tensor, groups: int, *, fused: bool) -> torch.Tensor:
    norms, act = [cast(VectorNorm, block.norm) for block in blocks], blocks[0].act
    gain, bias = torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])
    running = [
        [cast(torch.Tensor, norm.running_mean) for norm in norms],
        [cast(torch.Tensor, norm.running_var) for norm in norms],
    ]
    momentum, eps, width = cast(float, norms[0].momentum), norms[0].eps, len(norms[0].weight)
    mean, variance = map(torch.cat, running)
    if fused:
        y, means, variances = norm_act(y, bias, gain, slope=SLOPES.get(act, 1.0), groups=groups, eps=eps)
        n = len(y) // groups
        with torch.no_grad():
            for of_group, its_variance in zip(means, variances * (n / (n - 1)), strict=True):
                mean.lerp_(of_group, momentum)
                variance.lerp_(its_variance, momentum)
    else:
        parts = [F.batch_norm(part, mean, variance, gain, bias, True, momentum, eps) for part in y.chunk(groups)]
        y = torch.cat(parts)
    with torch.no_grad():
        for kept, now in zip(running, (mean, variance), strict=True):
            torch._foreach_copy_(kept, now.split(width))
    return y if fused and act in SLOPES else activate(y, act)
