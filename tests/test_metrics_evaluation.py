"""Every group of the evaluation ends in the table and the file, and what cannot be measured is told, not invented."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Outcome
from image_files import idx_files, photograph, write_folder, write_svhn
from test_metrics_traversal import rendered
from torch import nn

from fastinfogan import data, evaluate
from fastinfogan.config import TrainConfig
from fastinfogan.data.factors import write_factors
from fastinfogan.data.folder import open_folder
from fastinfogan.data.shards import write_shards
from fastinfogan.data.split import Decoded, Factors
from fastinfogan.errors import UserError
from fastinfogan.metrics import evaluation, subject, traversal
from fastinfogan.metrics.evaluation import ALL, QUICK, Evaluation, lacking
from fastinfogan.metrics.features import FeatureNetwork
from fastinfogan.metrics.sample_quality import count_name, sample_quality
from fastinfogan.metrics.subject import Labelled, Subject
from fastinfogan.networks import build

CPU = torch.device("cpu")


def flat(name: str = "rawnet") -> FeatureNetwork:
    return FeatureNetwork(name, "the pixels themselves", CPU, lambda images: images.flatten(1))


def noise(n: int, seed: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (n, 4, 4, 1), generator=torch.Generator().manual_seed(seed)).byte()


def quality(generated: torch.Tensor, seen: bool = False) -> Any:
    n = len(generated)
    values = (torch.arange(n) % 2)[:, None]
    return sample_quality(
        flat(), real=noise(n, 0), training=noise(n, 1), generated=generated, real_values=values,
        generated_values=values, names=("c1",), seen=seen, seed=0,
    )  # fmt: skip


def test_a_perfect_generator_reaches_the_floor_and_no_better() -> None:
    found = quality(noise(400, 2))
    assert found.fid == pytest.approx(found.floor_fid, rel=0.2)
    assert abs(found.kid.distance) < 4 * found.kid.standard_error
    assert found.manifolds.coverage == pytest.approx(found.floor_manifolds.coverage, abs=0.05)
    assert found.diversity["c1"] == pytest.approx(found.real_diversity["c1"], rel=0.02)


def test_a_generator_of_one_image_has_no_diversity_and_little_recall() -> None:
    found = quality(noise(1, 2).repeat(400, 1, 1, 1))
    assert found.diversity["c1"] == pytest.approx(0, abs=1e-5) and found.manifolds.recall < 0.01
    assert found.fid > 20 * found.floor_fid and found.kid.distance > 20 * found.floor_kid.standard_error


def test_precision_and_recall_are_of_what_is_judged_and_not_of_the_real_images() -> None:
    """One mode of two: precise, and recalled by half at most."""
    real, one_mode = torch.cat([noise(100, 0, 0, 30), noise(100, 1, 200, 230)]), noise(200, 2, 0, 30)
    values = torch.zeros(200, 1)
    found = sample_quality(
        flat(), real=real, training=one_mode, generated=one_mode, real_values=values, generated_values=values,
        names=("c1",), seen=False, seed=0,
    )  # fmt: skip
    for judged in (found.manifolds, found.floor_manifolds):
        assert judged.recall <= 0.5 < judged.precision


def test_diversity_is_within_what_images_were_made_from_and_within_what_q_reads_off_real_ones() -> None:
    images = torch.cat([noise(50, 0, 0, 20), noise(50, 1, 200, 220)])
    alike, mixed = (torch.arange(100) // 50)[:, None], (torch.arange(100) % 2)[:, None]
    found = sample_quality(
        flat(), real=images, training=images, generated=images, real_values=mixed, generated_values=alike,
        names=("c1",), seen=False, seed=0,
    )  # fmt: skip
    assert found.diversity["c1"] < 0.2 * found.real_diversity["c1"]


def test_images_that_g_was_trained_on_are_not_called_a_test_split() -> None:
    unseen, seen = ("\n".join(quality(noise(100, 2), seen).lines()) for seen in (False, True))
    assert "against 100 images of the test split;" in unseen
    assert "against 100 images that G was trained on: the set has no test split;" in seen


def test_no_figure_is_called_plain_fid() -> None:
    found = quality(noise(400, 2))
    assert set(found.quotable) == {
        f"{name}-rawnet-400" for name in ("FID", "KID", "precision", "recall", "density", "coverage")
    }
    assert found.quotable["FID-rawnet-400"] == found.fid
    text = "\n".join(found.lines())
    assert "FID-rawnet-400 " in text and "FID " not in text and "the pixels themselves" in text
    assert [count_name(n) for n in (10_000, 5_000, 24, 1_500)] == ["10k", "5k", "24", "1500"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work in every group."""
    torch.set_num_threads(1)
    monkeypatch.setattr(evaluation, "STROKE_SAMPLES", 60)
    monkeypatch.setattr(evaluation, "LABELS", (10,))
    monkeypatch.setattr(evaluation, "VOTES", (60, 40))
    monkeypatch.setattr(evaluation, "LEAST_DISENTANGLED", 120)
    monkeypatch.setattr(traversal, "ROWS", 4)
    monkeypatch.setattr(traversal, "EPOCHS", 1)


def test_all_groups_of_a_set_of_digits_are_in_the_table_and_the_file(
    tmp_path: Path,
    small: None,
    tiny_networks: None,
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data.mnist, "MD5", {})  # these digits are not MNIST's
    write_folder(tmp_path / "mnist", idx_files(140))
    config = tiny_config(dataset="mnist", data=tmp_path, codes=("cat:10", "uniform:2"))
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ALL)
    assert set(judged.missing) == {"disentanglement", "traversal"}
    table = judged.table()
    for part in (
        "mutual information bound", "argmax Q(c|x)", "FID-mnistnet-140 ", "own classifier of mnist",
        "diversity within one value of c1", "rank correlation with the strokes", "linear probe", "Q's trunk (16)",
        "disentanglement not measured: mnist comes without true factors",
    ):  # fmt: skip
        assert part in table, part
    judged.write(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["samples"]["quotable"]["FID-mnistnet-140"] == judged.samples.fid  # type: ignore[union-attr]
    assert set(content["strokes"]["overall"]) == {"c2", "c3"} and len(content["probe"]["errors"]["PCA"]["10"]) == 5
    assert content["disentanglement"] is None


def test_an_evaluation_fixes_the_std_where_training_did(
    tiny_networks: None, tiny_config: Callable[..., TrainConfig]
) -> None:
    config = tiny_config(codes=("uniform:1",), fixed_std=True)
    networks = build(config.network_tables, config.spec, seed=0)
    with torch.no_grad():
        networks[1].recognition_head[-1].linear.bias[1] = 5.0  # a log-std that nobody taught
    assert evaluation.evaluate(config, *networks, 3, ("information",)).information["c1"] > -1


@pytest.mark.parametrize(("tables", "image_range"), [("mnist", (0.0, 1.0)), ("svhn", (-1.0, 1.0))])
def test_images_are_judged_in_the_range_of_the_networks(tables: Any, image_range: tuple[float, float]) -> None:
    config = TrainConfig(tables=tables)
    assert Subject(config, *build(config.network_tables, config.spec, seed=0)).image_range == image_range
    inverted = replace(config, invert=True)
    assert Subject(inverted, *build(inverted.network_tables, config.spec, seed=0)).image_range == image_range[::-1]


@pytest.mark.parametrize("groups", [("information", "clustering", "probe"), ("disentanglement",)])
def test_the_statistics_that_training_left_in_d_have_no_say(
    groups: tuple[evaluation.Group, ...],
    tmp_path: Path,
    small: None,
    tiny_networks: None,
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are of real and generated images in turn; Q is judged by those of the images that it is shown."""
    config = tiny_config(codes=("cat:10", "uniform:2"))
    if "disentanglement" in groups:
        renders(monkeypatch, tmp_path)
        config = tiny_config(dataset="faces", data=tmp_path, codes=("cat:3", "uniform:2"))
    generator, discriminator = build(config.network_tables, config.spec, seed=0)
    of_training = copy.deepcopy(discriminator)
    for module in of_training.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.constant_(module.running_var, 9.0)  # type: ignore[arg-type]
    one, other = (evaluation.evaluate(config, generator, d, 3, groups) for d in (discriminator, of_training))
    assert one.information == other.information and one.clusterings == other.clusterings
    assert str(one.probe) == str(other.probe) and str(one.disentanglement) == str(other.disentanglement)
    assert (one.probe is None) is ("disentanglement" in groups)


def test_generated_images_are_compared_with_the_test_split(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        name: content[:16] + bytes(byte // 4 + 150 * name.startswith("t10k") for byte in content[16:])
        if "images" in name else content
        for name, content in idx_files(30).items()
    }  # dark training images, bright test images  # fmt: skip
    write_folder(tmp_path / "fashion-mnist", files)
    given: dict[str, Any] = {}
    monkeypatch.setattr(evaluation, "feature_network", lambda *_: flat())
    monkeypatch.setattr(evaluation, "sample_quality", lambda by, **keywords: given.update(keywords, by=by))
    monkeypatch.setattr(evaluation, "predict", lambda _judge, _spec, pixels, _range: pixels)

    def judge(config: TrainConfig, **by: FeatureNetwork) -> None:
        evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("samples",), **by)

    other = flat("another")
    judge(tiny_config(data=tmp_path), features=other)
    assert given["by"] is other
    judge(tiny_config(data=tmp_path))
    assert given["by"].name == "rawnet"
    assert given["real"].min() >= 150 > given["training"].max() and given["seen"] is False
    assert given["real_values"] is given["real"]  # what Q reads off the very images
    renders(monkeypatch, tmp_path, 60)
    judge(tiny_config(dataset="faces", data=tmp_path))
    assert given["seen"] is True


def test_samples_are_drawn_and_judged_by_the_seed_of_the_run(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "fashion-mnist", idx_files(30))
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(evaluation, "feature_network", lambda *_: flat())
    monkeypatch.setattr(evaluation, "sample_quality", lambda _, **keywords: given.append(keywords))
    for seed in (5, 5, 6):
        config = tiny_config(data=tmp_path, seed=seed)
        evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("samples",))
    one, same, other = (keywords["generated"] for keywords in given)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert [keywords["seed"] for keywords in given] == [5, 5, 6]


@pytest.mark.parametrize("gray", [True, False])
def test_images_are_opened_as_training_opened_them(
    gray: bool, tmp_path: Path, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    blank = Decoded("faces", torch.zeros(10, 28, 28, 1, dtype=torch.uint8), None)
    monkeypatch.setattr(subject.data, "open_split", lambda *_, **how: (opened.append(how), blank)[1])
    config = tiny_config(dataset="faces", data=tmp_path, gray=gray)
    _ = Subject(config, *build(config.network_tables, config.spec, seed=0)).real
    assert opened and all(how == {"gray": gray, "tables": config.tables} for how in opened)


def test_a_regressor_and_a_probe_are_fitted_on_the_training_images_and_judged_on_the_others(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    class Reader:
        def __init__(self, *fitted: Any, **_: Any) -> None:
            given.append(fitted)

        def quality(self, *judged: Any) -> None:
            given.append(judged)

    monkeypatch.setattr(evaluation, "FactorReader", Reader)
    monkeypatch.setattr(evaluation, "traversal_truth", lambda *_, **__: None)
    monkeypatch.setattr(evaluation, "probe", lambda *tables_and_labels, **_: given.append(tables_and_labels))

    def judge(config: TrainConfig, group: evaluation.Group) -> Any:
        given.clear()
        networks = build(config.network_tables, config.spec, seed=0)
        evaluation.evaluate(config, *networks, 3, (group,))
        return Subject(config, *networks).real

    write_folder(tmp_path / "fashion-mnist", idx_files(40, 24))
    train, test = judge(tiny_config(data=tmp_path), "probe")
    ((tables, *labels),) = given
    assert [list(one) for one in labels] == [train.some(40).labels.tolist(), test.labels.tolist()]
    assert all((len(fitted), len(judged)) == (40, 24) for fitted, judged in tables.values())
    renders(monkeypatch, tmp_path, 60)
    parts = judge(tiny_config(dataset="faces", data=tmp_path), "traversal")
    for (pixels, factors), part in zip(given, (part.some(len(part.pixels)) for part in parts), strict=True):
        assert torch.equal(pixels, part.pixels) and torch.equal(factors.values, part.factors.values)


def test_strokes_are_told_by_the_continuous_codes_in_their_order(
    small: None, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(evaluation, "stroke_correlations", lambda made, names: given.append((made, names)))
    config = tiny_config(dataset="mnist", codes=("uniform:1", "cat:3", "uniform:1"))
    evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("strokes",))
    ((made, names),) = given
    assert names == ("c2", "c3") and made.continuous.shape == (60, 2)


def renders(monkeypatch: pytest.MonkeyPatch, root: Path, n: int = 600) -> None:
    """A set of 28x28 renders with factors, and no splits, in place of the faces."""
    pixels, factors = rendered(n, 0)
    large = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, 2:30, 2:30].contiguous()
    found = Decoded("faces", large, None, factors=factors)
    monkeypatch.setattr(subject.data, "open_split", lambda *_, **__: found)


def test_all_groups_of_a_set_of_renders_are_in_the_table_and_the_file(
    tmp_path: Path,
    small: None,
    tiny_networks: None,
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renders(monkeypatch, tmp_path)
    monkeypatch.setattr(evaluation, "feature_network", lambda *_: flat("packednet"))
    config = tiny_config(dataset="faces", data=tmp_path, codes=("cat:3", "uniform:2"))
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ALL)
    assert set(judged.missing) == {"strokes", "probe"} and judged.clusterings == {}
    table = judged.table()
    for part in (
        "FID-packednet-120 ",
        "MIG ",
        "DCI-D",
        "FactorVAE and BetaVAE: 60 / 40 votes",
        "azimuth",
        "R2",
        "probe not measured",
    ):
        assert part in table, part
    assert judged.disentanglement is not None and judged.traversal is not None
    assert judged.disentanglement.factors == ("azimuth", "light", "size")
    assert (judged.disentanglement.fit_images, judged.disentanglement.test_images) == (480, 120)
    judged.write(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(content["traversal"]["correlations"]) == {"c2", "c3"}
    assert content["traversal"]["correlations"]["c2"]["size"] is None


def test_a_set_without_splits_is_cut_into_the_same_two_disjoint_parts_for_every_run(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.arange(100).float()[:, None]
    factors = Factors(("i",), ("continuous",), values, (0.0,), (99.0,))
    whole = Decoded("faces", torch.zeros(100, 28, 28, 1, dtype=torch.uint8), None, factors=factors)
    monkeypatch.setattr(subject.data, "open_split", lambda *_, **__: whole)
    parts = []
    for seed in (1, 2):
        config = tiny_config(dataset="faces", data=tmp_path, seed=seed)
        train, test = Subject(config, *build(config.network_tables, config.spec, seed=0)).real
        assert train.factors is not None and test.factors is not None
        parts.append((train.factors.values[:, 0].tolist(), test.factors.values[:, 0].tolist()))
    assert parts[0] == parts[1]
    train_rows, test_rows = parts[0]
    assert len(test_rows) == 20 and sorted(train_rows + test_rows) == list(range(100))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.jpg", "test/e.jpg"], (3, 2)),
        ([f"{name}.jpg" for name in "abcdefghij"], (8, 2)),
    ],
)
def test_a_folder_is_judged_on_its_own_test_split_where_it_has_one(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], names: list[str], parts: tuple[int, int]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_folder(tmp_path, {name: photograph(i, 32, 32) for i, name in enumerate(names)})
    config = tiny_config(dataset="folder", data=tmp_path, tables="celeba")
    judged = Subject(config, *build(config.network_tables, config.spec, seed=0))
    assert tuple(len(part.pixels) for part in judged.real) == parts
    assert (judged.test_split is not None) is names[0].startswith("train/")


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_whose_training_split_alone_is_there_as_shards_has_no_test_split(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], beside: bool
) -> None:
    write_folder(tmp_path, {f"{name}.jpg": photograph(i, 32, 32) for i, name in enumerate("abcdefghij")})
    write_shards(open_folder(tmp_path, "train"), tmp_path, "train", progress=False)
    if not beside:
        for path in tmp_path.glob("*.jpg"):
            path.unlink()
    config = tiny_config(dataset="folder", data=tmp_path, tables="celeba")
    assert Subject(config, *build(config.network_tables, config.spec, seed=0)).test_split is None


def test_a_folder_with_shards_of_its_training_split_keeps_its_own_test_split(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    write_folder(tmp_path, {f"{part}/{i}.jpg": photograph(i, 32, 32) for part in ("train", "test") for i in range(9)})
    write_shards(open_folder(tmp_path, "train"), tmp_path, "train", progress=False)
    config = tiny_config(dataset="folder", data=tmp_path, tables="celeba")
    test = Subject(config, *build(config.network_tables, config.spec, seed=0)).test_split
    assert test is not None and len(test) == 9


def test_a_damaged_test_split_is_told(tmp_path: Path, tiny_config: Callable[..., TrainConfig]) -> None:
    write_folder(tmp_path, {f"{part}/{i}.jpg": photograph(i, 32, 32) for part in ("train", "test") for i in range(9)})
    for split in ("train", "test"):
        folder = write_shards(open_folder(tmp_path, split), tmp_path, split, progress=False)
    (folder / "shards.json").write_text("{")
    config = tiny_config(dataset="folder", data=tmp_path, tables="celeba")
    with pytest.raises(UserError, match=r"shards\.json is damaged"):
        _ = Subject(config, *build(config.network_tables, config.spec, seed=0)).test_split


def test_house_numbers_with_factors_beside_them_are_judged_by_these(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    for split, n in (("train", 12), ("test", 6)):
        write_svhn(tmp_path, n, split)
    config = tiny_config(dataset="svhn", data=tmp_path, tables="svhn")

    def lacks() -> str | None:
        return lacking(Subject(config, *build(config.network_tables, config.spec, seed=0)), "traversal")

    assert lacks() == "svhn comes without true factors"
    light = Factors(("light",), ("continuous",), torch.arange(18.0)[:, None], (0.0,), (17.0,))
    write_factors(tmp_path / "svhn" / "factors.npz", light)
    assert lacks() is None


def test_a_sample_of_a_part_keeps_labels_and_factors_with_their_images() -> None:
    n = 50
    factors = Factors(("i",), ("continuous",), torch.arange(n).float()[:, None], (0.0,), (49.0,))
    part = Labelled(torch.arange(n).byte()[:, None, None, None], torch.arange(n), factors)
    for asked, given in ((20, 20), (50, 50), (60, 50)):
        some = part.some(asked)
        assert some.factors is not None and len(some.pixels) == given
        found = some.labels.tolist()
        assert found == some.pixels.flatten().tolist() == some.factors.values[:, 0].tolist()
        assert len(set(found)) == given and found != sorted(found)  # a set in the order of its classes is not judged so
        assert found == part.some(asked).labels.tolist()


def test_the_default_reads_no_feature_network_and_trains_nothing(
    finished: tuple[Path, Outcome],
    tmp_path: Path,
    tiny_networks: None,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert QUICK == ("information", "clustering")
    for name in ("feature_network", "FactorReader", "probe", "generated"):
        monkeypatch.setattr(evaluation, name, lambda *_, **__: pytest.fail("more was done than asked for"))
    run = shutil.copytree(finished[0], tmp_path / "run")
    ended = command(evaluate, run)
    assert ended.code == 0 and "not measured" not in ended.out


def test_a_group_that_was_asked_for_and_cannot_be_measured_is_told_before_any_work(
    finished: tuple[Path, Outcome],
    tmp_path: Path,
    tiny_networks: None,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "information_bound", lambda *_, **__: pytest.fail("work was done"))
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = (run / "evaluation.json").read_bytes()
    ended = command(evaluate, run, "--groups", "information", "strokes")
    assert ended.code == 2 and "strokes cannot be measured" in ended.err and "fashion-mnist" in ended.err
    assert (run / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize(("images", "least"), [(7, 1), (29, 5), (4, 0)])
def test_a_set_of_too_few_images_has_no_sample_quality(
    images: int,
    least: int,
    tmp_path: Path,
    tiny_networks: None,
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renders(monkeypatch, tmp_path, images)
    monkeypatch.setattr(evaluation, "feature_network", lambda *_: pytest.fail("work was done"))
    config = tiny_config(dataset="faces", data=tmp_path)
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("samples",))
    assert judged.missing == {"samples": f"either part of the images needs 6 or more, and one has {least}"}


def test_the_least_set_that_has_a_sample_quality_has_a_finite_one(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    renders(monkeypatch, tmp_path, 30)
    monkeypatch.setattr(evaluation, "feature_network", lambda *_: flat())
    config = tiny_config(dataset="faces", data=tmp_path)
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("samples",))
    assert judged.samples is not None and judged.samples.samples == 6
    numbers = [*judged.samples.quotable.values(), judged.samples.kid.standard_error, judged.samples.floor_fid]
    assert all(math.isfinite(number) for number in numbers)


def test_a_set_of_few_images_has_no_scores_of_disentanglement(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a few images to each value of a factor a perfect code scores what chance does."""
    renders(monkeypatch, tmp_path)
    config = tiny_config(dataset="faces", data=tmp_path, codes=("uniform:2",))
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("disentanglement",))
    assert judged.disentanglement is None
    assert judged.missing == {"disentanglement": "either part of the images needs 1,000 or more, and one has 120"}


def test_statistics_are_of_images_of_every_class_though_a_folder_is_sorted(tiny_networks: None) -> None:
    config = TrainConfig(noise=4)
    pixels = torch.cat([torch.full((6000, 28, 28, 1), shade, dtype=torch.uint8) for shade in (0, 255)])
    asked = Subject(config, *build(config.network_tables, config.spec, seed=0))
    asked.__dict__["real"] = (Labelled(pixels, torch.empty(0)), Labelled(pixels[:2], torch.empty(0)))
    seen: list[float] = []
    asked.discriminator.trunk[0].register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].mean())))
    assert asked.judge.training is False
    assert len(seen) == 20 and all(0.4 < mean < 0.6 for mean in seen)


def test_a_run_without_codes_has_nothing_to_probe(tiny_networks: None, tiny_config: Callable[..., TrainConfig]) -> None:
    config = tiny_config(codes=())
    judged = evaluation.evaluate(config, *build(config.network_tables, config.spec, seed=0), 3, ("probe",))
    assert judged.missing == {"probe": "the run has no code"}


def test_groups_can_be_chosen_by_name(
    finished: tuple[Path, Outcome], tmp_path: Path, tiny_networks: None, command: Command
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    ended = command(evaluate, run, "--groups", "clustering")
    assert ended.code == 0 and "argmax Q(c|x)" in ended.out and "mutual information" not in ended.out
    content = json.loads((run / "evaluation.json").read_text())
    assert content["information"] == {} == content["information_shares"] and content["clusterings"]


def test_all_measures_what_the_set_can_have_and_says_what_it_cannot(
    finished: tuple[Path, Outcome], data_root: Path, tmp_path: Path, small: None, tiny_networks: None, command: Command
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    images = shutil.copytree(data_root, tmp_path / "data")
    ended = command(evaluate, run, "--all", "--data", images)
    assert ended.code == 0 and "FID-fashionnet-40 " in ended.out and "linear probe" in ended.out
    content = json.loads((run / "evaluation.json").read_text())
    assert set(content["missing"]) == {"disentanglement", "traversal", "strokes"}
    assert all(f"{group} not measured: {reason}" in ended.out for group, reason in content["missing"].items())


def test_of_a_prior_that_knows_one_value_there_is_no_share_to_tell() -> None:
    collapsed = Evaluation(3, {"c1": 0.0, "c2": 0.2, "total": 0.2}, {"c1": 0.0, "c2": 0.5}, {})
    assert math.isnan(collapsed.information_shares["c1"]) and collapsed.information_shares["c2"] == 0.4
    assert "nan" in collapsed.table()


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    judged = Evaluation(1, {"c1": float("nan"), "total": float("inf")}, {"c1": 1.0}, {})
    judged.write(tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text(), parse_constant=lambda _: pytest.fail("not JSON"))
    assert content["information"] == {"c1": None, "total": None}
