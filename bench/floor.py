"""A floor under one training iteration on a machine: its arithmetic and its traffic at measured rates.

The work is counted from the paper's tables, not from what an implementation happens to do: one generator forward, D on
real and on generated images, and in the G phase no gradient of D's weights. Traffic: each layer's output is written and
read once going forward, and going back read again while its gradient is written and read; each weight is read once a
pass in the format of the matrix products, its fp32 gradient is written and read, and Adam reads and writes weight and
moments. Rates are those that plain products and plain copies reach here, and the two times are added, as one core does
both: a mark to measure by, and what could hide the one behind the other would get below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.measure import in_turns, repeated
from fastinfogan.codes import LatentSpec
from fastinfogan.networks import Layer, Tables, fc, shape_after
from fastinfogan.ops.fc import fc as product

ACTIVATION_PASSES = 5  # written, read; read again, gradient written, read
OPTIMISER_BYTES = 4 * 8  # a weight's gradient, itself and two moments, each read once and written once in fp32
TAPS = 4  # of the tables' convolutions, in either direction


@dataclass(frozen=True)
class Work:
    """What one iteration must do: floating-point operations and bytes read or written."""

    flops: int
    bytes: int

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """At so many operations and bytes a second."""
        return self.flops / flop_rate + self.bytes / byte_rate


@dataclass(frozen=True)
class Part:
    """A stack of layers, per image. first: the operations of the first layer; values: the outputs of all layers."""

    flops: int
    first: int
    values: int
    weights: int
    shape: tuple[int, int]


def part(layers: Sequence[Layer], shape: tuple[int, int]) -> Part:
    """What ``layers`` cost on one input of ``shape`` = (channels, side)."""
    products, values, weights = [], 0, 0
    for layer in layers:
        channels, side = shape
        shape = shape_after(layer, shape)
        if layer.kind == "fc":
            kernel = meetings = channels * side**2 * layer.channels * layer.grid**2
        else:
            pairs = channels * layer.channels
            kernel = TAPS**2 * pairs
            meetings = _taps_within(min(side, shape[1]), layer.stride) ** 2 * pairs
        products.append(2 * meetings)
        values += shape[0] * shape[1] ** 2
        weights += kernel
    return Part(sum(products), products[0], values, weights, shape)


def _taps_within(small: int, stride: int) -> int:
    """Along one direction, how many taps of the kernels at ``small`` places meet the larger image, ``stride`` times as
    long, and not the zeros around it: a product with those is none that anybody must do.

    One row of padding lies before the image. (At stride 1 it may be two before and one behind: as many taps.)
    """
    return sum(0 <= stride * place - 1 + tap < stride * small for place in range(small) for tap in range(TAPS))


def iteration(tables: Tables, spec: LatentSpec, batch: int, value_bytes: int) -> Work:
    """One iteration on ``batch`` images with activations and weights of ``value_bytes`` bytes."""
    generator = part(tables.generator, (spec.dim, 1))
    trunk = part(tables.trunk, tables.image[:2])
    adversarial = part([fc(1)], trunk.shape)
    recognition = part([*tables.recognition, fc(spec.head_dim)], trunk.shape)
    heads = adversarial.flops + recognition.flops
    flops = (
        3 * generator.flops - generator.first  # latents need no gradient
        + 2 * (3 * trunk.flops - trunk.first)  # D phase, real and generated: neither do images
        + 2 * 3 * adversarial.flops + 3 * recognition.flops
        + 2 * (trunk.flops + heads)  # G phase: through D, whose weights get no gradient
    )  # fmt: skip
    values = generator.values + 3 * (trunk.values + adversarial.values) + 2 * recognition.values
    d_weights = trunk.weights + adversarial.weights + recognition.weights
    weight_bytes = (4 * d_weights + 2 * generator.weights) * value_bytes  # forward and back, in both phases for D
    weight_bytes += (d_weights + generator.weights) * OPTIMISER_BYTES
    return Work(batch * flops, batch * values * ACTIVATION_PASSES * value_bytes + weight_bytes)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of ten by the faster of torch's product and fastinfogan's."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    seconds = in_turns({"torch": lambda: a @ a, "fastinfogan": lambda: product(a, a)}, 10, device)
    return 2 * n**3 / min(float(each.min()) for each in seconds.values())


def copy_rate(device: torch.device) -> float:
    """Bytes read plus bytes written a second, copying 256 MiB, the best of ten; of a GPU many times each, as one copy
    takes it little longer than a launch."""
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = 50 if device.type == "cuda" else 1
    seconds = in_turns({"copy": repeated(lambda: target.copy_(source), times)}, 10, device)["copy"]
    return 2 * times * source.numel() / float(seconds.min())
