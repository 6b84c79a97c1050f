"""Weights of spectral norm 1 (Miyato et al. 2018), for all layers of a network together.

`torch.nn.utils.parametrizations.spectral_norm` sees to one layer at a time, in 16 launches a layer and forward, more
than the layer itself needs; on a GPU, where an iteration is bound by its launches, that doubles it. Under autocast it
also estimates the norm in the low precision. Here one step of the power iteration is made for all layers at once, in
the weights' own precision, and the gradient is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

FIRST_STEPS = 15  # of the power iteration, at the start
EPSILON = 1e-12  # the shortest length that a vector is divided by


class SpectralNorms(nn.Module):
    """Parametrizes the weights of ``layers`` by dividing each by its largest singular value sigma.

    vectors: what the power iteration has reached, each layer's u, then each layer's v, one after the other.
    """

    vectors: torch.Tensor
    owners: torch.Tensor

    def __init__(self, layers: Sequence[nn.Linear | nn.Conv2d]) -> None:
        super().__init__()
        self.layers: list[nn.Module] = list(layers)  # not submodules of this one: they are the network's
        shapes = [weight_matrix(layer.weight).shape for layer in layers]
        self.sizes = [rows for rows, _ in shapes] + [columns for _, columns in shapes]
        self.register_buffer("vectors", torch.randn(sum(self.sizes), dtype=layers[0].weight.dtype))
        owners = [place for place, size in enumerate(self.sizes) for _ in range(size)]
        self.register_buffer("owners", torch.tensor(owners), persistent=False)
        for layer in layers:
            # Unsafe is only that it is not tried here, where there is no estimate yet.
            parametrize.register_parametrization(layer, "weight", _Divisor(), unsafe=True)
        for _ in range(FIRST_STEPS):
            self.estimate(advance=True)

    @torch.no_grad()
    def estimate(self, *, advance: bool) -> None:
        """Estimate every sigma of the present weights, after a step of power iteration if ``advance``.

        To be called before a forward pass, which may read the layers' weights any number of times.
        """
        found = [layer.get_submodule("parametrizations.weight") for layer in self.layers]
        parametrizations = cast(list[parametrize.ParametrizationList], found)
        matrices = [weight_matrix(parametrization.original) for parametrization in parametrizations]
        sigmas, vectors = self._advance(matrices) if advance else self._measure(matrices)
        triples = zip(sigmas.unbind(), vectors[: len(matrices)], vectors[len(matrices) :], strict=True)
        for parametrization, estimate in zip(parametrizations, triples, strict=True):
            cast(_Divisor, parametrization[0]).estimate = estimate

    def vectors_of(self, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """u and v of ``layer``, views of ``vectors``."""
        place, vectors = self.layers.index(layer), self.vectors.split(self.sizes)
        return vectors[place], vectors[place + len(self.layers)]

    def _advance(self, matrices: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """A step: the sigmas, every u and every v.

        1. With W a weight as a matrix, Algorithm 1 is v = W^T u / |W^T u|, u = W v / |W v|, sigma = u^T W v.
        2. W v has the direction of W W^T u, so that lengths are only wanted once both are there: with v' = W^T u and
           u' = W v', v = v' / |v'|, u = u' / |u'|, and sigma = |u'| / |v'|.
        """
        # New tensors, as the last forward pass may still wait for its backward pass.
        now = torch.empty_like(self.vectors)
        before, vectors = self.vectors.split(self.sizes), now.split(self.sizes)
        for matrix, old, u, v in zip(matrices, before, vectors, vectors[len(matrices) :], strict=False):
            torch.mv(matrix.mT, old, out=v)  # `out` keeps autocast from it
            torch.mv(matrix, v, out=u)
        lengths = torch.stack(torch._foreach_norm(vectors)).clamp_min_(EPSILON)
        now.div_(lengths[self.owners])
        self.vectors.copy_(now)
        return lengths[: len(matrices)] / lengths[len(matrices) :], vectors

    def _measure(self, matrices: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The sigmas of what the iteration has reached, every u and every v."""
        # Copies, as a step may overwrite the vectors before the backward pass.
        vectors = self.vectors.clone().split(self.sizes)
        triples = zip(vectors, matrices, vectors[len(matrices) :], strict=False)
        products = [(u, torch.mv(matrix, v, out=torch.empty_like(u))) for u, matrix, v in triples]
        return torch.stack([torch.dot(u, product) for u, product in products]).clamp_min_(EPSILON), vectors


class _Divisor(nn.Module):
    """The parametrization of one weight: divides it by the last estimate of its sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.estimate: tuple[torch.Tensor, ...] = ()  # sigma, u, v

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        divided: torch.Tensor = _Divided.apply(weight, *self.estimate)
        return divided


class _Divided(torch.autograd.Function):
    """W / sigma, with sigma = u^T W v for constant u and v."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, sigma: torch.Tensor, *vectors: torch.Tensor) -> torch.Tensor:
        divided = weight / sigma
        ctx.save_for_backward(divided, sigma, *vectors)
        return divided

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With g the gradient of V = W / sigma:

        1. d(W / sigma) = dW / sigma - W d(sigma) / sigma^2, and d(sigma) = u^T dW v = <u v^T, dW>.
        2. <g, dV> = <g, dW> / sigma - <g, V> <u v^T, dW> / sigma, so W's gradient is (g - <g, V> u v^T) / sigma.
        """
        divided, sigma, u, v = ctx.saved_tensors
        along = (gradient * divided).sum()
        of_weight = torch.addr(weight_matrix(gradient), along * u, v, alpha=-1.0).div_(sigma)
        if gradient.dim() == 4:
            _, channels, height, width = gradient.shape
            of_weight = of_weight.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return of_weight, None, None, None


def weight_matrix(weight: torch.Tensor) -> torch.Tensor:
    """fc ``[out, in]``; conv ``[out, (ky, kx, in)]``; up ``[in, (ky, kx, out)]``: as channels-last weights lie."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
