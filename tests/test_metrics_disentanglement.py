"""Each score of disentanglement gives the known answer on codes whose relation to the factors is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.data.split import FactorKind, Factors
from fastinfogan.metrics import disentanglement as module
from fastinfogan.metrics.disentanglement import (
    Disentanglement,
    _sharing,
    dci,
    disentanglement,
    entropic_scores,
    mig,
    modularity,
    mutual_information,
    predictability,
)
from fastinfogan.metrics.representation import (
    Floats,
    Representation,
    angle,
    factor_levels,
    histogram_levels,
    r2,
    represent,
    unrolled,
    varying,
)
from fastinfogan.networks import TABLES, build

N = 4000
VOTES = (400, 200)


def factors(n: int = N, seed: int = 0, kinds: tuple[FactorKind, ...] = ("continuous",) * 3) -> Factors:
    """Independent factors on grids of ten values; classes 0 to 3 where categorical."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(4, size=n) if kind == "categorical" else rng.integers(10, size=n) / 10 for kind in kinds]
    high = tuple(4.0 if kind == "categorical" else 1.0 for kind in kinds)
    values = torch.tensor(np.stack(columns, 1), dtype=torch.float32)
    return Factors(tuple(f"f{i}" for i in range(len(kinds))), kinds, values, (0.0,) * len(kinds), high)


def scalars(*values: Floats) -> Representation:
    names = tuple(f"c{i + 1}" for i in range(len(values)))
    return Representation(names, tuple(np.asarray(one, dtype=np.float64)[:, None] for one in values))


def judge(code_of, kinds: tuple[FactorKind, ...] = ("continuous",) * 3) -> Disentanglement:  # type: ignore[no-untyped-def]
    """The scores of ``code_of(values [n, k], rng)`` on two independent sets."""
    sets = []
    for seed in (0, 1):
        known = factors(seed=seed, kinds=kinds)
        sets.append((code_of(known.values.double().numpy(), np.random.default_rng(seed + 10)), known))
    return disentanglement(sets[0], sets[1], seed=0, votes=VOTES)


@pytest.fixture(scope="module")
def perfect() -> Disentanglement:
    return judge(lambda v, _: scalars(2 * v[:, 2], -v[:, 0], np.exp(v[:, 1])))


@pytest.fixture(scope="module")
def random() -> Disentanglement:
    return judge(lambda v, rng: scalars(*rng.uniform(size=(3, len(v)))))


def turned(v: Floats, _: object) -> Representation:
    """The factors turned by 45 degrees in two planes: as informative as they are, and as entangled as can be."""
    a, b, c = v.T - 0.45
    return scalars(a + b, a - b, c)


@pytest.fixture(scope="module")
def rotated() -> Disentanglement:
    return judge(turned)


@pytest.fixture(scope="module")
def copied() -> Disentanglement:
    return judge(lambda v, _: scalars(v[:, 0], v[:, 1], v[:, 2], v[:, 0]))


def test_a_perfect_code_scores_one_everywhere(perfect: Disentanglement) -> None:
    assert perfect.mig == pytest.approx(1, abs=0.02)  # an empirical information of independent draws is not quite 0
    assert perfect.factor_vae == 1 and perfect.beta_vae >= 0.99
    assert perfect.dci_disentanglement > 0.99 and perfect.dci_completeness > 0.99 and perfect.dci_informativeness > 0.99
    assert perfect.modularity > 0.999
    grid = np.arange(10) / 10
    assert perfect.sap == pytest.approx((2 + np.corrcoef(grid, np.exp(grid))[0, 1] ** 2) / 3, abs=0.005)
    assert np.array(perfect.information).argmax(1).tolist() == [2, 0, 1]


def test_votes_are_the_same_however_few_fit_in_memory(
    rotated: Disentanglement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_A_TIME", 5000)
    assert judge(turned) == rotated


def test_a_random_code_scores_chance(random: Disentanglement) -> None:
    assert random.mig < 0.01 and random.sap < 0.01
    assert random.factor_vae < 0.45 and random.beta_vae < 0.45  # a third is chance
    assert random.dci_disentanglement < 0.1 and random.dci_informativeness < 0.02
    assert random.modularity == pytest.approx(random.modularity_chance, abs=0.3)


def test_the_modularity_of_codes_that_know_nothing_is_its_chance() -> None:
    """It is far from 0 where one factor takes many values and the others few: its information is estimated worst."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(np.stack([rng.integers(k, size=4000) for k in (2, 3, 40)], 1)).float()
    known = Factors(("a", "b", "c"), ("categorical",) * 3, values, (0.0,) * 3, (2.0, 3.0, 40.0))
    codes = scalars(*rng.uniform(size=(6, 4000)))
    found = disentanglement((codes, known), (codes, known), seed=0, votes=VOTES)
    assert found.modularity > 0.9 and found.modularity_chance == pytest.approx(found.modularity, abs=0.03)
    truth = scalars(*values.double().numpy().T)
    perfect = disentanglement((truth, known), (truth, known), seed=0, votes=VOTES)
    assert perfect.modularity > 0.999 and perfect.modularity_chance == pytest.approx(found.modularity, abs=0.1)
    assert f"modularity {perfect.modularity:.3f} (by chance {perfect.modularity_chance:.3f})" in "\n".join(
        perfect.lines()
    )


def test_a_rotation_keeps_the_information_and_loses_the_gap(rotated: Disentanglement, perfect: Disentanglement) -> None:
    assert rotated.mig < 0.45 and rotated.sap < 0.45  # only the third factor has a code of its own: 1/3
    assert rotated.mig == pytest.approx(1 / 3, abs=0.05)
    assert rotated.sap == pytest.approx(1 / 3, abs=0.02)
    # Two codes lie between two of the three factors, so their share of ln 3 is ln 2 / ln 3.
    assert rotated.dci_disentanglement == pytest.approx(1 - 2 / 3 * math.log(2, 3), abs=0.05)
    assert rotated.dci_completeness == pytest.approx(1 - 2 / 3 * math.log(2, 3), abs=0.05)
    assert rotated.dci_informativeness > 0.95
    assert rotated.modularity == pytest.approx((0.5 + 0.5 + 1) / 3, abs=0.05)  # delta of two equal ones of three: 1/2
    assert rotated.factor_vae < perfect.factor_vae - 0.15
    assert rotated.factor_vae == pytest.approx(2 / 3, abs=0.08)
    # Whichever of the first two is fixed, both codes differ by the other: told by chance, 1/2; the third always.
    assert rotated.beta_vae == pytest.approx(2 / 3, abs=0.08)


def test_a_copied_factor_is_disentangled_but_not_complete(copied: Disentanglement) -> None:
    assert copied.mig == pytest.approx(2 / 3, abs=0.03) and copied.sap == pytest.approx(2 / 3, abs=0.02)
    assert copied.dci_disentanglement > 0.98 and copied.modularity > 0.999
    assert copied.dci_completeness == pytest.approx(1 - math.log(2, 4) / 3, abs=0.03)  # ln 2 of ln 4 for one of three
    assert copied.factor_vae == 1 and copied.beta_vae >= 0.99


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_votes_know_no_unit(scale: float) -> None:
    """A code's variance is told by its own over all images: else the one of the smallest unit would win every vote."""
    found = judge(lambda v, _: scalars(v[:, 0] * scale, v[:, 1], v[:, 2]))
    assert found.factor_vae == 1 and found.beta_vae >= 0.99


def test_a_value_of_one_image_has_no_vote() -> None:
    """Within it every code is constant, and which one varies least would be the first."""
    known = factors()
    lonely = Factors(known.names, known.kinds, known.values.clone(), known.low, known.high)
    lonely.values[:20, 2] = 100 + torch.arange(20.0)
    codes = scalars(*known.values.double().numpy().T)
    drawn = _sharing(
        [factor_levels(lonely.values[:, 2].numpy())], np.zeros(5000, dtype=int), 4, np.random.default_rng(0)
    )
    assert (drawn >= 20).all()
    assert disentanglement((codes, lonely), (codes, lonely), seed=0, votes=VOTES).factor_vae == 1


def test_a_constant_code_is_worth_nothing_and_breaks_nothing() -> None:
    found = judge(lambda v, _: scalars(v[:, 0], v[:, 1], v[:, 2], np.zeros(len(v))))
    assert found.factor_vae == 1 and found.mig > 0.97 and found.dci_disentanglement > 0.98
    assert found.modularity == pytest.approx(3 / 4, abs=0.001)


def test_codes_that_never_vary_score_nothing_and_break_nothing() -> None:
    found = judge(lambda v, _: scalars(*np.zeros((3, len(v)))))
    assert (found.mig, found.sap, found.dci_disentanglement, found.dci_completeness, found.modularity) == (0,) * 5
    assert found.factor_vae < 0.45 and found.beta_vae < 0.45 and abs(found.dci_informativeness) < 0.01


def test_a_categorical_posterior_is_one_code() -> None:
    """As ten columns of their own, the posterior of a perfect Cat(10) would have nearly no gap at all."""
    kinds: tuple[FactorKind, ...] = ("categorical", "continuous", "continuous")

    def code_of(v: Floats, _: object) -> Representation:
        posterior = np.eye(4)[v[:, 0].astype(int)] * 0.9 + 0.025
        return Representation(("c1", "c2", "c3"), (posterior, v[:, [1]], v[:, [2]]))

    found = judge(code_of, kinds)
    assert found.mig > 0.97 and found.factor_vae == 1 and found.beta_vae >= 0.99
    assert found.dci_disentanglement > 0.98 and found.dci_completeness > 0.98 and found.dci_informativeness > 0.99
    assert found.sap == pytest.approx((1 - 1 / 4 + 1 + 1) / 3, abs=0.03)  # of the class: 1 against the prior's 1/4
    assert len(found.information) == 3


def test_no_importance_leaks_to_codes_that_know_nothing_of_a_class() -> None:
    """A classifier that draws the codes each split may use, as is the default, splits on useless ones as well."""
    found = judge(lambda v, _: scalars(*v.T), ("categorical", "continuous", "continuous", "continuous"))
    assert found.dci_disentanglement > 0.99 and found.dci_completeness > 0.99


def test_a_code_that_is_the_angle_is_perfect_wherever_it_jumps() -> None:
    """Linearly, an angle explains at most 6 / pi^2 of cosine and sine; along the cut circle it explains all."""
    kinds: tuple[FactorKind, ...] = ("circular", "continuous", "continuous")
    found = judge(lambda v, _: scalars((v[:, 0] + 0.3) % 1, v[:, 1], v[:, 2]), kinds)
    assert found.sap > 0.98 and found.mig > 0.97 and found.dci_disentanglement > 0.98
    assert found.dci_informativeness > 0.98 and found.factor_vae == 1


def test_factors_that_do_not_vary_are_left_out() -> None:
    known = factors()
    fixed = Factors(known.names, known.kinds, known.values.clone(), known.low, known.high)
    fixed.values[:, 1] = 0.5
    assert varying(fixed) == (0, 2)
    codes = scalars(*known.values.double().numpy().T)
    found = disentanglement((codes, fixed), (codes, fixed), seed=0, votes=VOTES)
    assert found.factors == ("f0", "f2") and np.array(found.information).shape == (3, 2) and found.mig > 0.97
    for pair in (((codes, fixed), (codes, known)), ((codes, known), (codes, fixed))):  # in one part alone
        alone = disentanglement(*pair, seed=0, votes=VOTES)
        assert alone.factors == ("f0", "f2") and alone.mig > 0.97


def test_test_factors_fit_nothing() -> None:
    """Codes that mean other factors on the test split are found out: a map fitted there would hide it."""
    known, asked = factors(seed=0), factors(seed=1)
    v, w = known.values.double().numpy(), asked.values.double().numpy()
    train, test = (scalars(v[:, 0], v[:, 1], v[:, 2]), known), (scalars(w[:, 1], w[:, 2], w[:, 0]), asked)
    found = disentanglement(train, test, seed=0, votes=VOTES)
    assert found.factor_vae == 0 and found.beta_vae < 0.01 and found.dci_informativeness < 0 and found.sap < 0.03
    assert found.mig > 0.97  # which fits nothing
    assert np.array(found.information).argmax(1).tolist() == [1, 2, 0]  # of the test images


def test_a_forest_is_no_deeper_than_images_that_it_has_not_seen_bear_out() -> None:
    """Of codes that know nothing the deepest does best on its own images, and errs by 15 % more on others."""
    noise = [scalars(*np.random.default_rng(seed).uniform(size=(3, 300))) for seed in (10, 11)]
    _, _, informativeness = dci((noise[0], factors(300, 0)), (noise[1], factors(300, 1)), (0, 1, 2), seed=0)
    assert -0.08 < informativeness < 0.02


def test_a_code_that_knows_nothing_predicts_a_rare_class_no_better_than_a_frequent_one() -> None:
    """Without balanced classes it would name the frequent one, and be right nine times in ten."""
    sets = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        rare = torch.from_numpy(rng.random((N, 1)) < 0.1).float()
        sets.append((scalars(rng.normal(size=N)), Factors(("rare",), ("categorical",), rare, (0.0,), (1.0,))))
    assert predictability(*sets, (0,), seed=0)[0, 0] < 0.8


def test_a_circle_is_cut_open_where_it_is_best_on_the_training_images() -> None:
    """Of the test images, whose code jumps at the other side, no cut is as good as it looks when chosen on them."""
    sets = []
    for seed, jump in ((0, 90.0), (1, 270.0)):
        degrees = np.random.default_rng(seed).uniform(0, 360, N)
        known = Factors(("a",), ("circular",), torch.from_numpy(degrees)[:, None].float(), (0.0,), (360.0,))
        sets.append((scalars((degrees - jump) % 360), known))
    assert predictability(*sets, (0,), seed=0)[0, 0] == 0
    assert predictability(sets[0], sets[0], (0,), seed=0)[0, 0] > 0.99


def test_the_mutual_information_of_a_noisy_bit_is_known() -> None:
    rng = np.random.default_rng(0)
    bit = rng.integers(2, size=200_000)
    seen = np.where(rng.random(len(bit)) < 0.1, 1 - bit, bit)
    known = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    (found,) = mutual_information(scalars(seen), [bit])
    assert found[0] == pytest.approx(known, abs=0.003)


def test_the_published_formulas_on_a_matrix_worked_by_hand() -> None:
    information = np.array([[2.0, 1.0], [0.5, 1.0], [0.0, 0.0]])
    levels = [np.arange(8) % 4, np.arange(8) % 2]  # entropies ln 4 and ln 2
    assert mig(information, levels) == pytest.approx((1.5 / math.log(4) + 0 / math.log(2)) / 2)
    assert modularity(information) == pytest.approx(((1 - 1 / 4) + (1 - 0.25) + 0) / 3)
    d, c = entropic_scores(np.array([[0.5, 0.5], [0.5, 0.0]]))
    assert d == pytest.approx(0 * 2 / 3 + 1 * 1 / 3)
    assert c == pytest.approx(0 * 2 / 3 + 1 * 1 / 3)


def test_levels_are_bins_or_the_values_themselves() -> None:
    assert histogram_levels(np.linspace(0, 1, 101))[[0, 4, 5, 50, 100]].tolist() == [0, 0, 1, 10, 19]
    assert factor_levels(np.array([3.0, 1.0, 3.0])).tolist() == [1, 0, 1]
    random = factor_levels(np.random.default_rng(0).normal(size=1000))
    assert np.bincount(random).tolist() == [50] * 20


def test_images_of_one_value_are_never_in_two_bins() -> None:
    clipped = np.random.default_rng(0).uniform(-1, 1, 1000).clip(0)
    levels = factor_levels(clipped)
    assert np.bincount(levels)[0] == (clipped == 0).sum() and (np.bincount(levels)[2:] == 50).all()
    assert (factor_levels(clipped[::-1]) == levels[::-1]).all()  # the order of the images says nothing
    identities = np.repeat(np.arange(100.0), 3)
    assert (factor_levels(identities, "categorical") == identities).all()


def test_a_circle_is_measured_in_radians_and_cut_everywhere() -> None:
    known = Factors(("a",), ("circular",), torch.tensor([[-90.0], [0.0], [179.0]]), (-180.0,), (180.0,))
    assert angle(known, 0) == pytest.approx(np.deg2rad([90, 180, 359]))
    cuts = unrolled(angle(known, 0))
    assert len(cuts) == 36 and all((one >= 0).all() and (one < 2 * np.pi).all() for one in cuts)
    assert cuts[9][0] == pytest.approx(0, abs=1e-9) or cuts[9][0] == pytest.approx(2 * np.pi, abs=1e-9)


def test_r2_is_one_for_the_truth_and_zero_for_its_mean() -> None:
    true = np.random.default_rng(0).normal(size=(50, 2))
    assert r2(true, true) == 1 and r2(np.broadcast_to(true.mean(0), true.shape), true) == pytest.approx(0)


def test_the_representation_is_the_posteriors_and_the_means(tiny_networks: None) -> None:
    spec = LatentSpec(4, (Categorical(3), Uniform(2), Categorical(5)))
    _, discriminator = build(TABLES["mnist"], spec, seed=0)
    discriminator.eval()
    pixels = torch.randint(0, 256, (503, 28, 28, 1), dtype=torch.uint8)
    found = represent(discriminator, spec, pixels, (0.0, 1.0))
    with torch.no_grad():
        outputs = discriminator(pixels.permute(0, 3, 1, 2) / 255)[1].double()
    assert found.names == ("c1", "c2", "c3", "c4") and len(found) == 503
    assert [one.shape[1] for one in found.columns] == [3, 5, 1, 1]
    np.testing.assert_allclose(found.columns[1], outputs[:, 3:8].softmax(1), atol=1e-5)
    np.testing.assert_allclose(found.columns[3][:, 0], outputs[:, 9], atol=1e-5)
    assert found.table.shape == (503, 10) and found.owners.tolist() == [0] * 3 + [1] * 5 + [2, 3]
    assert (found.levels(1) == found.columns[1].argmax(1)).all() and found.levels(2).max() == 19
