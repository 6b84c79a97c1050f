"""A configuration survives its file, refuses what cannot work, and the presets are the paper's experiments."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan import checkpoint, train
from fastinfogan.config import PRESETS, TrainConfig, from_json, preset, read_config, to_json
from fastinfogan.data import DATASETS
from fastinfogan.errors import UserError
from fastinfogan.networks import TABLES, build
from fastinfogan.objective import Objective

positive = st.integers(1, 10**9)
real = st.floats(allow_nan=False, allow_infinity=False)
code = st.builds("{}:{}".format, st.sampled_from(["cat", "uniform", "gaussian"]), st.integers(2, 99))

# Appendix C: tables, image, columns of z, categorical codes, continuous codes, columns in all.
EXPERIMENTS = {
    "mnist": ("mnist", (1, 28, 28), 62, (10,), 2, 74),
    "mnist-paper": ("mnist", (1, 28, 28), 62, (10,), 2, 74),
    "svhn": ("svhn", (3, 32, 32), 124, (10,) * 4, 4, 168),
    "celeba": ("celeba", (3, 32, 32), 128, (10,) * 10, 0, 228),
    "faces-azimuth": ("faces", (1, 32, 32), 128, (), 5, 133),
    "faces-elevation": ("faces", (1, 32, 32), 128, (), 5, 133),
    "faces-lighting": ("faces", (1, 32, 32), 128, (), 5, 133),
    "chairs-rotation": ("chairs", (1, 64, 64), 128, (20,) * 3, 1, 189),
    "chairs-width": ("chairs", (1, 64, 64), 128, (20,) * 3, 1, 189),
}
# Learning rates of D and G, lambda of categorical codes, lambda of continuous ones.
RATES = {
    "mnist-paper": (2e-4, 1e-3, 1.0, 1.0),
    "svhn": (2e-4, 1e-3, 1.0, 1.0),
    "celeba": (2e-4, 1e-3, 1.0, 1.0),
    "faces-azimuth": (2e-4, 5e-4, None, 0.2),
    "faces-elevation": (4e-4, 3e-4, None, 0.1),
    "faces-lighting": (8e-4, 3e-4, None, 0.1),
    "chairs-rotation": (2e-4, 1e-3, 1.0, 10.0),
    "chairs-width": (2e-4, 1e-3, 2.0, 0.05),
}


@settings(deadline=None, max_examples=50)
@given(
    config=st.builds(
        TrainConfig,
        dataset=st.sampled_from(DATASETS),
        data=st.builds(Path, st.text("abc/. é", min_size=1)),
        placement=st.sampled_from(["auto", "resident", "stream"]),
        tables=st.sampled_from(sorted(TABLES)),
        noise=st.integers(0, 999),
        codes=st.lists(code, max_size=5).map(tuple),
        noise_prior=st.sampled_from(["uniform", "normal"]),
        continuous_weight=real,
        lr_d=real,
        beta2=real,
        iterations=positive,
        seed=st.integers(0, 2**64 - 1),
        run_dir=st.none() | st.builds(Path, st.text("xyz/", min_size=1)),
        gray=st.booleans(),
        trunk_mi=st.booleans(),
    )
)
def test_a_configuration_read_back_from_its_file_is_the_same(config: TrainConfig) -> None:
    assert from_json(to_json(config), "the test") == config


def test_the_file_holds_every_field() -> None:
    assert set(json.loads(to_json(TrainConfig()))) == {field.name for field in fields(TrainConfig)}


def test_a_configuration_is_read_from_its_file_or_its_run_folder(tmp_path: Path) -> None:
    config = TrainConfig(iterations=7, codes=("cat:3",))
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"iteration": 5}, "iteration: Unexpected keyword argument"),
        ({"iterations": "many"}, "iterations: .*integer.*'many'"),
        ({"batch": 1.5}, "batch: .*integer.*1.5"),
        ({"dataset": "mnst"}, "dataset: .*'mnist'.*'mnst'"),
        ({"codes": [1]}, r"codes\.0: .*string"),
        ({"gray": "perhaps"}, "gray: .*boolean.*perhaps"),
        ({"lr_d": None}, "lr_d: .*number"),
    ],
)
def test_an_unknown_key_or_a_value_of_the_wrong_kind_is_named(change: dict[str, Any], told: str) -> None:
    text = json.dumps(json.loads(to_json(TrainConfig())) | change)
    with pytest.raises(UserError, match=f"^cannot use run/config.json: {told}") as raised:
        from_json(text, "run/config.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"iterations": 5} more', "\x00\x01"])
def test_text_that_is_no_configuration_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^cannot use there\.json: the file: ") as raised:
        from_json(text, "there.json")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_absent_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("absent", "binary"):
        with pytest.raises(UserError, match=f"cannot read the configuration {tmp_path / name}.*give a run folder"):
            read_config(tmp_path / name)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *[({name: bad}, f"--{name.replace('_', '-')} must be 1 or more, got {bad}")
          for name in ("iterations", "log_every", "figure_every", "save_every", "keep") for bad in (0, -3)],
        *[({"batch": bad}, f"--batch must be 2 or more, got {bad}") for bad in (1, 0, -8)],
        *[({f"{kind}_weight": bad}, f"--{kind}-weight must be 0 or more, got {bad}: a negative weight would teach G")
          for kind in ("categorical", "continuous") for bad in (-0.1, math.inf, math.nan)],
        *[({name: bad}, f"--{name.replace('_', '-')} must be above 0, got {bad}")
          for name in ("lr_d", "lr_g") for bad in (0.0, -1e-4, math.inf, math.nan)],
        *[({name: bad}, f"--{name} must be at least 0 and below 1, got {bad}")
          for name in ("beta1", "beta2") for bad in (-0.1, 1.0, math.nan)],
        *[({"reject_limit": bad}, f"--reject-limit is a share from 0 to 1, got {bad}")
          for bad in (-0.1, 1.5, math.nan)],
        *[({"seed": bad}, f"--seed must be 0 to 2**64 - 1, got {bad}") for bad in (-1, 2**64)],
        *[({"invariance": bad}, f"--invariance must be 0 or more, got {bad}") for bad in (-0.5, math.inf, math.nan)],
        *[({"q_share": bad}, f"--q-share is a share from 0 to 1, got {bad}") for bad in (-0.1, 1.5, math.nan)],
        ({"q_share": 0.0}, "--q-share 0 leaves Q's categories nothing to learn from but the invariance term"),
        ({"rivals": -1}, "--rivals is a number of heads, 0 or more, got -1"),
        ({"rivals": 2}, "--rivals 2 are judged by the invariance term: add --invariance 4"),
        ({"rivals": 2, "invariance": 1.0, "learn_prior": True}, "--learn-prior follows the categories of one head"),
        ({"codes": ("uniform:2",), "invariance": 4.0}, "--invariance 4.0 and --q-share 1.0 are about categories"),
        ({"codes": (), "q_share": 0.5}, "--invariance 0.0 and --q-share 0.5 are about categories, and --codes (none)"),
        ({"q_share": 0.5, "trunk_mi": False}, "--q-share 0.5 is for a Q that learns in the D phase"),
        ({"invariance": 1.0, "trunk_mi": False}, "--invariance 1.0 moves Q and the trunk"),
        ({"codes": ("cat:1",)}, "a categorical code needs at least 2 values, got 1: write cat:2 or more"),
        ({"codes": ("uniform:0",)}, "uniform:0 holds no code"),
        ({"codes": ("dog:3",)}, "cannot read the code 'dog:3': write cat:K"),
        ({"data": Path(os.fsdecode(b"d\xe9j\xe0"))}, "--data b'd\\xe9j\\xe0' is no UTF-8, which config.json and the"),
        ({"run_dir": Path(os.fsdecode(b"\xe0"))}, "--run-dir b'\\xe0' is no UTF-8"),
        ({"noise": -1}, "noise must be a number of columns, 0 to 65,536, got -1"),
        ({"noise": 0, "codes": ()}, "a generator needs an input"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_told_with_its_flag(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        replace(TrainConfig(), **change).check()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_checks_and_builds_its_networks(name: str) -> None:
    config = PRESETS[name]
    config.check()
    with torch.device("meta"):
        generator, discriminator = build(config.network_tables, config.spec, seed=0)
        generator.eval()
        discriminator.eval()
        images = generator(torch.empty(2, config.spec.dim))
        logits, recognition = discriminator(images)
    assert images.shape == (2, *config.network_tables.image)
    assert logits.shape == (2,) and recognition.shape == (2, config.spec.head_dim)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_presets_are_the_experiments_of_the_papers_appendix_c(name: str) -> None:
    config = preset(name)
    tables, image, noise, categorical, continuous, columns = EXPERIMENTS[name]
    assert (config.tables, config.network_tables.image, config.noise) == (tables, image, noise)
    assert (config.spec.categorical, len(config.spec.continuous), config.spec.dim) == (categorical, continuous, columns)
    assert set(config.spec.continuous) <= {"uniform"}
    if name not in RATES:  # the quick start, see below
        return
    lr_d, lr_g, categorical_weight, continuous_weight = RATES[name]
    assert config.trunk_mi and config.generator_mi and config.invariance == 0
    assert (config.lr_d, config.lr_g, config.beta1, config.continuous_weight) == (lr_d, lr_g, 0.5, continuous_weight)
    assert categorical_weight in (None, config.categorical_weight)


def test_the_quick_start_is_the_papers_mnist_but_for_what_is_said_of_it() -> None:
    quick, paper = asdict(preset("mnist")), asdict(preset("mnist-paper"))
    differ = {name for name in quick if quick[name] != paper[name]}
    assert differ <= {
        "iterations", "fixed_std", "figure_every", "save_every", "continuous_weight", "invariance", "lr_d", "q_share",
        "rivals", "decay",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "mnist",
            {
                "continuous_weight": 0.1, "categorical_weight": 1.0, "fixed_std": False, "q_share": 0.0, "rivals": 7,
                "invariance": 4.0, "lr_d": 5e-4, "lr_g": 1e-3, "decay": 1.0, "iterations": 1000, "batch": 128,
            },
        ),
        ("mnist-paper", {"fixed_std": True, "rivals": 0, "decay": 0.0, "spectral_norm": False, "batch": 128}),
        (  # Lin et al. 2020
            "dsprites",
            {
                "fixed_std": True, "spectral_norm": True, "continuous_weight": 0.05, "batch": 64, "lr_d": 2e-3,
                "lr_g": 1e-3, "noise": 5, "codes": ("uniform:5",), "rivals": 0,
            },
        ),
        ("folder", {"spectral_norm": True, "fixed_std": False, "tables": "celeba", "gray": False}),
        ("faces", {"gray": True, "fixed_std": False, "spectral_norm": False, "invert": False}),
        ("chairs", {"gray": True, "fixed_std": False, "spectral_norm": False, "invert": False}),
    ],
)  # fmt: skip
def test_a_preset_has_what_the_readme_says_of_it(name: str, values: dict[str, Any]) -> None:
    """Each value written out once more: a slip in a preset would train something else under its name."""
    config = preset(name)
    assert {field: getattr(config, field) for field in values} == values


def test_every_data_set_is_its_own_preset() -> None:
    assert all(preset(name).dataset == name for name in DATASETS)


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown data set or preset 'chairs-with': did you mean chairs-width"):
        preset("chairs-with")
    with pytest.raises(UserError, match="unknown data set or preset 'zzz': choose one of mnist, mnist-paper, "):
        preset("zzz")


@pytest.mark.parametrize("flags", [["--dataset", "celeb"], ["--dataset=celeb"], ["--preset", "celeb"]])
def test_a_misspelt_name_on_the_command_line_is_answered_with_the_nearest(flags: list[str]) -> None:
    with pytest.raises(UserError, match="'celeb': did you mean celeba"):
        train.parse(flags)


@pytest.mark.parametrize(("flag", "near"), [("--iteration", "--iterations"), ("--lrd", "--lr-d")])
def test_a_misspelt_flag_is_answered_with_the_nearest(command: Command, flag: str, near: str) -> None:
    ended = command(train, flag, "5")
    assert ended.code == 2 and near in ended.err and "Traceback" not in ended.err


def test_flags_override_the_preset_and_nothing_else() -> None:
    config, resume = train.parse(["--preset", "chairs-width", "--lr-g", "0.5", "--codes", "cat:4", "gaussian:2"])
    assert resume is None
    assert config == replace(PRESETS["chairs-width"], lr_g=0.5, codes=("cat:4", "gaussian:2"))


def test_a_data_set_brings_its_preset_and_none_is_mnist() -> None:
    assert train.parse(["--dataset", "svhn", "--amp"])[0] == replace(PRESETS["svhn"], amp=True)
    assert train.parse([])[0] == PRESETS["mnist"]
    assert train.parse(["--preset", "mnist-paper", "--dataset", "fashion-mnist"])[0] == replace(
        PRESETS["mnist-paper"], dataset="fashion-mnist"
    )


def test_every_field_is_a_flag_with_its_default_in_the_help(command: Command) -> None:
    ended = command(train, "--dataset", "svhn", "--help")
    assert ended.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.out).split())
    for name, value in asdict(PRESETS["svhn"]).items():
        flag = f"--{name.replace('_', '-')}"
        assert flag in shown
        default = " ".join(value) if isinstance(value, tuple) else value
        after = shown[shown.index(f"{flag} " if f"{flag} " in shown else f"{flag},") :]
        assert after[after.index("(default: ") :].startswith(f"(default: {default})")


def test_config_repeats_a_run_bitwise_in_a_folder_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_networks: None,
    finished: tuple[Path, Outcome],
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _ = finished
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert command(train, "--config", first).code == 0
    (second,) = (tmp_path / "runs").iterdir()
    one, other = (checkpoint.load(folder) for folder in (first, second))
    assert one.step == other.step and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert replace(read_config(second), run_dir=None) == replace(read_config(first), run_dir=None)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_flags_override_the_repeated_run(finished: tuple[Path, Outcome], tiny_config: Callable[..., Any]) -> None:
    folder, _ = finished
    config, _ = train.parse(["--config", str(folder / "config.json"), "--seed", "99"])
    assert config == replace(read_config(folder), seed=99, run_dir=None)


def test_the_objective_has_every_switch_of_the_configuration() -> None:
    config = TrainConfig(
        categorical_weight=2.0, continuous_weight=3.0, trunk_mi=False, generator_mi=False, fixed_std=True, q_share=0.5,
        saturating=True, invariance=1.5,
    )  # fmt: skip
    assert asdict(config.objective) == {field.name: getattr(config, field.name) for field in fields(Objective)}
    assert all(getattr(config, field.name) != field.default for field in fields(Objective))  # none is left out here
