"""A small convolutional network and its training: what measures images where no packaged network fits.

One architecture serves two measures: a classifier of digits whose features stand behind FID and KID, and a regressor
of a rendered scene's true factors. It is trained on real training images only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastinfogan.metrics.images import image_batches
from fastinfogan.ops import image_batch
from fastinfogan.ops.philox import epoch_order

FEATURES = 128
BATCH = 128
LEARNING_RATE = 2e-3
_CHANNELS = (16, 32, 64)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ConvNet(nn.Module):
    """Images ``[n, channels, side, side]`` in [0, 1] to ``[n, outputs]``.

    3x3 convolutions of 16, 32 and 64 channels, each with batch norm, ReLU and a pooling to half the side; one fully
    connected layer of 128 units, which are the features; a linear output.
    """

    def __init__(self, image: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        channels, height, width = image
        layers: list[nn.Module] = []
        for wider in _CHANNELS:
            layers += [nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels, height, width = wider, height // 2, width // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, FEATURES), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(FEATURES, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.output(self.features(images))
        return outputs


def fit(
    image: tuple[int, int, int],
    outputs: int,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    loss: Loss,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
) -> ConvNet:
    """A :class:`ConvNet` trained on ``pixels`` uint8 ``[n, h, w, c]`` and ``targets`` ``[n, ...]``, in eval mode.

    ``loss(outputs, targets)`` is minimised by Adam with a one-cycle learning rate of at most 2e-3; the last rows of
    an epoch that fill no batch of 128 are left out of it. A function of the seed, up to rounding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNet(image, outputs)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = min(BATCH, len(pixels))
    steps = len(pixels) // batch
    optimiser = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * steps)
    network.train()
    for epoch in range(epochs):
        order = epoch_order(len(pixels), seed=seed, epoch=epoch, device="cpu")
        for rows in order[: steps * batch].split(batch):
            chosen = pixels[rows].to(device)
            images = image_batch(chosen, torch.arange(batch, device=device), low=0.0, high=1.0)
            optimiser.zero_grad()
            loss(network(images), targets[rows].to(device)).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def outputs_of(
    network: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """``network`` on ``pixels`` uint8 ``[n, h, w, c]``, scaled to [0, 1] and batched: ``[n, ...]`` on the CPU."""
    return torch.cat([network(images).cpu() for images in image_batches(pixels, (0.0, 1.0), device)])
