"""The C++ extension against the reference of each op: bits where the contract promises bits, bounds elsewhere."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.ops import LOG_STD_MIN, head_loss, native, sample_latents, unpack_codes
from fastinfogan.ops.philox import signed64
from fastinfogan.ops.recognize import recognize
from fastinfogan.ops.traversal import traversal

if not native.available():
    pytest.skip(str(native.why_not), allow_module_level=True)

from fastinfogan import _C

reference = {
    op: importlib.import_module(f"fastinfogan.ops.{op}")._reference
    for op in ("sample_latents", "head_loss", "image_batch", "pack_codes", "traversal", "recognize")
}
bounded = settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
# Around the ends of tiles (16 rows) and chunks (64). Left to hypothesis, some runs would draw no large batch.
BATCH_SIZES = (0, 1, 17, 64, 65, 200, 4096)
at_every_batch = pytest.mark.parametrize("batch", BATCH_SIZES)
WORDS64 = st.integers(0, 2**64 - 1)


@st.composite
def specs(draw: Any) -> LatentSpec:
    """0 to 12 categorical codes of 2 to 64 values, 0 to 8 continuous ones, 0 to 256 columns of noise."""
    categorical = draw(st.lists(st.integers(2, 64).map(Categorical), max_size=12))
    continuous = draw(st.lists(st.sampled_from([Uniform(1), Gaussian(1), Uniform(2), Gaussian(2)]), max_size=4))
    codes = draw(st.permutations([*categorical, *continuous]))
    noise = draw(st.integers(0 if codes else 1, 256))
    return LatentSpec(noise, tuple(codes), draw(st.sampled_from(["uniform", "normal"])))


def affordable(spec: LatentSpec, batch: int) -> LatentSpec:
    """The first codes and columns alone where the batch is large: the reference takes half a second for the rest."""
    if batch < 1000:
        return spec
    return LatentSpec(max(1, min(spec.noise, 30)), spec.codes[:3], spec.noise_prior)


MNIST = LatentSpec()
WIDE = LatentSpec(5000, (Categorical(3), Gaussian(1)), "normal")


@pytest.fixture(autouse=True)
def same_instruction_set_afterwards() -> Iterator[None]:
    before, threads = _C.isa(), torch.get_num_threads()
    yield
    _C.use_isa(before)
    torch.set_num_threads(threads)


def random_codes(spec: LatentSpec, batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(spec.categorical, dtype=torch.int64)
    categories = (torch.rand(batch, len(sizes), generator=generator) * sizes).long()
    if batch > 1:  # both ends of every code
        categories[0], categories[-1] = 0, sizes - 1
    return categories, 2 * torch.rand(batch, len(spec.continuous), generator=generator) - 1


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same matrix with a larger row stride, starting one element into its memory."""
    rows, columns = tensor.shape
    memory = torch.full((rows * (columns + 3) + 1,), torch.nan, dtype=tensor.dtype)
    view = memory[1:].view(rows, columns + 3)[:, :columns]
    view.copy_(tensor)
    return view


def assert_same_bits(got: Any, expected: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one, other) or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def everywhere(run: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """The result of ``run``, after showing that it is the same on 1 and 2 threads and every instruction set."""
    first = None
    for isa in _C.isas:
        _C.use_isa(isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result = run()
            first = result if first is None else first
            assert_same_bits(result, first)
    assert first is not None
    return first


# ------------------------------------------------------------------------------------------------ sample_latents


@at_every_batch
@bounded
@given(specs(), DTYPES, WORDS64, WORDS64, st.integers(0, 255), st.integers(0, 2**32 - 4096))
@example(MNIST, torch.float32, 0, 0, 0, 0)
@example(WIDE, torch.bfloat16, 2**64 - 1, 2**63, 255, 2**32 - 4096)
def test_the_sampler_draws_the_references_bits(batch, spec, dtype, seed, step, stream, row_offset):
    spec = affordable(spec, batch)
    arguments = (
        *(torch.tensor(signed64(word)) for word in (seed, step)),
        *(batch, spec.noise, spec.noise_prior == "normal", spec.categorical),
        *([prior == "normal" for prior in spec.continuous], stream, row_offset, dtype),
    )
    z, categories, continuous = everywhere(lambda: native.sample_latents(*arguments))
    expected_z, expected_categories, expected_continuous = reference["sample_latents"](*arguments)
    assert z.dtype == dtype and torch.equal(categories, expected_categories)
    one_hots = slice(spec.noise, spec.continuous_columns.start)
    assert torch.equal(z[:, one_hots], expected_z[:, one_hots])
    if spec.noise_prior == "uniform":
        assert torch.equal(z[:, : spec.noise], expected_z[:, : spec.noise])
    for i, prior in enumerate(spec.continuous):
        if prior == "uniform":
            assert torch.equal(continuous[:, i], expected_continuous[:, i])
    # One rounding to bf16 (8 bits) or fp16 (11 bits) may fall to the other side of a tie.
    ulp = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    torch.testing.assert_close(z.float(), expected_z.float(), rtol=ulp, atol=1e-6)
    assert torch.equal(z[:, spec.continuous_columns].float(), continuous), "targets of Q are what the generator saw"


def test_a_million_normals_agree_to_1e_6():
    arguments = (torch.tensor(7), torch.tensor(11), 4096, 250, True, (), [], 0, 0, torch.float32)
    difference = native.sample_latents(*arguments)[0] - reference["sample_latents"](*arguments)[0]
    assert difference.abs().max() <= 1e-6


# ----------------------------------------------------------------------------------------------------- head_loss


@st.composite
def head_loss_arguments(draw: Any, batch: int) -> tuple[Any, ...]:
    spec, dtype = affordable(draw(specs()), batch), draw(DTYPES)
    seed, size = draw(st.integers(0, 1000)), draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> torch.Tensor:
        return (size * torch.randn(shape, generator=generator)).clamp(-1e4, 1e4).to(dtype)

    real = logits(draw(st.sampled_from(BATCH_SIZES))) if draw(st.booleans()) else None
    fake = unaligned(logits(batch, 2))[:, 1]
    n_codes = len(spec.names)
    recognition = unaligned(logits(batch, spec.head_dim)) if draw(st.booleans()) else None
    categories, continuous = random_codes(spec, batch, seed)
    some = torch.rand(n_codes, generator=generator)
    weights = draw(st.sampled_from([None, torch.zeros(n_codes), some, torch.full((n_codes,), 1e3)]))
    scale = draw(st.sampled_from([None, torch.tensor(1.0), torch.tensor(1024.0)]))
    codes = (recognition, categories, continuous, weights) if recognition is not None else (None,) * 4
    entropies = spec.entropies if recognition is not None else ()
    categorical = spec.categorical if recognition is not None else ()
    return (fake, real, *codes, scale, categorical, entropies, draw(st.booleans()), draw(st.booleans()))


def exactly(arguments: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """The reference in float64 on the same values."""
    return reference["head_loss"](
        *(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)
    )


@at_every_batch
@bounded
@given(st.data())
def test_head_loss_is_as_exact_as_the_reference(batch, data):
    arguments = data.draw(head_loss_arguments(batch))
    got = everywhere(lambda: native.head_loss(*arguments))
    expected, truth = reference["head_loss"](*arguments), exactly(arguments)
    for one, other, exact in zip(got, expected, truth, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.numel() == 0:
            continue
        own, theirs = (one.double() - exact).abs(), (other.double() - exact).abs()
        limit = torch.finfo(one.dtype)
        overflows = exact.abs() >= limit.max  # a weight of 1e3 times a scale of 1024 leaves fp16: both say inf
        assert torch.equal(one.isinf() & overflows, other.isinf() & overflows)
        # At most twice PyTorch's own error; the floor is 8 ulp of the largest value and the smallest number there is.
        floor = 8 * 2.0**-24 * exact[~overflows].abs().max() if (~overflows).any() else torch.tensor(0.0)
        floor = floor + limit.smallest_normal * limit.eps * 2 + 8 * 2.0**-24
        allowed = 2 * theirs + limit.eps * exact.abs() + floor
        assert bool((own <= allowed)[~overflows].all()), (own - allowed)[~overflows].max()


@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 100.0, 1e4])
def test_softplus_keeps_its_relative_precision_at_every_size(logit):
    fake = torch.tensor([logit])
    none = (None,) * 5
    for saturating in (False, True):
        for real in (None, torch.tensor([logit])):
            arguments = (fake, real, *none, (), (), saturating, False)
            for one, exact in zip(native.head_loss(*arguments), exactly(arguments), strict=True):
                torch.testing.assert_close(one.double(), exact, rtol=3e-7, atol=1e-38)


def test_equal_logits_are_as_likely_as_each_other():
    recognition = torch.full((16, 10), 1e4)
    categories = torch.arange(16)[:, None] % 10
    codes = (categories, torch.empty(16, 0), None)
    statistics, *_, gradient = native.head_loss(
        torch.zeros(16), None, recognition, *codes, None, (10,), (math.log(10),), False, False
    )
    assert statistics[3].item() == pytest.approx(math.log(10), rel=1e-6)
    expected = (0.1 - torch.nn.functional.one_hot(categories[:, 0], 10)) / 16
    torch.testing.assert_close(gradient, expected)


def test_a_nan_logit_is_not_hidden():
    recognition = torch.zeros(20, 14)
    recognition[3, 4] = torch.nan
    codes = (torch.zeros(20, 1, dtype=torch.int64), torch.zeros(20, 2), None)
    statistics, _, fake_gradient, gradient = native.head_loss(
        torch.full((20,), torch.nan), None, recognition, *codes, None, (10,), MNIST.entropies, False, False
    )
    assert statistics.isnan().tolist() == [True, False, True, *[True, False, False] * 2]
    assert fake_gradient.isnan().all() and gradient[3, :10].isnan().all() and not gradient[4].isnan().any()


@pytest.mark.parametrize(("row", "category"), [(0, -1), (130, 10), (199, 2**40)])
def test_a_category_out_of_range_is_named_with_its_row(row, category):
    categories = torch.zeros(200, 1, dtype=torch.int64)
    categories[row] = category
    codes = (categories, torch.zeros(200, 0))
    message = rf"row {row} holds category {category} of code 0, which has 0 to 9"
    with pytest.raises(IndexError, match=message):
        native.head_loss(torch.zeros(200), None, torch.zeros(200, 10), *codes, None, None, (10,), (2.3,), False, False)
    with pytest.raises(IndexError, match=message):
        native.pack_codes(torch.zeros(200, 3), *codes, (10,), torch.float32)


def test_log_std_gradient_below_the_bound_only_leads_back():
    recognition = torch.tensor([[0.0, LOG_STD_MIN - 1], [5.0, LOG_STD_MIN - 1]])
    codes = (torch.empty(2, 0, dtype=torch.int64), torch.zeros(2, 1), None)
    gradient = native.head_loss(torch.zeros(2), None, recognition, *codes, None, (), (0.0,), False, False)[3]
    assert gradient[0, 1] == 0.0 and gradient[1, 1] < 0.0


# --------------------------------------------------------------------------------------------------- image_batch


@pytest.mark.parametrize("batch", BATCH_SIZES[:-1])
@bounded
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 35), st.integers(1, 4)),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (-0.3, 2.7)]),
    st.none() | WORDS64,
    WORDS64,
    DTYPES,
)
def test_image_batches_have_the_references_bits(batch, shape, levels, flip_seed, step, dtype):
    generator = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (37, *shape), dtype=torch.uint8, generator=generator)
    index = torch.randint(0, 37, (batch * 2,), generator=generator)[::2]
    seed = None if flip_seed is None else torch.tensor(signed64(flip_seed))
    arguments = (images, index, *levels, seed, torch.tensor(signed64(step)), 12345, dtype)
    got = everywhere(lambda: (native.image_batch(*arguments),))[0]
    expected = reference["image_batch"](*arguments)
    assert torch.equal(got, expected) and got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [-1, 10, 2**62])
def test_an_image_out_of_range_is_named_with_its_row(value):
    index = torch.tensor([0, 9, value])
    with pytest.raises(IndexError, match=rf"row 2 asks for image {value}, the store holds 0 to 9"):
        native.image_batch(
            torch.zeros(10, 2, 2, 1, dtype=torch.uint8), index, 0.0, 1.0, None, torch.tensor(0), 0, torch.float32
        )


# --------------------------------------------------------------------- pack_codes, unpack_codes, traversal, recognize

ALL_BITS = torch.arange(2**16, dtype=torch.int32).to(torch.int16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_low_precision_number_converts_as_pytorch_converts_it(dtype):
    every = ALL_BITS.view(dtype)
    none = torch.empty(2**16, 0, dtype=torch.int64), torch.empty(2**16, 0)
    for isa in _C.isas:
        _C.use_isa(isa)
        wide = native.pack_codes(every[:, None], *none, (), torch.float32)[:, 0]
        assert torch.equal(wide.isnan(), every.isnan())
        assert torch.equal(wide.nan_to_num(nan=0.0), every.float().nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_everywhere(dtype):
    every = ALL_BITS.view(dtype).float()
    every = every[every.isfinite()].sort().values
    halfway = (every[1:].double() + every[:-1].double()).div(2).float()
    infinity = torch.tensor(math.inf)
    values = torch.cat([every, halfway, halfway.nextafter(infinity), halfway.nextafter(-infinity)])
    values = torch.cat([values, torch.tensor([65519.996, 65520.0, 3.3e38, math.inf, -math.inf, 1e-45, -1e-45])])
    none = torch.empty(len(values), 0, dtype=torch.int64), torch.empty(len(values), 0)
    for isa in _C.isas:
        _C.use_isa(isa)
        packed = native.pack_codes(values[:, None], *none, (), dtype)[:, 0]
        assert torch.equal(packed.view(torch.int16), values.to(dtype).view(torch.int16))


@at_every_batch
@bounded
@given(specs(), DTYPES, DTYPES, DTYPES)
def test_packing_and_unpacking_are_the_references(batch, spec, noise_dtype, continuous_dtype, dtype):
    spec = affordable(spec, batch)
    categories, continuous = random_codes(spec, batch, batch)
    noise = unaligned(torch.randn(batch, spec.noise).to(noise_dtype))
    arguments = (noise, categories, unaligned(continuous.to(continuous_dtype)), spec.categorical, dtype)
    z = everywhere(lambda: (native.pack_codes(*arguments),))[0]
    assert_same_bits([z], [reference["pack_codes"](*arguments)])
    z = unaligned(z)
    unpacked = unpack_codes(spec, z, backend="native")
    assert_same_bits(unpacked, unpack_codes(spec, z, backend="reference"))
    assert torch.equal(unpacked[1], categories)


@pytest.mark.parametrize("rows", [0, 1, 7, 70])
@bounded
@given(specs().filter(lambda spec: spec.names), st.integers(0, 12), DTYPES, st.data())
def test_traversals_are_the_references(rows, spec, columns, dtype, data):
    categories, continuous = random_codes(spec, rows, columns)
    code = data.draw(st.integers(0, len(spec.names) - 1))
    values = torch.linspace(-2, 2, columns)
    if code < len(spec.categorical):
        values = torch.arange(columns) % spec.categorical[code]
    noise = torch.randn(rows, spec.noise)
    grids = [
        traversal(spec, noise, categories, continuous, code=code, values=values, dtype=dtype, backend=backend)
        for backend in ("native", "reference")
    ]
    assert_same_bits(grids[:1], grids[1:])
    assert grids[0].shape == (rows * columns, spec.dim)


@pytest.mark.parametrize("value", [-1.0, 4.0, math.nan, math.inf])
def test_a_traversal_of_values_that_a_code_does_not_have_is_refused(value):
    codes = (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 0))
    values = torch.tensor([0.0, value])
    with pytest.raises(UserError, match="c1 has values 0 to 3"):
        traversal(LatentSpec(3, (Categorical(4),)), *codes, code=0, values=values)
    with pytest.raises(IndexError):
        native.traversal(*codes, 0, values, (4,), torch.float32)


@at_every_batch
@bounded
@given(specs(), DTYPES, st.sampled_from([0.0, 1.0, 1e4]))
def test_recognition_is_the_references(batch, spec, dtype, size):
    spec = affordable(spec, batch)
    q = unaligned((size * torch.randn(batch, spec.head_dim)).to(dtype))
    categories, confidence, mean, std = everywhere(lambda: native.recognize(q, spec.categorical))
    expected = reference["recognize"](q, spec.categorical)
    assert_same_bits([categories, mean], [expected[0], expected[2]])
    torch.testing.assert_close(confidence, expected[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(std, expected[3], rtol=1e-6, atol=0)


def test_the_new_ops_are_whole_torch_ops():
    spec = LatentSpec(3, (Categorical(4), Uniform(1)))
    q = torch.randn(5, spec.head_dim)
    codes = (torch.randn(5, 3), torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 1))
    for backend in ("native", "reference"):
        for outputs in (q, torch.randn(spec.head_dim, 5).t()):
            torch.library.opcheck(torch.ops.fastinfogan.recognize, (outputs, spec.categorical, backend))
        torch.library.opcheck(
            torch.ops.fastinfogan.traversal,
            (*codes, 1, torch.linspace(-2, 2, 4), spec.categorical, torch.float32, backend),
        )
    assert recognize(spec, q).categories.tolist() == q[:, :4].argmax(1, keepdim=True).tolist()


# ----------------------------------------------------------------------------------------------------- the extension


def test_torch_and_the_extension_share_one_openmp_runtime():
    native.sample_latents(torch.tensor(0), torch.tensor(0), 4096, 64, False, (), [], 0, 0, torch.float32)
    with open(f"/proc/{os.getpid()}/maps") as maps:  # noqa: PTH123  # not a file of ours
        runtimes = {line.split()[-1] for line in maps if "libgomp.so" in line}
    assert len(runtimes) == 1, runtimes


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_results_do_not_follow_torchs_default_dtype(default):
    def found():
        drawn = sample_latents(MNIST, 20, seed=3, step=5, backend="native")
        loss = head_loss(
            MNIST,
            torch.linspace(-2, 2, 20, dtype=torch.float32),
            recognition=torch.zeros(20, 14, dtype=torch.float32),
            categories=drawn.categories,
            continuous=drawn.continuous,
            backend="native",
        )
        return [drawn.z, drawn.continuous, loss.statistics]

    expected = found()
    torch.set_default_dtype(default)
    try:
        for here, there in zip(found(), expected, strict=True):
            assert here.dtype == torch.float32 and torch.equal(here, there)
    finally:
        torch.set_default_dtype(torch.float32)
