"""A checkpoint is whole or absent, is read back bitwise, runs no code, and a foreign one is told in a sentence."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastinfogan import checkpoint
from fastinfogan.config import TrainConfig, to_json
from fastinfogan.errors import UserError
from fastinfogan.networks import build

CONFIG = TrainConfig(iterations=9)
CPU = torch.device("cpu")


def tensors(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"generator.weight": torch.full((40, 5), value), "generator_optimiser.0.step": torch.tensor(value)}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, CONFIG, tensors(step), keep)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / checkpoint.FOLDER).iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has saved step 3."""
    save(tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize(("number", "saved"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced_holds_checkpoints_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, saved: bool
) -> None:
    fsync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    with nullcontext() if saved else pytest.raises(UserError, match="could not save step 3"):
        assert save(tmp_path, 3).exists()


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        (".", "checkpoints/step-00000003.safetensors"),
        ("checkpoints", "step-00000003.safetensors"),
        ("checkpoints", "./step-00000003.safetensors"),
        ("checkpoints", "../checkpoints/step-00000003.safetensors"),
        ("checkpoints/below", "../step-00000003.safetensors"),
    ],
)
def test_a_checkpoint_knows_its_run_from_wherever_it_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, inside: str, named: str
) -> None:
    (run / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(run / inside)
    assert checkpoint.load(Path(named)).run_dir.resolve() == run.resolve()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
    shape=st.lists(st.integers(0, 4), max_size=4),
    strided=st.booleans(),
)
def test_tensors_come_back_bitwise(tmp_path: Path, dtype: torch.dtype, shape: list[int], strided: bool) -> None:
    tensor = torch.randn(shape).mul(100).to(dtype)
    if strided:
        tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
    checkpoint.save(tmp_path, 7, CONFIG, {"a.b.c": tensor}, keep=1)
    loaded = checkpoint.load(tmp_path)
    assert (loaded.step, loaded.config) == (7, CONFIG)
    assert loaded.tensors["a.b.c"].dtype == dtype and torch.equal(loaded.tensors["a.b.c"], tensor)
    assert loaded.part("a").keys() == {"b.c"} and loaded.part("a.b").keys() == {"c"} and not loaded.part("b")


def test_the_last_k_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9_999_999, 10_000_000):
        save(tmp_path, step, keep=3)
    assert listed(tmp_path) == [f"step-{step:08d}.safetensors" for step in (10, 9_999_999, 10_000_000)]
    loaded = checkpoint.load(tmp_path)
    assert loaded.step == 10_000_000 and loaded.path.name == "step-10000000.safetensors"
    assert checkpoint.load(tmp_path / checkpoint.FOLDER / "step-00000010.safetensors").step == 10


def test_what_is_saved_after_going_back_is_newest_and_is_not_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, keep=3)
    path = save(tmp_path, 3, keep=2)  # resumed from the checkpoint of step 2
    assert path.exists() and checkpoint.load(tmp_path).step == 3
    assert listed(tmp_path) == ["step-00000002.safetensors", "step-00000003.safetensors"]


def fail_in_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself takes only the first bytes, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    open_ = Path.open

    def limited(path: Path, *arguments: Any, **others: Any) -> Any:
        if path.suffix == ".partial":
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        return open_(path, *arguments, **others)

    monkeypatch.setattr(Path, "open", limited)


def fail_in(module: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda monkeypatch: monkeypatch.setattr(module, name, full)


@pytest.mark.parametrize(
    "failure",
    [fail_in_write, fail_in(os, "fsync"), fail_in(Path, "replace"), fail_in(Path, "mkdir")],
    ids=["write", "fsync", "rename", "mkdir"],
)
def test_a_failed_save_leaves_the_previous_checkpoint_and_names_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[pytest.MonkeyPatch], None]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
            failure(patch)
            save(run, 6, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(raised.value)
    assert f"the checkpoint before it, {run}/checkpoints/step-00000003.safetensors, is intact" in said
    assert "No space left" in said or "File too large" in said
    assert f"free some space and resume with --resume {run}" in said
    assert listed(run) == ["step-00000003.safetensors"]
    assert torch.equal(checkpoint.load(run).tensors["generator.weight"], tensors(3)["generator.weight"])
    assert save(run, 6).exists()


def test_a_failed_first_save_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(os, "fsync")(monkeypatch)
    with pytest.raises(
        UserError,
        match=r"could not save step 1 .*No space left.*there is no earlier checkpoint: free some space and start again",
    ):
        save(tmp_path, 1)


def test_a_file_that_the_user_has_named_is_neither_the_newest_nor_removed(run: Path) -> None:
    own = [run / "checkpoints" / f"step-{name}.safetensors" for name in ("best", "00000003-copy", "7")]
    for path in own:
        path.write_bytes(b"mine")
    save(run, 6, keep=1)
    checkpoint.remove_later(run, 0)
    assert checkpoint.newest(run) is None and [path.read_bytes() for path in own] == [b"mine"] * 3


def test_a_step_of_more_digits_is_later(run: Path) -> None:
    for step in (99_999_999, 100_000_000):
        newest = save(run, step)
        assert checkpoint.newest(run) == newest
    checkpoint.remove_later(run, 99_999_999)
    assert listed(run) == ["step-99999999.safetensors"]


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_process_killed_during_a_save_leaves_the_previous_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, killed)
        save(run, 6, keep=1)
    assert checkpoint.load(run).step == 3
    save(run, 6, keep=1)
    assert listed(run) == ["step-00000006.safetensors"]


def test_what_a_crash_left_half_written_goes_with_the_next_save(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000003.safetensors.123.partial").write_bytes(b"half of it")
    checkpoint.save(tmp_path, 4, CONFIG, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000004.safetensors"]


def test_the_file_and_its_name_are_on_the_disk_before_older_ones_go(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _real=real, _name=name, **k: calls.append(_name) or _real(*a, **k))
    save(run, 6, keep=1)
    assert calls == ["fsync", "replace", "fsync", "unlink"]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_told_as_truncated(run: Path, share: float) -> None:
    content = save(run, 3).read_bytes()
    cut = run / checkpoint.FOLDER / "cut.safetensors"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"^{cut} is truncated or no checkpoint .*: resume from another one in") as told:
        checkpoint.load(cut)
    assert "\n" not in str(told.value)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 999), byte=st.integers(0, 255))
def test_a_damaged_header_is_told_in_a_sentence_or_does_no_harm(run: Path, where: int, byte: int) -> None:
    content = bytearray(save(run, 3).read_bytes())
    content[where] = byte
    damaged = run / checkpoint.FOLDER / "damaged.safetensors"
    damaged.write_bytes(content)
    try:
        checkpoint.load(damaged)
    except UserError as told:
        assert str(damaged) in str(told)


def test_a_pickle_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for name, write in {"a.safetensors": pickle.dumps, "b.pt": pickle.dumps}.items():
        (tmp_path / name).write_bytes(write(Trap()))
    torch.save(Trap(), tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pt", "c.pt"):
        with pytest.raises(UserError, match=f"{name} is truncated or no checkpoint"):
            checkpoint.load(tmp_path / name)
        with pytest.raises(UserError):
            checkpoint.load_networks(tmp_path / name, CPU)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "fastinfogan-99", "step": "1"}])
def test_somebody_elses_safetensors_are_told_as_such(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "other.safetensors", metadata)
    with pytest.raises(UserError, match=r"other\.safetensors is a safetensors file but no checkpoint of fastinfogan's"):
        checkpoint.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [{}, {"step": "1"}, {"step": "one", "config": to_json(CONFIG)}, {"step": "1", "config": '{"iteration": 5}'}],
)
def test_a_header_that_lacks_something_is_told_in_a_sentence(tmp_path: Path, metadata: dict[str, str]) -> None:
    file = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(tensors(), file, {"format": "fastinfogan-1", **metadata})
    with pytest.raises(UserError, match=f"{file}"):
        checkpoint.load(file)


def test_a_path_with_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no run or checkpoint at {tmp_path}/absent: give the folder"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(UserError, match=f"there is no checkpoint in {tmp_path}/checkpoints: give the folder"):
        checkpoint.load(tmp_path)


def test_another_architecture_is_told_with_the_layer_and_both_shapes(tmp_path: Path, tiny_networks: None) -> None:
    config = TrainConfig(noise=4, codes=("cat:3",))
    generator, discriminator = build(config.network_tables, config.spec, seed=0)
    parts = {"generator": generator, "discriminator": discriminator}
    state = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    checkpoint.save(tmp_path, 1, config, state, keep=1)
    loaded, spec, *same = checkpoint.load_networks(tmp_path, CPU)
    assert spec == config.spec and not any(module.training for module in same)
    for ours, theirs in zip((generator, discriminator), same, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))  # noqa: B905

    other = TrainConfig(noise=5, codes=("cat:3",))
    wrong, _ = build(other.network_tables, other.spec, seed=0)
    before = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
    with pytest.raises(
        UserError, match=r"another architecture: generator.blocks.0.linear.weight is \(16, 7\) in it and"
    ):
        loaded.restore("generator", wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())
    with pytest.raises(
        UserError, match=r"absent.blocks.0.linear.weight is missing in it and \(16, 8\) in the networks"
    ):
        loaded.restore("absent", wrong)
    colour = TrainConfig(tables="celeba", noise=4, codes=("cat:3",))
    with pytest.raises(UserError, match=r"is of another architecture: discriminator"):
        loaded.restore("discriminator", build(colour.network_tables, colour.spec, seed=0)[1])


def test_a_spectral_norm_of_an_earlier_version_is_told_as_such(tmp_path: Path, tiny_networks: None) -> None:
    config = TrainConfig(noise=4, codes=("cat:3",), spectral_norm=True)
    _, discriminator = build(config.network_tables, config.spec, seed=0)
    state = {f"discriminator.{name}": tensor for name, tensor in discriminator.state_dict().items()}
    state["discriminator.trunk.0.linear.parametrizations.weight.0._u"] = state.pop("discriminator.spectral.vectors")
    checkpoint.save(tmp_path, 1, config, state, keep=1)
    with pytest.raises(UserError, match="was written before all layers' spectral norms were kept together: train anew"):
        checkpoint.load(tmp_path).restore("discriminator", discriminator)


def test_optimisers_come_back_bitwise_in_any_memory_layout(tmp_path: Path) -> None:
    def step(weights: list[torch.nn.Parameter], adam: torch.optim.Adam, rate: float) -> None:
        adam.zero_grad()
        sum((weight.sin() * rate).sum() for weight in weights).backward()
        adam.step()

    weights = [torch.nn.Parameter(torch.arange(n + 1.0)) for n in range(12)]  # so that 10 comes after 9
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    weights.append(torch.nn.Parameter(images.to(memory_format=torch.channels_last)))
    adam = torch.optim.Adam(weights, lr=0.1, betas=(0.5, 0.9), fused=True)
    for rate in (1.0, 2.0):
        step(weights, adam, rate)
    copies = [torch.nn.Parameter(weight.detach().clone(memory_format=torch.preserve_format)) for weight in weights]
    twin = torch.optim.Adam(copies, lr=0.1, betas=(0.5, 0.9), fused=True)
    checkpoint.save(tmp_path, 1, CONFIG, checkpoint.optimiser_tensors(adam), keep=1)
    checkpoint.restore_optimiser(twin, checkpoint.load(tmp_path).tensors)
    for optimiser, own in ((adam, weights), (twin, copies)):
        step(own, optimiser, 3.0)
    assert all(torch.equal(one, other) for one, other in zip(weights, copies, strict=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"0.exp_avg": torch.zeros(1)}, r"optimiser's 0\.exp_avg in the checkpoint is torch.float32 \(1,\)"),
        ({"0.exp_avg_sq": torch.zeros(3, dtype=torch.float64)}, r"0\.exp_avg_sq in the checkpoint is torch.float64"),
        ({"0.step": torch.zeros(0)}, r"0\.step in the checkpoint is torch.float32 \(0,\)"),
        ({"x.exp_avg": torch.zeros(3)}, r"x\.exp_avg in the checkpoint"),
        ({"0.max_exp_avg_sq": torch.zeros(3)}, r"0\.max_exp_avg_sq in the checkpoint"),
        ({"0.step": None}, "the checkpoint has exp_avg, exp_avg_sq of weight 0 alone"),
    ],
)
def test_moments_that_are_not_of_their_weight_are_refused(damage: dict[str, Any], message: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    first, second = (torch.optim.Adam([weight], fused=True) for _ in range(2))
    weight.sum().backward()
    first.step()
    kept = {name: t for name, t in (checkpoint.optimiser_tensors(first) | damage).items() if t is not None}
    with pytest.raises(UserError, match=message):
        checkpoint.restore_optimiser(second, dict(sorted(kept.items())))


@pytest.mark.parametrize(
    "claimed",
    [
        {"noise": 10**12},
        {"noise": 2**62},
        {"noise": -1},
        {"noise": 50_000},
        {"codes": ("cat:1000000000",)},
        {"codes": ("uniform:2000000000",)},
        {"invariance": 1.0, "rivals": 10**9},
    ],
)
def test_a_header_that_claims_huge_networks_takes_no_memory(tmp_path: Path, claimed: dict[str, Any]) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, tensors(), keep=1)
    path = checkpoint.newest(tmp_path)
    assert path is not None
    header = {"format": "fastinfogan-1", "step": "1", "config": json.dumps(json.loads(to_json(CONFIG)) | claimed)}
    safetensors.torch.save_file(tensors(), path, header)
    with pytest.raises(UserError):
        checkpoint.load_networks(tmp_path, CPU)


def test_learning_rates_stay_as_they_are_configured() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    first, second = (torch.optim.Adam([weight], lr=lr, fused=True) for lr in (0.1, 0.025))
    weight.sum().backward()
    first.step()
    checkpoint.restore_optimiser(second, checkpoint.optimiser_tensors(first))
    assert second.param_groups[0]["lr"] == 0.025


def test_a_checkpoint_that_was_read_can_be_removed_for_good(tmp_path: Path) -> None:
    """A long run would keep the space of what it has resumed from."""
    file = checkpoint.save(tmp_path, 1, CONFIG, {"a": torch.ones(4096)}, keep=1)
    read = checkpoint.load(tmp_path)
    file.unlink()
    assert file.name not in Path("/proc/self/maps").read_text()
    assert torch.equal(read.tensors["a"], torch.ones(4096))
