"""The paper's tables, ticked off line by line against a transcription that shares no code with the builder."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.codes import Code
from fastinfogan.errors import UserError
from fastinfogan.networks import TABLES, Block, Discriminator, Generator, Layer, Tables, build, conv, fc, up
from fastinfogan.ops.philox import seed32

SPECS: dict[str, LatentSpec] = {
    "mnist": LatentSpec(),
    "svhn": LatentSpec(124, (Categorical(10),) * 4 + (Uniform(4),)),
    "celeba": LatentSpec(128, (Categorical(10),) * 10),
    "celeba-64": LatentSpec(128, (Categorical(10),) * 10),
    "faces": LatentSpec(128, (Uniform(5),)),
    "chairs": LatentSpec(128, (Categorical(20),) * 3 + (Uniform(1),)),
    "dsprites": LatentSpec(5, (Uniform(5),)),
}

# Output shape after each convolution, transposed convolution or fc, from appendix C.
TRUNK = {
    "mnist": [(64, 14, 14), (128, 7, 7), (1024,)],
    "svhn": [(64, 16, 16), (128, 8, 8), (256, 4, 4)],
    "celeba": [(64, 16, 16), (128, 8, 8), (256, 4, 4)],
    "celeba-64": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)],
    "faces": [(64, 16, 16), (128, 8, 8), (1024,)],
    "chairs": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 8, 8), (256, 8, 8), (1024,)],
    "dsprites": [(32, 32, 32), (32, 16, 16), (64, 8, 8), (64, 4, 4), (128,)],
}
RECOGNITION = {"mnist": [(128,), (14,)], "svhn": [(128,), (48,)], "celeba": [(128,), (100,)], "faces": [(10,)]}
RECOGNITION["chairs"] = [(62,)]
RECOGNITION["celeba-64"] = [(128,), (100,)]
RECOGNITION["dsprites"] = [(128,), (10,)]
GENERATOR = {
    "mnist": [(1024,), (7 * 7 * 128,), (64, 14, 14), (1, 28, 28)],
    "svhn": [(2 * 2 * 448,), (256, 4, 4), (128, 8, 8), (64, 16, 16), (3, 32, 32)],
    "celeba": [(2 * 2 * 448,), (256, 4, 4), (128, 8, 8), (64, 16, 16), (3, 32, 32)],
    "celeba-64": [(2 * 2 * 896,), (448, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)],
    "faces": [(1024,), (8 * 8 * 128,), (64, 16, 16), (1, 32, 32)],
    "chairs": [(1024,), (8 * 8 * 256,), (256, 8, 8), (256, 8, 8), (128, 16, 16), (64, 32, 32), (1, 64, 64)],
    "dsprites": [(128,), (4 * 4 * 64,), (64, 8, 8), (32, 16, 16), (32, 32, 32), (1, 64, 64)],
}
# Which of those lines are followed by batch norm.
NORMED = {
    "mnist": ([0, 1, 1], [1, 0], [1, 1, 1, 0]),
    "svhn": ([0, 1, 1], [1, 0], [1, 1, 0, 0, 0]),
    "celeba": ([0, 1, 1], [1, 0], [1, 1, 0, 0, 0]),
    "celeba-64": ([0, 1, 1, 1], [1, 0], [1, 1, 1, 0, 0, 0]),
    "faces": ([0, 1, 1], [0], [1, 1, 1, 0]),
    "chairs": ([0, 1, 1, 1, 1, 1], [0], [1, 1, 1, 1, 1, 1, 0]),
    "dsprites": ([0, 1, 1, 1, 1], [1, 0], [1, 1, 1, 1, 1, 0]),
}


def parameters(inputs: list[int], outputs: list[int], kernels: list[int], normed: list[int]) -> int:
    """Weights, biases where no norm follows, and a gain and an offset per channel where one does."""
    count = 0
    for i, o, kernel, norm in zip(inputs, outputs, kernels, normed, strict=True):
        count += i * o * kernel + (2 * o if norm else o)
    return count


# Channels in, channels out and 16 for each 4x4 kernel, by hand from the tables. The norm after an fc that makes an
# image has one gain per channel, not per unit: corrected below.
COUNTS = {
    "mnist": (
        parameters([1, 64, 6272], [64, 128, 1024], [16, 16, 1], [0, 1, 1]) + 1025
        + parameters([1024, 128], [128, 14], [1, 1], [1, 0]),
        parameters([74, 1024, 128, 64], [1024, 6272, 64, 1], [1, 1, 16, 16], [1, 1, 1, 0]) - 2 * (6272 - 128),
    ),
    "celeba": (
        parameters([3, 64, 128], [64, 128, 256], [16] * 3, [0, 1, 1]) + 4097
        + parameters([4096, 128], [128, 100], [1, 1], [1, 0]),
        parameters([228, 448, 256, 128, 64], [1792, 256, 128, 64, 3], [1, 16, 16, 16, 16], [1, 1, 0, 0, 0])
        - 2 * (1792 - 448),
    ),
    "celeba-64": (
        parameters([3, 64, 128, 256], [64, 128, 256, 512], [16] * 4, [0, 1, 1, 1]) + 8193
        + parameters([8192, 128], [128, 100], [1, 1], [1, 0]),
        parameters([228, 896, 448, 256, 128, 64], [3584, 448, 256, 128, 64, 3], [1] + [16] * 5, [1, 1, 1, 0, 0, 0])
        - 2 * (3584 - 896),
    ),
    "faces": (
        parameters([1, 64, 8192], [64, 128, 1024], [16, 16, 1], [0, 1, 1]) + 1025 + 10250,
        parameters([133, 1024, 128, 64], [1024, 8192, 64, 1], [1, 1, 16, 16], [1, 1, 1, 0]) - 2 * (8192 - 128),
    ),
    "chairs": (
        parameters([1, 64, 128, 256, 256, 16384], [64, 128, 256, 256, 256, 1024], [16] * 5 + [1], [0, 1, 1, 1, 1, 1])
        + 1025 + 1025 * 62,
        parameters(
            [189, 1024, 256, 256, 256, 128, 64], [1024, 16384, 256, 256, 128, 64, 1], [1, 1] + [16] * 5,
            [1, 1, 1, 1, 1, 1, 0],
        )
        - 2 * (16384 - 256),
    ),
    "dsprites": (
        parameters([1, 32, 32, 64, 1024], [32, 32, 64, 64, 128], [16] * 4 + [1], [0, 1, 1, 1, 1]) + 129
        + parameters([128, 128], [128, 10], [1, 1], [1, 0]),
        parameters([10, 128, 64, 64, 32, 32], [128, 1024, 64, 32, 32, 1], [1, 1] + [16] * 4, [1, 1, 1, 1, 1, 0])
        - 2 * (1024 - 64),
    ),
}  # fmt: skip
COUNTS["svhn"] = (
    COUNTS["celeba"][0] - 129 * (100 - 48),
    COUNTS["celeba"][1] - 1792 * (228 - 168),
)

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def outputs_of(module: nn.Module, run: nn.Module, argument: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes per row after every weighted layer below ``module``, in order, as ``run(argument)`` computes them."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        child.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
        for child in module.modules()
        if isinstance(child, WEIGHTED)
    ]
    with torch.no_grad():
        run(argument)
    for hook in hooks:
        hook.remove()
    return shapes


def norm_flags(module: nn.Module) -> list[int]:
    flags: list[int] = []
    for child in module.modules():
        if isinstance(child, WEIGHTED):
            flags.append(0)
        elif isinstance(child, NORMS):
            flags[-1] = 1
    return flags


@pytest.fixture(params=TABLES)
def network(request: pytest.FixtureRequest) -> tuple[str, Generator, Discriminator]:
    name = request.param
    return name, *build(TABLES[name], SPECS[name], seed=0)


def test_layer_by_layer_shapes(network: tuple[str, Generator, Discriminator]) -> None:
    name, generator, discriminator = network
    images = torch.zeros(2, *TABLES[name].image)
    assert outputs_of(discriminator.trunk, discriminator, images) == TRUNK[name]
    assert outputs_of(discriminator.recognition_head, discriminator, images) == RECOGNITION[name]
    assert outputs_of(generator, generator, torch.zeros(2, SPECS[name].dim)) == GENERATOR[name]


def test_batch_norm_follows_exactly_the_lines_that_the_tables_name(
    network: tuple[str, Generator, Discriminator],
) -> None:
    name, generator, discriminator = network
    flags = (norm_flags(discriminator.trunk), norm_flags(discriminator.recognition_head), norm_flags(generator))
    assert flags == NORMED[name]


def test_parameter_counts(network: tuple[str, Generator, Discriminator]) -> None:
    name, generator, discriminator = network
    counts = [sum(p.numel() for p in module.parameters()) for module in (discriminator, generator)]
    assert tuple(counts) == COUNTS[name]


def test_generated_images_span_the_range_that_real_ones_are_normalised_to(
    network: tuple[str, Generator, Discriminator],
) -> None:
    name, generator, _ = network
    low, high = TABLES[name].image_range
    assert (low, high) == ((-1.0, 1.0) if name in ("svhn", "celeba", "celeba-64") else (0.0, 1.0))
    # With the last layer's weights blown up the activation saturates at both ends of its range.
    *_, last = [child for child in generator.modules() if isinstance(child, WEIGHTED)]
    nn.init.normal_(last.weight, 0.0, 100.0)
    images = generator(torch.randn(8, SPECS[name].dim))
    assert images.min().item() == pytest.approx(low, abs=1e-3)
    assert images.max().item() == pytest.approx(high, abs=1e-3)


def test_activations_are_relu_in_g_and_leaky_relu_of_a_tenth_in_d_and_q(
    network: tuple[str, Generator, Discriminator],
) -> None:
    _, generator, discriminator = network
    *hidden, _ = generator.blocks
    layers = [*hidden, *discriminator.trunk, *list(discriminator.recognition_head)[:-1]]
    for block in layers:
        slope = 0.0 if block in hidden else 0.1
        seen: list[torch.Tensor] = []
        before = block.norm or block.linear
        hook = before.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.detach().clone()))
        weight = block.linear.weight
        images = block.layer.kind != "fc"
        columns = weight.shape[0] if isinstance(block.linear, nn.ConvTranspose2d) else weight.shape[1]
        x = torch.randn(4, columns, 4, 4) if images else torch.randn(4, columns)
        y = block(x).detach()
        hook.remove()
        z = seen[0].reshape(y.shape)
        torch.testing.assert_close(y, torch.where(z > 0, z, slope * z))
        assert (z < 0).any() and (z > 0).any()


def test_initialisation_recurs_into_every_layer(network: tuple[str, Generator, Discriminator]) -> None:
    _, generator, discriminator = network
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, WEIGHTED):
            spread = 4 / module.weight.numel() ** 0.5
            assert module.weight.std().item() == pytest.approx(0.02, rel=spread)
            assert abs(module.weight.mean().item()) < 0.02 * spread
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, NORMS):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.5)
            assert not module.bias.any()


def test_ds_logit_is_no_unit_of_q(network: tuple[str, Generator, Discriminator]) -> None:
    name, _, discriminator = network
    discriminator.eval()
    images = torch.rand(3, *TABLES[name].image)
    logits, recognition = discriminator(images)
    assert logits.shape == (3,)
    assert recognition.shape == (3, SPECS[name].head_dim)
    with torch.no_grad():
        for parameter in discriminator.adversarial_head.parameters():
            parameter.zero_()
    blind, same = discriminator(images)
    assert not blind.any()
    assert torch.equal(same, recognition)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (build(TABLES["mnist"], LatentSpec(), seed=seed)[0].state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["blocks.0.linear.weight"], other["blocks.0.linear.weight"])


def test_a_seed_past_32_bits_gives_weights_of_its_own() -> None:
    tables, spec = TABLES["mnist"], LatentSpec()
    drawn = [build(tables, spec, seed=seed)[0].blocks[0].linear.weight for seed in (5, 2**32 + 5, 2**63 + 5)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))
    assert seed32(5) == 5 and 0 <= seed32(2**64 - 1) < 2**32


def test_spectral_norm_takes_the_place_of_batch_norm_in_d_and_q() -> None:
    spec = SPECS["dsprites"]
    generator, discriminator = build(replace(TABLES["dsprites"], spectral=True), spec, seed=0)
    assert not any(isinstance(module, NORMS) for module in discriminator.modules())
    assert norm_flags(generator) == NORMED["dsprites"][2] and not any("original" in n for n in generator.state_dict())
    layers = [module for module in discriminator.modules() if isinstance(module, WEIGHTED)]
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(7.0)  # type: ignore[union-attr, operator, index]
            layer.bias.normal_()  # type: ignore[union-attr]
        for _ in range(50):  # each a step of power iteration
            discriminator(torch.rand(2, 1, 64, 64))
    discriminator.eval()
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert largest.item() == pytest.approx(1.0, abs=0.02)


def test_an_evaluation_moves_no_vector_of_the_spectral_norm() -> None:
    _, discriminator = build(replace(TABLES["celeba"], spectral=True), SPECS["celeba"], seed=0)
    discriminator.eval()
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    discriminator(torch.rand(2, 3, 32, 32))
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in discriminator.named_buffers())
    discriminator.train()(torch.rand(2, 3, 32, 32))
    assert not all(torch.equal(buffer, before[name]) for name, buffer in discriminator.named_buffers())


@pytest.mark.parametrize(("layer", "before"), [(conv(1, stride=1), 1), (up(1, stride=1), 2)])
def test_a_kernel_of_four_at_stride_1_has_uneven_zeros_around(layer: Layer, before: int) -> None:
    """As TensorFlow's SAME: a convolution one before, its transpose two, so that its first tap is so far back."""
    block = Block(layer, (1, 5), "relu")  # of values above 0
    with torch.no_grad():
        for weight in block.parameters():
            weight.zero_()
        block.linear.weight[0, 0, 0, 0] = 1.0
        image = torch.rand(1, 1, 5, 5)
        moved = block(image)
    expected = torch.zeros(1, 1, 5, 5)
    expected[..., before:, before:] = image[..., : 5 - before, : 5 - before]
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("codes", [(), (Categorical(3),), (Uniform(2), Categorical(2), Categorical(64))])
def test_any_mix_of_codes_fits_any_table(codes: tuple[Code, ...]) -> None:
    spec = LatentSpec(5, codes)
    generator, discriminator = build(TABLES["celeba"], spec, seed=0)
    _, recognition = discriminator(generator(torch.randn(2, spec.dim)))
    assert recognition.shape == (2, spec.head_dim)


def test_a_stride_that_is_neither_1_nor_2_is_refused() -> None:
    tables = Tables((1, 8, 8), [fc(4)], [], [fc(4, grid=4), up(1, stride=3)])
    with pytest.raises(UserError, match="stride 1 or 2, not 3"):
        Generator(tables, LatentSpec())
