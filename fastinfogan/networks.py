"""The networks of the paper's Tables 1, 2, 3, 4 and 6, as data, and the builder that turns a table into modules.

Hold the paper's appendix C beside :data:`TABLES`: one entry a line, in the order of the table. Convolutions are 4x4;
``conv`` halves the image and ``up`` doubles it unless ``stride=1``. D and Q use leaky ReLU of slope 0.1, G uses ReLU.
Where a fully connected layer makes an image, as in G, norm is per channel of that image, as behind every other layer;
the tables do not say, and the authors' code for MNIST has a mean and a gain for each of the 6,272 units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from fastinfogan.codes import LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.philox import seed32
from fastinfogan.prior import LearnedPrior
from fastinfogan.spectral import SpectralNorms

Activation = Literal["lrelu", "relu", "sigmoid", "tanh", "none"]
Kind = Literal["conv", "fc", "up"]
TablesName = Literal["mnist", "svhn", "celeba", "celeba-64", "faces", "chairs", "dsprites"]

Shape = tuple[int, int]  # channels, side of the square image; a vector has side 1

LEAKY_SLOPE = 0.1
INIT_STD = 0.02  # the official code's, and DCGAN's


@dataclass(frozen=True)
class Layer:
    """One line of a table: what it computes, how many channels come out, whether batch norm follows."""

    kind: Kind
    channels: int
    norm: bool = False
    act: Activation | None = None  # None: the network's own, leaky ReLU in D and Q, ReLU in G
    stride: int = 2
    grid: int = 1  # an fc layer whose output is an image of grid x grid


def conv(channels: int, norm: bool = False, stride: int = 2) -> Layer:
    """4x4 convolution: ``[n, in, h, w]`` to ``[n, channels, h / stride, w / stride]``."""
    return Layer("conv", channels, norm, stride=stride)


def fc(channels: int, norm: bool = False, grid: int = 1) -> Layer:
    """Fully connected: rows or flattened images to ``[n, channels]``, or with a ``grid`` to images of that side."""
    return Layer("fc", channels, norm, grid=grid)


def up(channels: int, norm: bool = False, act: Activation | None = None, stride: int = 2) -> Layer:
    """4x4 transposed convolution: ``[n, in, h, w]`` to ``[n, channels, h * stride, w * stride]``."""
    return Layer("up", channels, norm, act, stride)


@dataclass(frozen=True)
class Tables:
    """The two columns of one table of the paper. The last line of each column is implied by the heads.

    image: (channels, height, width).
    trunk: layers that D and Q share; D's head on top of it is one fc to one logit.
    recognition: Q's own layers, before its fc to ``spec.head_dim`` outputs.
    generator: from the latents to the image.
    spectral: D's and Q's weights are divided by their largest singular value, and no batch norm follows them.
    rivals: recognition heads beside Q's, of which one may take its place (:mod:`fastinfogan.rivals`).
    inverted: black is the high end of the images' range, white the low one.
    """

    image: tuple[int, int, int]
    trunk: Sequence[Layer]
    recognition: Sequence[Layer]
    generator: Sequence[Layer]
    spectral: bool = False
    rivals: int = 0
    inverted: bool = False

    @property
    def image_range(self) -> tuple[float, float]:
        """What black and white are to the networks: the ends of what the generator's last activation spans."""
        low = -1.0 if self.generator[-1].act == "tanh" else 0.0
        return (1.0, low) if self.inverted else (low, 1.0)


# Tables 2 and 3 differ only in the number of inputs and outputs, which the LatentSpec sets.
_COLOUR = Tables(
    image=(3, 32, 32),
    trunk=[conv(64), conv(128, norm=True), conv(256, norm=True)],
    recognition=[fc(128, norm=True)],
    generator=[fc(448, norm=True, grid=2), up(256, norm=True), up(128), up(64), up(3, act="tanh")],
)

TABLES: dict[TablesName, Tables] = {
    # Table 1
    "mnist": Tables(
        image=(1, 28, 28),
        trunk=[conv(64), conv(128, norm=True), fc(1024, norm=True)],
        recognition=[fc(128, norm=True)],
        generator=[fc(1024, norm=True), fc(128, norm=True, grid=7), up(64, norm=True), up(1, act="sigmoid")],
    ),
    # Table 2
    "svhn": _COLOUR,
    # Table 3
    "celeba": _COLOUR,
    # Not the paper's: Table 3 with one more halving and doubling, of twice the channels, for images of twice the side
    "celeba-64": Tables(
        image=(3, 64, 64),
        trunk=[conv(64), conv(128, norm=True), conv(256, norm=True), conv(512, norm=True)],
        recognition=[fc(128, norm=True)],
        generator=[
            fc(896, norm=True, grid=2),
            up(448, norm=True),
            up(256, norm=True),
            up(128),
            up(64),
            up(3, act="tanh"),
        ],
    ),
    # Table 4: Q shares everything but the output
    "faces": Tables(
        image=(1, 32, 32),
        trunk=[conv(64), conv(128, norm=True), fc(1024, norm=True)],
        recognition=[],
        generator=[fc(1024, norm=True), fc(128, norm=True, grid=8), up(64, norm=True), up(1, act="sigmoid")],
    ),
    # Table 6; 64x64 needs three doublings from 8x8, so the last upconv has stride 2
    "chairs": Tables(
        image=(1, 64, 64),
        trunk=[
            conv(64),
            conv(128, norm=True),
            conv(256, norm=True),
            conv(256, norm=True, stride=1),
            conv(256, norm=True, stride=1),
            fc(1024, norm=True),
        ],
        recognition=[],
        generator=[
            fc(1024, norm=True),
            fc(256, norm=True, grid=8),
            up(256, norm=True, stride=1),
            up(256, norm=True, stride=1),
            up(128, norm=True),
            up(64, norm=True),
            up(1, act="sigmoid"),
        ],
    ),
    # Not the paper's: those of Lin et al. 2020 (InfoGAN-CR) for dSprites, where D has no batch norm but spectral norm;
    # theirs norm behind the activation, and G's upconvs are leaky
    "dsprites": Tables(
        image=(1, 64, 64),
        trunk=[conv(32), conv(32, norm=True), conv(64, norm=True), conv(64, norm=True), fc(128, norm=True)],
        recognition=[fc(128, norm=True)],
        generator=[
            fc(128, norm=True),
            fc(64, norm=True, grid=4),
            up(64, norm=True),
            up(32, norm=True),
            up(32, norm=True),
            up(1, act="sigmoid"),
        ],
    ),
}


class _UncountedNorm(nn.modules.batchnorm._BatchNorm):
    """PyTorch's, but in training it does not count the batches: a launch, for what only a cumulative average reads."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.momentum is not None):
            return super().forward(input)
        self._check_input_dim(input)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


class VectorNorm(_UncountedNorm, nn.BatchNorm1d):
    """Of the outputs of an fc layer."""


class ImageNorm(_UncountedNorm, nn.BatchNorm2d):
    """Of images, per channel."""


Norm = VectorNorm | ImageNorm


class Block(nn.Module):
    """One line of a table: a linear map, batch norm where the line has it, and the activation.

    Images are passed between blocks channels-last in memory, and an fc block takes their values in that order
    (y, x, channel), so that nothing is copied between convolutions and fc layers. A batch may consist of ``groups``
    equal parts one after the other, each normalised by its own statistics.

    ``engine`` replaces the computation by another of the same values, see :mod:`fastinfogan.matrices`, and ``weights``
    weight and bias of the linear map, see :mod:`fastinfogan.casts`.
    """

    def __init__(self, layer: Layer, shape: Shape, hidden: Activation) -> None:
        super().__init__()
        self.layer, self.act = layer, layer.act or hidden
        self.linear = _linear(layer, shape)
        self.norm: Norm | None = None
        if layer.norm:
            is_vector = layer.kind == "fc" and layer.grid == 1
            self.norm = VectorNorm(layer.channels) if is_vector else ImageNorm(layer.channels)
        self.engine: Callable[[Block, torch.Tensor, int], torch.Tensor] | None = None
        self.weights: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros before and after the image.

        At stride 1 an even kernel keeps the size only with uneven padding: one before and two after, as TensorFlow's
        SAME has it; its transpose is a convolution with the kernel mirrored and the padding the other way round.
        """
        if self.layer.stride == 2:
            return 1, 1
        return (1, 2) if self.layer.kind == "conv" else (2, 1)

    def forward(self, x: torch.Tensor, groups: int = 1) -> torch.Tensor:
        if self.engine is not None:
            return self.engine(self, x, groups)
        if self.layer.kind == "fc":
            y = self._map(flatten(x))
            if self.layer.grid > 1:
                y = y.unflatten(1, (self.layer.grid, self.layer.grid, self.layer.channels)).permute(0, 3, 1, 2)
        elif self.layer.stride == 1:
            before, after = self.padding
            y = self._map(F.pad(x, (before, after, before, after)))
        else:
            y = self._map(x)
        return activate(self.normalise(y, groups), self.act)

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        linear = self.linear
        if self.weights is None:
            mapped: torch.Tensor = linear(x)
            return mapped
        weight, bias = self.weights
        if isinstance(linear, nn.Linear):
            return F.linear(x, weight, bias)
        if isinstance(linear, nn.Conv2d):
            return F.conv2d(x, weight, bias, linear.stride, linear.padding)
        return F.conv_transpose2d(x, weight, bias, linear.stride, cast(tuple[int, ...], linear.padding))

    def normalise(self, y: torch.Tensor, groups: int) -> torch.Tensor:
        """Each of ``groups`` equal parts of ``y`` by its own statistics; ``y`` itself without a norm."""
        if self.norm is None:
            return y
        return self.norm(y) if groups == 1 else torch.cat([self.norm(part) for part in y.chunk(groups)])


def flatten(x: torch.Tensor) -> torch.Tensor:
    """Images ``[n, c, h, w]`` as rows in the order (y, x, channel), rows as they are."""
    return x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x


def activate(x: torch.Tensor, act: Activation) -> torch.Tensor:
    """The activation of that name; ``x`` may be overwritten."""
    if act == "lrelu":
        return F.leaky_relu_(x, LEAKY_SLOPE)
    if act == "relu":
        return F.relu_(x)
    if act == "none":
        return x
    return torch.sigmoid(x) if act == "sigmoid" else torch.tanh(x)


class Blocks(nn.ModuleList):
    """Blocks one after the other."""

    def forward(self, x: torch.Tensor, groups: int = 1) -> torch.Tensor:
        for block in self:
            x = block(x, groups)
        return x


class Generator(nn.Module):
    """G: latents ``[n, spec.dim]`` to images ``[n, channels, height, width]`` within ``tables.image_range``.

    prior: what its categories are to be drawn from, where that is learnt with it; None where all are equally frequent.
    """

    def __init__(self, tables: Tables, spec: LatentSpec) -> None:
        super().__init__()
        self.blocks = _blocks(tables.generator, (spec.dim, 1), "relu")
        self.prior = LearnedPrior(spec) if spec.learn_prior else None
        initialise(self)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = self.blocks(z)
        return images


class Discriminator(nn.Module):
    """D and Q: a shared trunk, an adversarial head of one logit and a recognition head of ``spec.head_dim`` outputs.

    The heads are separate layers: D's logit is no unit of Q's. With ``tables.spectral`` every layer has a weight of
    spectral norm 1, estimated by a step of power iteration per forward in training (Miyato et al. 2018, Algorithm 1).

    With ``tables.rivals``, running means over recent iterations, Q's head first, then each rival:
    standing: float32 ``[1 + rivals]``, the invariance term in nats, lower is better; -1 once the rivals are retired.
    readings: float32 ``[1 + rivals, k, k]`` over the k values of all categorical codes: G was given the row, the head
    answered the column.
    confusions: likewise, for a real image (row) and its warp (column).
    """

    standing: torch.Tensor
    readings: torch.Tensor
    confusions: torch.Tensor

    def __init__(self, tables: Tables, spec: LatentSpec) -> None:
        super().__init__()
        channels, height, _ = tables.image
        trunk, recognition = (
            [replace(layer, norm=layer.norm and not tables.spectral) for layer in layers]
            for layers in (tables.trunk, tables.recognition)
        )
        self.trunk = _blocks(trunk, (channels, height), "lrelu")
        features = (_output(trunk, (channels, height)), 1)
        self.adversarial_head = _blocks([Layer("fc", 1, act="none")], features, "lrelu")
        recognition = [*recognition, Layer("fc", spec.head_dim, act="none")]
        self.recognition_head = _blocks(recognition, features, "lrelu")
        self.rivals = nn.ModuleList(_blocks(recognition, features, "lrelu") for _ in range(tables.rivals))
        if tables.rivals:
            n_heads, n_values = 1 + tables.rivals, sum(spec.categorical)
            self.register_buffer("standing", torch.zeros(n_heads))
            self.register_buffer("readings", torch.zeros(n_heads, n_values, n_values))
            self.register_buffer("confusions", torch.zeros(n_heads, n_values, n_values))
        initialise(self)
        self.spectral: SpectralNorms | None = None
        if tables.spectral:
            layers = [block.linear for block in self.modules() if isinstance(block, Block)]
            self.spectral = SpectralNorms(cast(list[nn.Linear | nn.Conv2d], layers))  # no table's D has an ``up``

    @property
    def recognition_heads(self) -> list[Blocks]:
        """Q's and its rivals."""
        return [self.recognition_head, *cast(Iterable[Blocks], self.rivals)]

    def features(self, images: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """What the trunk makes of images ``[n, channels, height, width]``: ``[n, features]``.

        ``groups``: the batch consists of as many equal parts, each with its own batch-norm statistics. To be called
        before the heads are: it also estimates the spectral norm of every layer's weight, where they have them.
        """
        if self.spectral is not None:
            self.spectral.estimate(advance=self.training)
        return flatten(self.trunk(images, groups))

    def adversarial(self, features: torch.Tensor) -> torch.Tensor:
        """D's logit: ``[n]``; positive means real."""
        logits: torch.Tensor = self.adversarial_head(features)
        return logits.squeeze(1)

    def recognition(self, features: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """Q's outputs: ``[n, spec.head_dim]``, columns as in :class:`fastinfogan.codes.LatentSpec`."""
        outputs: torch.Tensor = self.recognition_head(features, groups)
        return outputs

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(logits [n], recognition [n, spec.head_dim])``."""
        features = self.features(images)
        return self.adversarial(features), self.recognition(features)


def build(tables: Tables, spec: LatentSpec, *, seed: int) -> tuple[Generator, Discriminator]:
    """Both networks with weights drawn from ``seed``, the same for every device and thread count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed32(seed))
        return Generator(tables, spec), Discriminator(tables, spec)


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch-norm gains N(1, 0.02), all biases 0, in every submodule."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(child.weight, 0.0, INIT_STD)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(child.weight, 1.0, INIT_STD)
            nn.init.zeros_(child.bias)


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """The shape of what ``layer`` makes of an input of ``shape``."""
    _, side = shape
    if layer.kind == "fc":
        return layer.channels, layer.grid
    return layer.channels, side // layer.stride if layer.kind == "conv" else side * layer.stride


def _output(layers: Sequence[Layer], shape: Shape) -> int:
    """Values per row after ``layers``."""
    for layer in layers:
        shape = shape_after(layer, shape)
    return shape[0] * shape[1] ** 2


def _blocks(layers: Sequence[Layer], shape: Shape, hidden: Activation) -> Blocks:
    blocks = Blocks()
    for layer in layers:
        blocks.append(Block(layer, shape, hidden))
        shape = shape_after(layer, shape)
    return blocks


def _linear(layer: Layer, shape: Shape) -> nn.Linear | nn.Conv2d | nn.ConvTranspose2d:
    channels, side = shape
    bias = not layer.norm  # batch norm subtracts any bias again
    if layer.kind == "fc":
        return nn.Linear(channels * side * side, layer.channels * layer.grid**2, bias=bias)
    if layer.stride == 2:
        convolution = nn.Conv2d if layer.kind == "conv" else nn.ConvTranspose2d
        return convolution(channels, layer.channels, 4, stride=2, padding=1, bias=bias)
    if layer.stride == 1:
        return nn.Conv2d(channels, layer.channels, 4, bias=bias)  # padded by the block
    raise UserError(f"a {layer.kind} layer has stride 1 or 2, not {layer.stride}")
