"""What the claims' commands keep, skip and tell; the training itself is the training command's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx_files, write_folder
from PIL import Image

from bench.claims import command, drawn_sets, gallery, imbalanced, report, runs
from bench.claims.claim import Claim, Number
from bench.claims.command import CLAIMS, current, shrunk
from bench.claims.runs import MACHINE as MACHINE_FILE
from bench.claims.runs import digest, distance, failure, judged, strongest, trained
from bench.measure import ROOT, keep_rows, read_csv, write_csv
from fastinfogan import checkpoint, data
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.metrics.evaluation import METRICS

MACHINE = {"device": "cpu", "cpu": "a processor", "cores": "2", "commit": "abc", "torch": "2"}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_run(name: str) -> None:
    claim = CLAIMS[name]
    assert claim.seeds and claim.numbers and claim.groups
    for config in (*claim.variants.values(), *shrunk(claim).variants.values()):
        config.check()
    assert len({digest(config) for config in claim.variants.values()}) == len(claim.variants)


def test_make_claims_runs_every_claim() -> None:
    (listed,) = re.findall(r"for name in ([^;]*);", (ROOT / "Makefile").read_text())
    assert listed.replace("\\", "").split() == list(CLAIMS)


def test_a_run_is_named_by_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig()
    elsewhere = replace(config, seed=7, data=Path("/else"), run_dir=Path("/there"), device="cuda")
    assert digest(config) == digest(elsewhere)
    assert len({digest(one) for one in (config, replace(config, lr_d=1e-4), replace(config, iterations=1))}) == 3
    assert runs.home(config, Path()) == runs.home(replace(config, amp=True), Path())  # which claims train with
    before = digest(config)
    monkeypatch.setattr(runs, "CODE", runs.CODE + 1)
    assert digest(config) != before


@pytest.mark.parametrize(
    ("confusion", "told"),
    [
        ([[9, 1], [0, 10]], ""),
        ([[10, 0, 0], [9, 1, 0], [0, 5, 5]], "0 and 1 share a value, 2 has two values"),
        ([[10, 0, 0, 0], [0, 10, 0, 0], [0, 10, 0, 0], [0, 0, 0, 10]], "1 and 2 share a value"),
        ([[3, 3, 2, 2], [0, 9, 0, 0]], "0 is spread over many"),  # 30 % is not above it
        ([], ""),
    ],
)
def test_a_failure_is_told_by_labels(confusion: list[list[int]], told: str) -> None:
    assert failure(confusion) == told


def test_the_code_that_took_a_factor_up_is_found() -> None:
    correlations = {"c1": {"slant": 0.1, "width": -0.9, "shape": None}, "c2": {"slant": -0.8, "width": 0.2}}
    assert strongest(correlations) == {"slant": (0.8, "c2"), "width": (0.9, "c1")}


def test_the_distance_of_frequencies_is_total_variation_over_matched_labels() -> None:
    confusion = [[0, 6], [4, 0]]  # label 0 has 60 %, and value 1 is it
    assert distance([0.4, 0.6], [1, 0], confusion) == pytest.approx(0)
    assert distance([0.5, 0.5], [1, 0], confusion) == pytest.approx(0.1)
    assert distance([0.2, 0.3, 0.5], [1, 0, -1], confusion) == pytest.approx(0.5)
    assert distance([1.0], [0], confusion) == pytest.approx(0.4)


def test_rows_of_the_same_run_replace_each_other_and_new_columns_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "claim.csv"
    one, two = ({"variant": "a", "seed": seed, "configuration": "x"} for seed in "01")
    keep_rows(path, [one | {"error": "1"}], one)
    keep_rows(path, [two | {"error": "2"}], two)
    keep_rows(path, [one | {"error": "3", "nmi": "4"}], one)
    assert read_csv(path) == [two | {"error": "2", "nmi": ""}, one | {"error": "3", "nmi": "4"}]


def claim_of(**variants: TrainConfig) -> Claim:
    return Claim(
        "is it so?", "It was measured.", variants, (0, 1), ("clustering",),
        (Number("error", "test error", percent=True), Number("nmi", "NMI")), lambda rows, _: report.dots(rows, ()),
    )  # fmt: skip


def test_rows_of_another_configuration_are_not_told(tmp_path: Path) -> None:
    config = TrainConfig()
    claim = claim_of(plain=config, other=replace(config, lr_d=1e-4))
    amp = replace(config, amp=True)
    rows = [
        {"variant": "other", "seed": "0", "configuration": digest(replace(amp, lr_d=1e-4))},
        {"variant": "plain", "seed": "10", "configuration": digest(amp)},
        {"variant": "plain", "seed": "9", "configuration": digest(amp)},
        {"variant": "plain", "seed": "8", "configuration": "before"},
        {"variant": "gone", "seed": "0", "configuration": digest(amp)},
    ]
    assert current(rows, claim) == [rows[2], rows[1], rows[0]]


def test_the_paragraph_has_medians_spreads_failures_and_the_machine() -> None:
    claim = claim_of(plain=TrainConfig(iterations=100, batch=50), other=TrainConfig(lr_d=1e-4))
    rows = [
        {"variant": "plain", "seed": str(seed), "error": str(error), "nmi": "", "failure": told,
         "images_per_second": "500", **MACHINE}
        for seed, (error, told) in enumerate([(0.05, "none"), (0.01, "none"), (0.2, "4 and 9 share a value")])
    ]  # fmt: skip
    text = report.paragraph(claim, "so", rows, Path("so.png"))
    assert "| plain | 3 | 5.00% (1.00% to 20.00%) |" in text and "NMI" not in text and "other" not in text
    assert "1 of 3 (plain, seed 2: 4 and 9 share a value)" in text
    assert "| | seed | test error |\n|---|---|---|\n| plain | 0 | 5.00% |\n| plain | 1 | 1.00% |\n" in text
    assert "10 s of training a run (median of 3; 500 images/s) on a processor, 2 cores; torch" in text
    assert "bench claims so" in text


def test_a_row_that_lacks_a_group_which_the_claim_asks_for_today_is_no_answer() -> None:
    claim = replace(claim_of(plain=TrainConfig()), groups=("information", "samples"))
    assert not command._answers({"groups": "information"}, claim)
    assert command._answers({"groups": "samples clustering information"}, claim)
    assert command._answers({}, claim)  # from before it was noted


def test_runs_that_earlier_metrics_judged_are_told() -> None:
    claim = claim_of(plain=TrainConfig())
    row = {"variant": "plain", "error": "0.1", "nmi": "", "failure": "none", "images_per_second": "1", **MACHINE}
    seeds = [row | {"seed": "0"}, row | {"seed": "1", "judge": str(METRICS)}, row | {"seed": "2"}]
    assert "2 of 3 runs were judged by earlier metrics" in report.paragraph(claim, "so", seeds, Path("so.png"))
    for alike in (seeds[:1], seeds[1:2]):
        assert "earlier metrics" not in report.paragraph(claim, "so", alike, Path("so.png"))


def test_times_of_different_machines_are_told_apart() -> None:
    claim = claim_of(plain=TrainConfig(iterations=100, batch=50))
    rows = [
        {"variant": "plain", "seed": str(seed), "error": "0.1", "nmi": "", "failure": "none", **MACHINE} | own
        for seed, own in enumerate([
            {"images_per_second": "500"}, {"images_per_second": "50", "cores": "1"}, {"images_per_second": "500"},
            {"images_per_second": "5000", "device": "a GPU"},
        ])
    ]  # fmt: skip
    text = report.paragraph(claim, "so", rows, Path("so.png"))
    assert "10 s of training a run (median of 2; 500 images/s) on a processor, 2 cores; 100 s" in text
    assert "50 images/s) on a processor, 1 core; 1 s" in text and "5,000 images/s) on a GPU; torch" in text


def test_figures_hold_every_run() -> None:
    rows = [{"variant": v, "seed": str(s), "error": str(0.1 * s)} for v in ("a", "b") for s in range(3)]
    (axes,) = report.dots(rows, [Number("error", "test error", percent=True)]).axes
    shown = [line.get_xdata() for line in axes.lines]
    assert [len(x) for x in shown] == [3, 3] and np.allclose(shown[0], [0, 10, 20])
    curves = [
        {"variant": "a", "seed": str(s), "step": str(t), "mi": str(s + t)} for s in (0, 1) for t in range(3 - s)
    ]  # the second run is a step behind
    (axes,) = report.bands(curves, "mi", "nats").axes
    assert axes.lines[0].get_ydata().tolist() == [0.5, 1.5]


def test_a_run_is_trained_once_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(runs, "run_module", lambda *arguments: called.append(arguments))
    config = TrainConfig(iterations=8)
    folder = trained(config, tmp_path, MACHINE)
    assert json.loads((folder / MACHINE_FILE).read_text()) == MACHINE
    assert called == [("train", "--config", folder / "start.json", "--run-dir", folder)]
    steps = {4: ("train", "--resume", folder), 8: None}
    for step, expected in steps.items():
        called.clear()
        monkeypatch.setattr(checkpoint, "newest", lambda _, step=step: folder / str(step))
        monkeypatch.setattr(checkpoint, "load", lambda _, step=step: type("Saved", (), {"step": step}))
        assert trained(config, tmp_path, MACHINE | {"commit": "def"}) == folder
        assert json.loads((folder / MACHINE_FILE).read_text()) == MACHINE
        assert called == ([expected] if expected else [])


def test_a_run_of_which_nobody_knows_the_machine_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_module", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(checkpoint, "newest", lambda run: run / "4")
    with pytest.raises(UserError, match=r"has no machine\.json .*: delete the run, and start again"):
        trained(TrainConfig(iterations=8), tmp_path, MACHINE)


def test_numbers_of_an_evaluation_have_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run_module", lambda *_: None)
    (tmp_path / "evaluation.json").write_text(
        '{"metrics": 7, "step": 3, "information": {"c1": 2.25}, '
        '"clusterings": {"c1": {"error": 0.1, "matching": [1, 0, -1], "confusion": [[1, 0], [1, 0]]}}, '
        '"frequencies": {"c1": [0.75, 0.25, 0.0]}, '
        '"probe": {"errors": {"pixels": {"10": [0.5, 0.25]}}}, "samples": null}'
    )
    rates = "".join(f'{{"step": 2, "images_per_second": {rate}}}\n' for rate in (20.0, 100.0, 900.0))
    (tmp_path / "metrics.jsonl").write_text(rates + '{"step": 3, "eval/mi": 1.0}\n')
    assert judged(tmp_path, ("clustering",), TrainConfig()) == {
        "step": "3", "information/c1": "2.25", "clusterings/c1/error": "0.1", "probe/errors/pixels/10": "0.375",
        "frequencies/c1/distance": "0.25", "frequencies/c1/0": "0.25", "frequencies/c1/1": "0.75",
        "failure": "0 and 1 share a value", "images_per_second": "100", "judge": "7", "groups": "clustering",
    }  # fmt: skip
    content = json.loads((tmp_path / "evaluation.json").read_text())
    del content["frequencies"]  # all three values equally frequent then
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert judged(tmp_path, ("clustering",), TrainConfig())["frequencies/c1/distance"] == "0.3333"


def evaluated(step: int, **groups: object) -> str:
    """An evaluation.json of that step."""
    clusterings = {"c1": {"error": 0.0, "matching": [0], "confusion": [[1]]}}
    return json.dumps(
        {"metrics": METRICS, "step": step, "information": {"c1": 2.25}, "clusterings": clusterings} | groups
    )


@pytest.mark.parametrize(
    ("content", "again", "asked"),
    [
        (evaluated(8), False, False),
        (evaluated(8), True, True),
        (evaluated(8, metrics=METRICS - 1), False, True),
        (evaluated(4), False, True),  # the run was stopped behind its last checkpoint
        (evaluated(8, clusterings={}), False, True),  # of other groups, asked for by hand
        (evaluated(8, information={}), False, True),
        (None, False, True),
    ],
)
def test_a_run_without_its_last_evaluation_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, again: bool, asked: bool
) -> None:
    called: list[tuple[object, ...]] = []

    def evaluate(*arguments: object) -> None:
        called.append(arguments)
        (tmp_path / "evaluation.json").write_text(evaluated(8))

    monkeypatch.setattr(runs, "run_module", evaluate)
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "images_per_second": 100.0}\n')
    if content:
        (tmp_path / "evaluation.json").write_text(content)
    found = judged(tmp_path, ("information", "clustering"), TrainConfig(iterations=8), again=again)
    assert found["step"] == "8" and bool(called) is asked


def test_numbers_of_different_feature_networks_are_not_mixed() -> None:
    fid = Number("fid", "FID", alike="floor")
    claim = replace(claim_of(plain=TrainConfig()), numbers=(fid,))
    rows = [
        {"variant": "plain", "seed": str(seed), "fid": str(value), "floor": floor, "images_per_second": "1", **MACHINE}
        for seed, (value, floor) in enumerate([(3, "0.7"), (5, "0.7"), (9, "0.8"), (4, "0.7")])
    ]
    assert report.table(claim, rows)[2] == "| plain | 4 | 4.000 (3.000 to 5.000) of 3 / 9.000 of 1 |"
    assert report.table(claim, rows[:2])[2] == "| plain | 2 | 4.000 (3.000 to 5.000) |"
    assert "not in the same unit" in report.paragraph(claim, "so", rows, Path("so.png"))
    assert "not in the same unit" not in report.paragraph(claim, "so", rows[:2], Path("so.png"))
    for some, bars in ((rows, 0), (rows[:2], 1)):
        (axes,) = report.dots(some, [fid]).axes
        assert len(axes.collections) == bars


def test_the_best_traversal_of_all_runs_is_shown(tmp_path: Path) -> None:
    config = TrainConfig()
    claim = replace(claim_of(plain=config), shown={"plain": ("strokes/slant", "strokes/width")})
    rows = [
        {"variant": "plain", "seed": seed, "strokes/best/slant": rho, "strokes/code/slant": code}
        for seed, rho, code in (("0", "0.5", "c2"), ("1", "0.9", "c3"), ("2", "0.7", "c2"))
    ]
    figures = runs.home(replace(config, seed=1), tmp_path / "runs") / "figures"
    figures.mkdir(parents=True)
    Image.new("RGB", (5, 5), "red").save(figures / "traversal-c3-final.png")
    for there in (True, False):  # the picture stays when the runs are gone
        (shown,) = gallery.best_traversals(claim, "so", rows, tmp_path / ("runs" if there else "none"), tmp_path)
        assert Image.open(shown.picture).getpixel((0, 0)) == (255, 0, 0)
        assert "c3 of seed 1" in shown.caption and "0.90" in shown.caption and "3 runs" in shown.caption
    # A better run of another machine has no picture here, and gets no other one's.
    better = {"variant": "plain", "seed": "3", "strokes/best/slant": "0.95", "strokes/code/slant": "c2"}
    assert gallery.best_traversals(claim, "so", [*rows, better], tmp_path / "none", tmp_path) == []


def test_an_unknown_claim_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claims", "figure-9"])
    with pytest.raises(UserError, match=r"no claim 'figure-9': choose one of\n  information .*Figure 1"):
        command.main()


def test_an_unknown_variant_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claims", "faces", "--variants", "azimuth", "smile"])
    with pytest.raises(UserError, match="faces has no variant 'smile': choose of 'azimuth', 'elevation', 'lighting'"):
        command.main()


def test_some_variants_alone_are_run_and_every_row_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MACHINE_FILE).write_text(json.dumps(MACHINE))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "trained", lambda *_: tmp_path)
    numbers = {"clusterings/c1/error": "0.1", "images_per_second": "100"}
    monkeypatch.setattr(command, "judged", lambda *_, **__: numbers)
    first, *_, last = CLAIMS["objective"].variants
    for variant, seeds in ((last, ("3", "4")), (first, ("3",))):
        monkeypatch.setattr(
            sys, "argv", ["claims", "objective", "--device", "cpu", "--seeds", *seeds, "--variants", variant]
        )
        command.main()
    rows = read_csv(tmp_path / "claims" / "objective.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [(last, "3"), (last, "4"), (first, "3")]
    told = (tmp_path / "claims" / "objective.md").read_text()
    assert f"| {first} | 1 |" in told and f"| {last} | 2 |" in told


def test_a_claim_runs_what_has_no_row_of_its_configuration_and_keeps_rows_and_curves_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MACHINE_FILE).write_text(json.dumps(MACHINE))
    (tmp_path / "metrics.jsonl").write_text('{"step": 25, "mi/c1": 1.5}\n{"step": 26, "eval/mi/c1": 2.0}\n')
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "trained", lambda *_: tmp_path)
    flags = ["claims", "information", "--device", "cpu", "--variants", "InfoGAN", "--seeds", "3"]

    def asked(*more: str) -> list[bool]:
        """Of each run that was judged, whether anew."""
        found: list[bool] = []

        def judge(*_: object, again: bool = False) -> dict[str, str]:
            found.append(again)
            return {"information/c1": "1.5", "images_per_second": "100"}

        monkeypatch.setattr(command, "judged", judge)
        monkeypatch.setattr(sys, "argv", [*flags, *more])
        command.main()
        return found

    assert (asked(), asked(), asked("--again")) == ([False], [], [True])
    out = tmp_path / "claims" / "information.csv"
    (row,) = read_csv(out)
    assert row | MACHINE == row  # of the machine that trained it
    (point,) = read_csv(out.with_name("information_curves.csv"))
    assert (point["step"], point["mi/c1"], point["seed"]) == ("25", "1.5", "3")
    write_csv(out, [row | {"configuration": "before"}])
    assert asked() == [False] and len(read_csv(out)) == 2


@pytest.mark.parametrize("flag", ["--seeds", "--variants"])
def test_nothing_to_run_is_told(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claims", "information", "--quick", flag])
    with pytest.raises(UserError, match=r"^--seeds and --variants need at least one value each"):
        command.main()


@pytest.mark.parametrize(("quick", "size", "name"), [(False, None, "svhn-like-9"), (True, 64, "svhn-like-64-256")])
def test_a_drawn_set_is_drawn_once_and_gone_on_with_where_it_is_not_whole(
    quick: bool, size: int | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(drawn_sets, "run_module", lambda *arguments: called.append([*map(str, arguments)]))
    out = tmp_path / "drawn" / name
    out.mkdir(parents=True)  # the beginning of a set
    prepare = drawn_sets.drawn("svhn-like", 9, size)
    assert prepare(tmp_path, quick) == out
    (out / "render.json").touch()
    assert prepare(tmp_path, quick) == out
    flags = ["--count", "256" if quick else "9", "--seed", "0", "--out", str(out), *(["--size", "64"] if size else [])]
    assert called == [["data", "render", "svhn-like", *flags]]


def test_imbalanced_digits_fall_to_a_tenth_in_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(1000) % 10
    rows = imbalanced.kept(labels)
    assert labels[rows].bincount().tolist() == [100, 77, 60, 46, 36, 28, 22, 17, 13, 10]
    assert rows[labels[rows] == 9].tolist() == list(range(9, 100, 10))  # the first ones
    monkeypatch.setattr(data.mnist, "MD5", {})  # these digits are not MNIST's
    write_folder(tmp_path / "mnist", idx_files(140, 90))
    out = imbalanced.prepare(tmp_path, quick=False)
    for split in ("train", "test"):
        whole, fewer = (
            data.open_split(name, root, split, (1, 28, 28))
            for name, root in (("mnist", tmp_path), ("fashion-mnist", out))
        )
        left = imbalanced.kept(whole.labels)
        assert torch.equal(fewer.pixels, whole.pixels[left]) and torch.equal(fewer.labels, whole.labels[left])


@pytest.mark.slow
def test_a_quick_claim_runs_as_a_user_runs_it() -> None:
    subprocess.run(
        [sys.executable, "-m", "bench", "claims", "information", "--quick"], cwd=ROOT, check=True, timeout=600
    )
    folder = ROOT / "build" / "quick" / "claims"
    assert [row["variant"] for row in read_csv(folder / "information.csv")] == ["InfoGAN", "plain GAN"]
    assert (folder / "information.png").exists() and "python -m bench claims" in (folder / "information.md").read_text()
