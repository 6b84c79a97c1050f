"""The benchmarks run, small, as a user runs them; no figure of theirs is asserted but what is counted."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from recorder import Recorder

from bench import floor, iteration_report, kernels, measure, memory, plots, step
from bench.__main__ import BENCHES
from bench.apart import Apart, Near
from bench.field import TABLES, field
from bench.floor import Work
from bench.measure import (
    append_csv,
    in_turns,
    machine_columns,
    open_csv,
    quantiles,
    read_csv,
    repeated,
    results_file,
    write_csv,
)
from bench.ours import Ours
from bench.reference import Reference
from bench.stopwatch import PHASES, Stopwatch
from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.capture import WARM_UP
from fastinfogan.config import PRESETS
from fastinfogan.errors import UserError
from fastinfogan.networks import Block, Layer, Tables, conv, fc, up
from fastinfogan.precision import Precision
from tests.test_objective import TINY

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "providers"),
    [
        ("kernels", {"reference", "torch.compile"}),
        ("step", {"fastinfogan fp32", "eager fp32"}),
        ("data", {"pil-dataloader", "dali-stream", "resident-uint8"}),
        ("render", {"faces", "chairs", "celeba-like", "svhn-like", "sprites"}),
    ],
)
def test_a_quick_run_writes_a_row_for_each_contestant_and_a_picture(
    name: str, providers: set[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    device = [] if name == "render" else ["--device", "cpu"]
    command = [sys.executable, "-m", "bench", name, "--quick", *device, "--out", str(out)]
    said = subprocess.run(command, cwd=ROOT, check=True, timeout=600, capture_output=True, text=True).stdout
    assert f"torch {torch.__version__}" in said.splitlines()[0] and "commit" in said.splitlines()[0]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["provider"] for row in rows} >= providers
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
        assert row["cpu"] and row["commit"] and row["torch"] == torch.__version__
        assert name != "step" or float(row["peak_mib"]) > 100
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_name_all_benchmarks_are_listed(arguments: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0 and all(f"\n  {name} " in finished.stdout for name in BENCHES)


def test_an_unknown_benchmark_is_one_sentence_with_those_there_are() -> None:
    finished = subprocess.run([sys.executable, "-m", "bench", "stpe"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: there is no benchmark 'stpe': choose one of claims, data, kernels, render, speedrun, step"
    ]


def test_a_quick_run_does_not_touch_the_results_unless_told_to(tmp_path: Path) -> None:
    assert results_file("step", False, None) == ROOT / "bench" / "results" / "step.csv"
    assert ROOT / "bench" not in results_file("step", True, None).parents
    assert results_file("step", True, tmp_path / "mine.csv") == tmp_path / "mine.csv"


def test_contestants_take_turns_and_the_first_turn_only_warms_up() -> None:
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b"] * 3
    assert all(len(values) == 2 for values in seconds.values())


def test_a_turn_may_be_several_calls() -> None:
    calls: list[int] = []
    repeated(lambda: calls.append(1), 3)()
    assert len(calls) == 3


def test_a_rate_is_images_by_seconds() -> None:
    (row,) = measure.throughput_rows({"a": np.array([1.0, 2.0, 4.0])}, {"a": 8}, {"cpu": "some"})
    figures = {"median": "4", "p20": "2.8", "p80": "6.4"}
    assert row == {"provider": "a", "images": 8, "unit": "images/s", **figures, "cpu": "some"}


def test_quantiles_are_the_median_and_the_fifths() -> None:
    assert quantiles(np.arange(11.0)) == {"median": 5.0, "p20": 2.0, "p80": 8.0}


def test_csv_keeps_the_order_of_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "rows.csv", [{"b": 1, "a": 2}, {"a": 4, "b": 3}])
    assert (tmp_path / "new" / "rows.csv").read_text() == "b,a\n1,2\n3,4\n"


def test_rows_are_appended_and_never_below_another_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    open_csv(path, ["b", "a"])
    append_csv(path, [{"b": 1, "a": 2}])
    open_csv(path, ["b", "a"])
    append_csv(path, [{"b": 3, "a": 4}, {"b": 5, "a": 6}])
    assert path.read_text() == "b,a\n1,2\n3,4\n5,6\n"
    with pytest.raises(UserError, match="has columns b, a, not b, c: move it away"):
        open_csv(path, ["b", "c"])
    assert len(read_csv(path)) == 3


def test_a_result_that_changed_does_not_make_the_commit_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    result, code = tmp_path / "bench" / "results" / "rows.csv", tmp_path / "code.py"
    result.parent.mkdir(parents=True)
    result.write_text("a\n")
    code.write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    clean = measure.machine_columns("cpu")["commit"]
    result.write_text("a\n1\n")
    assert measure.machine_columns("cpu")["commit"] == clean
    dirty = []
    for change in ("2\n", "3\n"):
        code.write_text(change)
        dirty.append(measure.machine_columns("cpu")["commit"])
    git("checkout", "code.py")
    (tmp_path / "log").write_text("no code")
    assert measure.machine_columns("cpu")["commit"] == clean
    (tmp_path / "new.py").write_text("4\n")
    dirty.append(measure.machine_columns("cpu")["commit"])
    assert all(commit.startswith(f"{clean}-dirty-") for commit in dirty) and len(set(dirty)) == 3


def test_the_opponent_learns() -> None:
    """An opponent that did not train would be easy to beat."""
    spec = LatentSpec(4, (Categorical(3), Uniform(1)))
    opponent = Reference(TINY, spec, device=CPU, lr_d=1e-2, lr_g=1e-2)
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(80):
        opponent.step(images)
    z, categories, continuous = opponent.latents(64)
    with torch.no_grad():
        _, q = opponent.discriminator(opponent.generator(z))
        bound = spec.entropies[0] - torch.nn.functional.cross_entropy(q[:, :3], categories[0]).item()
    assert bound > 0.7
    assert all(np.isfinite(opponent.last))
    assert continuous.shape == (64, 1)


@pytest.mark.parametrize(
    ("layer", "side"),
    [(conv(1), 28), (conv(1), 2), (up(1), 7), (up(1), 2), (conv(1, stride=1), 8), (up(1, stride=1), 3)],
)
def test_the_floor_counts_no_product_with_the_zeros_around_an_image(layer: Layer, side: int) -> None:
    block = Block(layer, (1, side), "none")
    block.linear = block.linear.double()
    torch.nn.init.ones_(block.linear.weight)
    torch.nn.init.zeros_(block.linear.bias)  # type: ignore[arg-type]
    products = block(torch.ones(1, 1, side, side, dtype=torch.float64)).sum().item()  # each of them is a one
    assert floor.part([layer], (1, side)).flops == 2 * products


def test_a_slow_moment_of_the_machine_does_not_raise_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    products, copies = iter([2.0, 1.0, 3.0]), iter([5.0, 6.0, 4.0])
    monkeypatch.setattr(step, "choose_precision", lambda device, amp: Precision(device, torch.float32, "the test's"))
    monkeypatch.setattr(step.floor, "matmul_rate", lambda device, dtype: next(products))
    monkeypatch.setattr(step.floor, "copy_rate", lambda device: next(copies))
    found = [step.Rates({}, 0.0)]
    for _ in range(3):
        found.append(step.rates(CPU, found[-1]))
    assert found[1:] == [step.Rates({"fp32": p}, c) for p, c in ((2.0, 5.0), (2.0, 6.0), (3.0, 6.0))]


def test_a_product_multiplies_and_adds_and_a_copy_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "in_turns", lambda named, *_: dict.fromkeys(named, np.array([2.0, 0.5])))
    assert floor.matmul_rate(CPU, torch.float32) == 2 * 2048**3 / 0.5
    assert floor.copy_rate(CPU) == 2 * 2**28 / 0.5


@pytest.mark.parametrize(("name", "gflop"), [("mnist", 34.32), ("celeba", 44.62)])
def test_the_floor_of_an_iteration_at_batch_128(name: str, gflop: float) -> None:
    """Torch counts 36.85 and 55.60 in its own iteration, padding included (FlopCounterMode)."""
    config = PRESETS[TABLES[name]]
    work = floor.iteration(config.network_tables, config.spec, 128, 4)
    assert work.flops / 1e9 == pytest.approx(gflop, rel=2e-4)


def test_the_floor_of_a_network_small_enough_to_count_by_hand() -> None:
    tables = Tables(image=(1, 1, 1), trunk=[fc(3)], recognition=[], generator=[fc(1)])
    spec = LatentSpec(2, ())
    assert floor.part([fc(3), fc(5)], (2, 1)) == floor.Part(42, 12, 8, 21, (5, 1))
    # Weights: G 2, trunk 3, D's head 3, Q's head 3 * 0. Operations an image, 2 a weight: G forward and its weights (not
    # z); D on real and generated: forward, weights, and from the head back to the trunk; then through D and back.
    assert floor.iteration(tables, spec, 1, 4).flops == 2 * (2 * 2 + 2 * (2 * 3 + 3 * 3) + 2 * (3 + 3))
    # values: G 1, and 3 times the trunk's 3 and the head's 1; each 5 times over. Weights of D 4 times, of G twice.
    assert floor.iteration(tables, spec, 1, 4).bytes == 4 * 5 * (1 + 3 * 4) + 4 * (4 * 6 + 2 * 2) + 32 * 8
    assert Work(flops=100, bytes=30).seconds(flop_rate=50, byte_rate=10) == 5


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("AMD EPYC", "AMD EPYC (family 26, model 2)"),  # of whatever generation, in a virtual machine
        ("Intel(R) Xeon(R) Platinum 8481C", "Intel(R) Xeon(R) Platinum 8481C"),
    ],
)
def test_a_processor_whose_name_is_that_of_many_is_told_by_its_family(name: str, shown: str) -> None:
    core = f"cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: {name}\n\n"
    assert measure.processor(core + core.replace("26", "25")) == shown


def test_a_stopwatch_adds_the_calls_of_a_phase_and_starts_anew_when_read() -> None:
    class Slow(torch.nn.Module):
        def forward(self) -> int:
            time.sleep(0.02)
            return 7

    slow, watch = Slow(), Stopwatch(CPU)
    watch.watch(slow, "forward", "g_forward")
    assert slow() == 7 and slow() == 7
    seconds = watch.read()
    assert tuple(seconds) == PHASES
    assert 0.04 <= seconds["g_forward"] < 10 and seconds["d_phase"] == 0
    assert set(watch.read().values()) == {0.0}


@pytest.mark.usefixtures("tiny_networks")
def test_every_phase_of_every_contestant_is_seen() -> None:
    made = {name: Near(make(), CPU) for name, make in field("mnist", 8, CPU).items() if "tuned" not in name}
    assert len(made) >= 2
    for name, phases in step.by_phase(made, 2).items():
        assert all(phases[phase] > 0 for phase in PHASES), name


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", TABLES)
def test_ours_has_the_objective_that_the_row_names(name: str) -> None:
    contestant = field(name, 8, CPU)["fastinfogan fp32"]()
    assert isinstance(contestant, Ours)
    config, quick = contestant.trainer.config, name == "quick-start"
    assert bool(config.invariance) is bool(config.rivals) is quick
    assert config.fixed_std is not quick


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("refused", [True, False])
def test_a_contestant_whose_capture_was_refused_is_known(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    contestant = field("mnist", 2, torch.device("cpu"), images=4)["fastinfogan fp32"]()
    assert isinstance(contestant, Ours) and not contestant.capture_refused
    if refused:
        draw = contestant.trainer.draw
        monkeypatch.setattr(contestant.trainer, "draw", lambda step: (step.item(), draw(step))[1])
    contestant.trainer.capture_in(Recorder())
    near = Near(contestant, CPU)
    near.turn(WARM_UP + 1)
    assert contestant.capture_refused is refused and contestant.captured is not refused
    assert near.takes_part() is not refused and near.has_phases() is refused


@pytest.fixture
def in_this_process(tiny_networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants of ``step`` where fixtures reach them."""

    def near(preset: str, batch: int, name: str, device: torch.device) -> AbstractContextManager[Near]:
        return nullcontext(Near(field(preset, batch, device)[name](), device))

    monkeypatch.setattr(step, "Apart", near)


def test_a_contestant_apart_takes_the_turns_that_it_is_asked_for() -> None:
    with Apart("mnist", 2, "eager fp32", CPU) as apart:
        assert apart.takes_part() and apart.has_phases()
        apart.turn(2)
        assert all(seconds > 0 for seconds in apart.phases().values())


def test_a_contestant_whose_process_has_ended_is_told() -> None:
    with (
        Apart("mnist", 2, "nobody", CPU) as apart,
        pytest.raises(UserError, match="nobody on mnist at batch 2 ended with status 1: choose smaller --batches"),
    ):
        apart.turn(1)


@pytest.mark.usefixtures("in_this_process")
def test_rows_of_step_say_what_the_issue_asks(capsys: pytest.CaptureFixture[str]) -> None:
    reached = step.Rates({"fp32": 1e9, "bf16": 2e9, "fp16": 2e9}, 1e9)
    rows = step.measure("mnist", 8, CPU, step.Options(quick=True, memory=False), reached)
    providers = [row["provider"] for row in rows]
    assert providers[0] == "fastinfogan fp32" and providers[-1] == "eager fp32"
    for row in rows:
        assert {"images_per_second", "times_eager", "peak_mib", "floor_ms", "times_floor"} < set(row)
        assert {f"{phase}_ms" for phase in PHASES} < set(row)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert len(plots.step(rows).axes) == 1


def test_a_captured_iteration_has_no_phases_and_is_a_bar_of_its_median() -> None:
    """Its phases would be those of the same iterations op by op, which take longer than the whole does."""
    row = {"preset": "mnist", "batch": "8", "provider": "fastinfogan fp32", "median": "4", "floor_ms": "1"}
    of_phases = row | {"provider": "eager fp32"} | {f"{phase}_ms": "2" for phase in PHASES}
    captured = row | {f"{phase}_ms": "" for phase in PHASES}
    (axes,) = plots.step([captured, of_phases]).axes
    *by_phase, whole = [[bar.get_width() for bar in bars] for bars in axes.containers]  # type: ignore[attr-defined]
    assert by_phase == [[0.0, 250.0]] * len(PHASES) and whole == [500.0, 0.0]


@pytest.mark.usefixtures("in_this_process")
def test_phases_are_not_asked_of_a_captured_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ours, "captured", True)
    rows = step.measure(
        "mnist", 8, CPU, step.Options(quick=True, memory=False), step.Rates({"fp32": 1, "bf16": 1, "fp16": 1}, 1)
    )
    for row in rows:
        assert all((row[f"{phase}_ms"] == "") is row["provider"].startswith("fastinfogan") for phase in PHASES)


def test_what_a_gpu_measures_stands_beside_the_model_of_that_gpu(tmp_path: Path) -> None:
    h100 = {"device": "NVIDIA H100 80GB HBM3", "batch": "128"}
    names = ("iteration_static.csv", "kernels_static.csv", "cuda_static.csv")
    for name in names:
        rows = read_csv(measure.RESULTS / name)
        write_csv(tmp_path / name, [
            {column: "" if column.startswith("measured_") else value for column, value in row.items()} for row in rows
        ])  # fmt: skip
    timed = {"fastinfogan bf16": "0.25", "fastinfogan op by op bf16": "2.5", "eager fp32": "4"}
    for gpu in (h100, h100 | {"device": "NVIDIA H100 PCIe"}, h100 | {"device": "cpu"}):
        iteration_report.fill_in(
            tmp_path / names[0],
            [{"preset": "svhn", "provider": name, "median": value, **gpu} for name, value in timed.items()],
        )
        timed = dict.fromkeys(timed, "9")  # of a card with other peaks, which is not in the model
    calls = [("triton", "head_loss", "7"), ("native", "pack_codes", "5"), ("reference", "head_loss", "70")]
    kernels.fill_in(tmp_path, [
        {"codes": "mnist", "provider": provider, "op": op, "median": value, **h100} for provider, op, value in calls
    ])  # fmt: skip
    filled = [
        [measured, row["preset"], row["batch"], row["gpu"], row.get("format") or row["dtype"], row.get("kernel")]
        for name in names
        for row in read_csv(tmp_path / name)
        if (measured := [value for column, value in row.items() if column.startswith("measured_") and value])
    ]
    assert filled == [
        [["250", "2500"], "svhn", "128", "H100", "bf16", None],
        [["7"], "mnist", "128", "H100", "float32", "head_loss G"],
        [["5"], "mnist", "128", "H100", "float32", "pack_kernel"],
    ]


@pytest.mark.slow
def test_memory_is_the_high_water_mark_of_a_process_alone() -> None:
    """Not getrusage's, which a fresh process inherits from the large one that started it."""
    code = "import bench.memory, torch; print(bench.memory.high_water_mib(torch.device('cpu')))"
    large = np.ones(1 << 30, dtype=np.uint8)
    assert memory.high_water_mib(CPU) > large.nbytes / 2**20
    fresh = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 50 < float(fresh) < large.nbytes / 2**20


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--presets", "mnits"],
            "--presets takes any of mnist, celeba, celeba-64, svhn, faces, chairs, dsprites, quick-start, got 'mnits'",
        ),
        (["--batches", "1"], "--batches takes numbers from 2 to 4,096, got 1"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
    ],
)
def test_step_says_what_it_cannot_measure(flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step", *flags])
    with pytest.raises(UserError, match=sentence):
        step.main()


def test_pictures_show_every_contestant() -> None:
    common = {"p20": "1", "p80": "3", "median": "2"}
    kernels = [
        {"op": op, "codes": "mnist", "batch": batch, "provider": provider, **common}
        for op in ("a", "b") for batch in (64, 128) for provider in ("native", "reference")
    ]  # fmt: skip
    assert [len(axes.lines) for axes in plots.kernels(kernels).axes] == [2, 2]
    (axes,) = plots.throughputs([{"provider": name, **common} for name in ("pil", "dali")]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pil", "dali"]


def test_cores_are_no_more_than_torch_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for threads, told in ((1, "1"), (4, "4"), (8, "4")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert machine_columns("cpu")["cores"] == told
