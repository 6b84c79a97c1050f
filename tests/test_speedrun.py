"""The speedrun: what ends a run, what is learnt from and what is not, what is counted, and what a row says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bench import judge, measure, plots, race, speedrun
from bench.contestants import Opponent
from bench.ours import Ours
from bench.race import CONTESTANTS, SHARED, TARGETS, Point, Race, hold_out, reached
from fastinfogan import data
from fastinfogan.config import PRESETS
from fastinfogan.data import Decoded
from fastinfogan.errors import UserError
from fastinfogan.networks import Discriminator, build
from fastinfogan.objective import Objective
from fastinfogan.precision import choose_precision

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
IMAGES, HELD_OUT = 400, 150
RACE = Race("own", 0, 2, 4, 1e9, "nowhere", "cpu", 500, 0.0, HELD_OUT)
POINT = Point(250, 32_000, 10.0, 5.0, 3.0, 2.25, 0.2, 0.19, 0.21)


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch, tiny_networks: None) -> Decoded:
    """In place of MNIST's files: bytes of 0 to 199 in what is trained on, of 200 and more in what is held out."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 200, (IMAGES, 28, 28, 1), generator=random).byte()
    pixels[-HELD_OUT:] = 200 + pixels[-HELD_OUT:] // 5
    made = Decoded("mnist", pixels, torch.arange(IMAGES) % 10)
    monkeypatch.setattr(data, "open_split", lambda *_, **__: made)
    return made


@pytest.mark.slow
def test_a_quick_speedrun_runs_as_a_user_runs_it(tmp_path: Path) -> None:
    out = tmp_path / "runs.csv"
    command = [sys.executable, "-m", "bench", "speedrun", "--quick", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    rows, curves = (list(csv.DictReader(path.open())) for path in (out, tmp_path / "runs_curves.csv"))
    assert [row["contestant"] for row in rows] == ["eager", "own"]
    assert [row["iteration"] for row in curves] == ["2", "4"] * 2
    for row in curves:
        assert 1 < float(row["start_seconds"]) < float(row["seconds"])  # torch alone takes a second to import
    assert out.with_suffix(".png").exists()


def test_a_run_has_arrived_where_both_information_and_error_are_there() -> None:
    curve = [
        replace(POINT, iteration=250, mi_c1=2.1, error=0.04),  # digits, but the code cannot be read off G's images
        replace(POINT, iteration=500, mi_c1=2.3, error=0.11),
        replace(POINT, iteration=750, mi_c1=2.2, error=0.10, test_error=0.5),  # the test error stops nothing
        replace(POINT, iteration=1000, mi_c1=2.3, error=0.2, test_error=0.01),
        replace(POINT, iteration=1250, mi_c1=2.3, error=0.05),
    ]
    assert reached(curve, 0.10) is curve[2]
    assert reached(curve, 0.05) is curve[4]
    assert reached(curve[:4], 0.05) is None


class Scripted:
    """Stands in for a judge: one error after the other; ``clock`` moves on by 100 s with each, by 1 s an iteration."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: float) -> None:
        self.errors = list(errors)
        self.clock = 0.0
        monkeypatch.setattr(race, "_judge", lambda *_: self)
        monkeypatch.setattr(race, "time", self)
        advance = Ours.advance

        def counted(ours: Ours) -> None:
            advance(ours)
            self.clock += 1

        monkeypatch.setattr(Ours, "advance", counted)

    def monotonic(self) -> float:
        return self.clock

    def __call__(self, *networks: object) -> judge.Verdict:
        self.clock += 100
        return judge.Verdict(2.25, self.errors.pop(0), 1.0, 1.0)


@pytest.mark.usefixtures("tiny_mnist")
def test_a_run_ends_at_the_last_target_and_its_evaluations_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, 0.5, 0.08, 0.04, 0.01)
    curve = list(race.run(replace(RACE, limit_iterations=100, began=-7.0)))
    assert [point.error for point in curve] == [0.5, 0.08, 0.04]
    assert [point.iteration for point in curve] == [2, 4, 6]
    assert [point.images for point in curve] == [2 * 128, 4 * 128, 6 * 128]
    assert [point.seconds for point in curve] == [9, 11, 13]
    assert [point.evaluation_seconds for point in curve] == [100, 200, 300]
    assert {point.start_seconds for point in curve} == {8}


@pytest.mark.usefixtures("tiny_mnist")
def test_what_the_device_has_yet_to_do_counts_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch, 0.5, 0.5)
    monkeypatch.setattr(race, "wait", lambda _: setattr(scripted, "clock", scripted.clock + 10))
    curve = list(race.run(RACE))  # waits after the first iteration, and before either evaluation
    assert [(point.start_seconds, point.seconds) for point in curve] == [(11, 22), (11, 34)]


@pytest.mark.usefixtures("tiny_mnist")
def test_a_run_is_given_up_at_either_limit_and_the_last_iteration_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, *[0.5] * 20)
    assert [point.iteration for point in race.run(replace(RACE, limit_iterations=5))] == [2, 4, 5]
    Scripted(monkeypatch, *[0.5] * 20)
    assert [point.iteration for point in race.run(replace(RACE, limit_iterations=50, limit_seconds=3.5))][-1] == 4
    Scripted(monkeypatch, *[0.5] * 20)
    monkeypatch.setitem(PRESETS, "mnist", replace(PRESETS["mnist"], iterations=3))
    assert [point.iteration for point in race.run(replace(RACE, limit_iterations=50))] == [2, 3]


@pytest.mark.parametrize("name", CONTESTANTS)
def test_held_out_images_are_never_trained_on_and_no_label_is_seen(
    name: str, tiny_mnist: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Decoded] = []
    make = CONTESTANTS[name].make

    def caught(config, images, precision):  # type: ignore[no-untyped-def]
        given.append(images)
        contestant = make(config, images, precision)
        if isinstance(contestant, Opponent):
            assert contestant.floats.max() < 200 / 255 and len(contestant.floats) == IMAGES - HELD_OUT
        else:
            batches = contestant.trainer.batches
            assert all(batches.at(step).max() < 200 / 255 for step in range(3))
        return contestant

    monkeypatch.setitem(CONTESTANTS, name, replace(CONTESTANTS[name], make=caught))
    monkeypatch.setattr(Opponent, "advance", lambda self: None)  # compiling proves nothing here
    Scripted(monkeypatch, 0.5, 0.5)
    list(race.run(replace(RACE, contestant=name, limit_iterations=2)))
    (images,) = given
    assert images.labels is None
    assert torch.equal(images.pixels, tiny_mnist.pixels[:-HELD_OUT])


def test_what_is_held_out_is_the_last_of_the_training_images() -> None:
    split = Decoded("made", torch.arange(12).byte().view(12, 1, 1, 1), torch.arange(12))
    training, held_out = hold_out(split, 5)
    assert training.pixels.flatten().tolist() == training.labels.tolist() == list(range(7))
    assert held_out.pixels.flatten().tolist() == held_out.labels.tolist() == list(range(7, 12))
    for n in (0, 12):
        with pytest.raises(UserError, match=f"cannot hold out {n} of the 12 images of made"):
            hold_out(split, n)


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize("name", ["eager", "own"])
def test_being_judged_does_not_change_what_a_contestant_becomes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Ours | Opponent] = []
    entry = CONTESTANTS[name]
    monkeypatch.setitem(
        CONTESTANTS, name, replace(entry, make=lambda *given: made.append(entry.make(*given)) or made[-1])
    )
    for every in (1, 3):
        *_, last = race.run(replace(RACE, contestant=name, every=every, limit_iterations=3))
        assert 0 <= last.error <= 1 and last.mi_c1 <= 2.303
    often, once = ([*contestant.networks()] for contestant in made)
    for judged, other in zip(often, once, strict=True):
        assert judged.training
        for (key, value), (_, same) in zip(judged.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(value, same), key


@pytest.mark.usefixtures("tiny_networks")
def test_the_map_is_fixed_on_training_images_and_new_statistics_decide(
    tiny_mnist: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, held_out = hold_out(tiny_mnist, 100)
    labels = {300: (training.labels + 3) % 10, 100: (held_out.labels + 3) % 10, 400: (tiny_mnist.labels + 3) % 10}
    labels[100][:10] += 1  # 10 of 100 held out, 100 of 400 test images away from where the training images put them
    labels[400][:100] += 1
    shown: list[torch.Tensor] = []
    batches = judge.image_batches
    monkeypatch.setattr(judge, "image_batches", lambda pixels, *how: (shown.append(pixels), batches(pixels, *how))[1])

    def predict(network: Discriminator, spec: object, pixels: torch.Tensor, image_range: object) -> torch.Tensor:
        assert not network.training
        means = [module.running_mean for module in network.modules() if hasattr(module, "running_mean")]
        assert means
        recalibrated = any(mean.abs().sum() > 0 for mean in means)
        said = labels[len(pixels)]
        return (said if recalibrated else torch.zeros_like(said))[:, None] % 10

    monkeypatch.setattr(judge, "predict", predict)
    config = PRESETS["mnist"]
    verdict = judge.Judge(config, training, held_out, images=None)(*build(config.network_tables, config.spec, seed=0))
    assert (verdict.error, verdict.training_error, verdict.test_error) == (0.1, 0.0, 0.25)
    assert len(shown) == 1 and torch.equal(shown[0], training.pixels)  # whose statistics they are


def test_opponents_and_the_same_have_the_papers_hyperparameters() -> None:
    """The reference knows one objective; the preset that the others share must be it."""
    config = PRESETS[SHARED]
    assert {entry.preset for name, entry in CONTESTANTS.items() if name != "own"} == {SHARED}
    assert [name for name, entry in CONTESTANTS.items() if not entry.amp] == ["eager"]
    assert config.objective == Objective(fixed_std=True)
    assert config.noise_prior == "uniform" and not config.flip
    images = Decoded("made", torch.zeros(130, 28, 28, 1, dtype=torch.uint8))
    opponent = CONTESTANTS["eager"].make(config, images, choose_precision(CPU, False))
    assert isinstance(opponent, Opponent) and len(opponent.images()) == config.batch == 128
    rates = [opponent.reference.d_optimiser, opponent.reference.g_optimiser]
    assert [group["lr"] for optimiser in rates for group in optimiser.param_groups] == [config.lr_d, config.lr_g]
    assert all(optimiser.defaults["betas"] == (config.beta1, config.beta2) for optimiser in rates)


def test_an_opponent_sees_every_image_once_an_epoch() -> None:
    images = Decoded("made", torch.arange(256).byte().view(256, 1, 1, 1).expand(256, 28, 28, 1))
    opponent = Opponent(PRESETS[SHARED], images, choose_precision(CPU, False), tuned=False)
    epochs = [torch.cat([opponent.images()[:, 0, 0, 0] for _ in range(2)]) * 255 for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.round().int().tolist()) == list(range(256))
    assert not torch.equal(*epochs)


CHILD = """
import json, os, sys, time
race, point = (json.loads(argument) for argument in sys.argv[1:])
assert not os.path.exists(os.environ["TORCHINDUCTOR_CACHE_DIR"])
assert not os.path.exists(os.environ["TRITON_CACHE_DIR"])
time.sleep(0.05)
for error in (0.2, 0.08):
    seconds = time.monotonic() - race["began"]
    print(json.dumps(point | {"error": error, "seconds": seconds, "start_seconds": seconds}), flush=True)
sys.exit(race["seed"] == 13)
"""


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, int]]]:
    """Runs are a small script without torch; yields which were started. ``command(...)`` writes into ``tmp_path``."""
    started: list[tuple[str, int]] = []

    def command_line(run: Race) -> list[str]:
        started.append((run.contestant, run.seed))
        return [sys.executable, "-c", CHILD, json.dumps(asdict(run)), json.dumps(asdict(POINT))]

    monkeypatch.setattr(speedrun, "command_line", command_line)
    monkeypatch.setattr(data, "open_split", lambda *_: None)
    yield started


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, flags: str) -> list[dict[str, str]]:
    """``python -m bench speedrun FLAGS`` in this process; returns the rows of its CSV."""
    out = folder / "runs.csv"
    monkeypatch.setattr(sys, "argv", ["speedrun", "--device", "cpu", "--out", str(out), *flags.split()])
    speedrun.main()
    return list(csv.DictReader(out.open()))


def test_a_run_gets_a_row_its_curve_and_a_place_in_the_picture(
    fake_runs: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = command(monkeypatch, tmp_path, "--contestants eager own --seeds 0 1")
    assert fake_runs == [("eager", 0), ("own", 0), ("eager", 1), ("own", 1)]  # in turns
    assert [(row["contestant"], row["seed"]) for row in rows] == [(name, str(seed)) for name, seed in fake_runs]
    for row in rows:
        assert 0.05 <= float(row["seconds_to_10"]) < 60  # the child slept 0.05 s: its start is on the clock
        assert (row["iterations_to_10"], row["images_to_10"], row["test_error_at_10"]) == ("250", "32000", "0.21")
        assert {row[f"{name}_5"] for name in ("seconds_to", "images_to", "test_error_at")} == {"not reached"}
        assert row["batch"] == "128" and row["commit"] and row["finished"] and row["last_evaluation_seconds"] == "5"
    assert {row["precision"] for row in rows if row["contestant"] == "eager"} == {"fp32"}
    curves = list(csv.DictReader((tmp_path / "runs_curves.csv").open()))
    assert [row["error"] for row in curves] == ["0.2", "0.08"] * 4
    assert (tmp_path / "runs.png").exists()
    assert len(plots.speedrun(speedrun.with_their_runs(curves, rows), TARGETS).axes[0].lines) == 4 + len(TARGETS)
    said = capsys.readouterr().out
    assert "2 of 2" in said and "0 of 2" in said and "not reached / not reached / not reached" in said


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--contestants own --seeds 7 --every 50 --limit-iterations 900 --limit-seconds 5", (7, 50, 900, 5.0, None)),
        ("--quick", (0, 2, 4, 3600.0, 1000)),
    ],
)
def test_a_run_is_what_the_flags_ask_for(
    flags: str, wanted: tuple[object, ...], fake_runs: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Race] = []
    monkeypatch.setattr(speedrun, "from_cold", lambda run: (asked.append(run), [POINT])[1])
    command(monkeypatch, tmp_path, flags)
    run = asked[-1]
    assert run.contestant == "own"
    assert (run.seed, run.every, run.limit_iterations, run.limit_seconds, run.images) == wanted


def test_a_run_that_has_its_row_is_not_repeated_unless_asked_or_of_another_commit(
    fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = measure.machine_columns("cpu")
    monkeypatch.setattr(speedrun, "announce", lambda device: machine)
    command(monkeypatch, tmp_path, "--contestants own")
    command(monkeypatch, tmp_path, "--contestants own --seeds 0 1")
    assert fake_runs == [("own", 0), ("own", 1)]
    command(monkeypatch, tmp_path, "--contestants own --limit-iterations 9000")  # other settings
    command(monkeypatch, tmp_path, "--contestants own --again")
    machine = machine | {"commit": "another"}
    rows = command(monkeypatch, tmp_path, "--contestants own")
    assert fake_runs == [("own", 0), ("own", 1), *[("own", 0)] * 3]
    assert len(rows) == 5
    assert speedrun.latest(rows) == [rows[4]]  # rows of another commit are not told with it
    assert speedrun.latest(rows[:3]) == [rows[2]]  # nor of other settings
    assert speedrun.latest(rows[:2]) == rows[:2]


def ended(cells: list[tuple[str, str]], **machine: str) -> list[dict[str, str]]:
    """Rows of so many seeds on one machine, with their seconds to 10 and 5 %."""
    machine = {"device": "cpu", "cpu": "a processor", "cores": "2", "commit": "abc", "settings": "some"} | machine
    return [
        {"contestant": "own", "seed": str(seed), "seconds_to_10": a, "seconds_to_5": b, **machine}
        for seed, (a, b) in enumerate(cells)
    ]


def test_a_seed_that_did_not_arrive_counts_as_the_last() -> None:
    _, machine, to_10, to_5 = speedrun.table(
        ended([("30.0", "not reached"), ("10.0", "50.0"), ("20.0", "not reached")])
    )
    assert machine == "on a processor, 2 cores:"
    assert to_10.split(maxsplit=2)[2] == "3 of 3   10.0 / 20.0 / 20.0 / 30.0 / 30.0"
    assert to_5.split(maxsplit=2)[2] == "1 of 3   50.0 / not reached / not reached / not reached / not reached"


def test_runs_of_different_machines_are_not_mixed() -> None:
    slow, fast = ended([("30.0", "50.0")]), ended([("3.0", "5.0")], cpu="another")
    runs = speedrun.latest([*ended([("1.0", "1.0")]), *fast, *slow])
    assert runs == [*slow, *fast]
    lines = speedrun.table(runs)
    assert [line.rsplit(maxsplit=1)[-1] for line in lines[1:]] == ["cores:", "30.0", "50.0", "cores:", "3.0", "5.0"]
    points = [row | {"seconds": seconds, "error": 0.1} for row in runs for seconds in (1, 2)]
    panels = plots.speedrun(points, TARGETS).axes
    assert [panel.get_title() for panel in panels] == ["a processor, 2 cores", "another, 2 cores"]
    assert [len(panel.lines) for panel in panels] == [1 + len(TARGETS)] * 2
    assert panels[0].get_legend().get_texts()[0].get_text() == "own, abc"


def test_a_curve_is_of_the_run_that_ended_with_it() -> None:
    """A run that was repeated leaves the curve of the one before in the file."""
    (row,) = ended([("30.0", "50.0")], finished="today")
    points = [{"contestant": "own", "seed": "0", "finished": day, "error": "0.1"} for day in ("yesterday", "today")]
    assert speedrun.with_their_runs(points, [row]) == [row | points[1]]


def test_a_csv_of_other_columns_is_told_before_anything_runs(
    fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs.csv").write_text("contestant,seed\nown,0\n")
    with pytest.raises(UserError, match=r"runs\.csv has columns contestant, seed, not contestant, seed, settings"):
        command(monkeypatch, tmp_path, "--contestants own")
    assert not fake_runs


def test_a_run_that_fails_leaves_the_rows_before_it(
    fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the run of own with seed 13 ended with status 1: the runs before it"):
        command(monkeypatch, tmp_path, "--contestants own --seeds 1 13 2")
    assert [row["seed"] for row in csv.DictReader((tmp_path / "runs.csv").open())] == ["1"]
    assert fake_runs == [("own", 1), ("own", 13)]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--contestants ours", "--contestants takes any of eager, tuned, same, own, got 'ours'"),
        ("--seeds -1", "--seeds takes numbers from 0 to 2\\*\\*64 - 1, got -1"),
        ("--seeds", "--contestants and --seeds need at least one value each"),
        ("--every 0", "--every must be above 0, got 0"),
        ("--limit-seconds nan", "--limit-seconds must be above 0, got nan"),
    ],
)
def test_speedrun_says_what_it_cannot_run(
    flags: str, sentence: str, fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        command(monkeypatch, tmp_path, flags)
    assert not fake_runs


def test_the_clock_of_a_run_starts_before_its_interpreter(fake_runs: list[tuple[str, int]]) -> None:
    before = time.monotonic()
    curve = speedrun.from_cold(RACE)
    assert 0.05 <= curve[0].seconds <= time.monotonic() - before
