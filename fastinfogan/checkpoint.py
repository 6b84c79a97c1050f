"""Checkpoints: one safetensors file each, written so that a crash leaves the previous one intact.

Everything a run needs to go on lies in one file: weights, batch-norm statistics, optimiser moments, the metrics since
the last reading, and in the header the step and the configuration. The random stream has no state (Philox counts
steps), so the step restores it. safetensors holds numbers only: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.config import TrainConfig, from_json, to_json
from fastinfogan.errors import UserError
from fastinfogan.files import write_whole
from fastinfogan.networks import Discriminator, Generator, build

FOLDER = "checkpoints"
_FORMAT = "fastinfogan-1"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what it keeps of each weight


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by dotted name (``generator.*``, ``discriminator.*``, ...); step: iterations done."""

    path: Path
    step: int
    config: TrainConfig
    tensors: dict[str, torch.Tensor]

    @property
    def run_dir(self) -> Path:
        """The folder of the run; a file that was taken out of its run stands for one in the folder it lies in."""
        return run_of(self.path)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below ``prefix.``, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def require(self, name: str, module: torch.nn.Module) -> None:
        """Raise a UserError unless the part ``name`` fits ``module``, tensor by tensor."""
        found, wanted = self.part(name), module.state_dict()
        if any(key.endswith(".parametrizations.weight.0._u") for key in found):
            raise UserError(
                f"{self.path} was written before all layers' spectral norms were kept together: train anew, or use it "
                f"with the version that wrote it"
            )
        for key in sorted(found.keys() | wanted.keys()):
            have = tuple(found[key].shape) if key in found else "missing"
            want = tuple(wanted[key].shape) if key in wanted else "not there"
            if have != want:
                raise UserError(
                    f"{self.path} is of another architecture: {name}.{key} is {have} in it and {want} in the networks "
                    f"asked for: leave --tables, --noise, --codes, --learn-prior, --rivals and --spectral-norm as they "
                    f"were in the run"
                )

    def restore(self, name: str, module: torch.nn.Module) -> None:
        """Load the part ``name`` into ``module``.

        Raises:
            UserError: a missing, foreign or differently shaped tensor: the checkpoint is of another architecture.
        """
        self.require(name, module)
        module.load_state_dict(self.part(name))


def run_of(file: Path) -> Path:
    """The folder of the run that the checkpoint ``file`` is of, whether or not the file is still there."""
    folder = file.parent
    if folder.name in ("", ".."):  # named from within
        folder = folder.resolve()
    return folder.parent if folder.name == FOLDER else folder


def save(run_dir: Path, step: int, config: TrainConfig, tensors: dict[str, torch.Tensor], keep: int) -> Path:
    """Write ``step``'s checkpoint below ``run_dir`` and remove all but the last ``keep`` up to it; returns its path.

    Written to a temporary name, flushed to the disk, renamed: at every moment the newest named file is whole.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder, path = run_dir / FOLDER, _path(run_dir, step)
    metadata = {"format": _FORMAT, "step": str(step), "config": to_json(config)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()}, metadata)
        write_whole(path, data)
        _sync_folder(folder)
    except OSError as error:
        last = newest(run_dir)
        kept, remedy = "there is no earlier checkpoint", "start again"
        if last:
            kept, remedy = f"the checkpoint before it, {last}, is intact", f"resume with --resume {run_dir}"
        raise UserError(
            f"could not save step {step} to {path} ({error.strerror or error}); {kept}: free some space and {remedy}"
        ) from None
    remove_later(run_dir, step)
    left_by_a_crash = folder.glob("*.partial")
    for one in (*list(_all(run_dir))[:-keep], *left_by_a_crash):
        one.unlink(missing_ok=True)
    return path


def file_of(path: Path) -> Path:
    """``path`` where it is a file, or the newest checkpoint in the run folder ``path``.

    Raises:
        UserError: nothing there.
    """
    if path.is_dir():
        file = newest(path)
        if file is None:
            raise UserError(f"there is no checkpoint in {path / FOLDER}: give the folder of a run that saved one")
        return file
    if not path.exists():
        raise UserError(f"there is no run or checkpoint at {path}: give the folder of a run, for example runs/mnist-1")
    return path


def load(path: Path) -> Checkpoint:
    """The checkpoint in the file ``path``, or the newest in the run folder ``path``.

    Raises:
        UserError: nothing there, or a file that is truncated or no checkpoint of ours.
    """
    file = file_of(path)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{file} is a safetensors file but no checkpoint of fastinfogan's: choose another file")
            # Copies: a tensor that lies in the file would keep its space taken after training has removed it.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a dict)
            step, config = int(metadata["step"]), from_json(metadata["config"], f"the header of {file}")
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} is truncated or no checkpoint ({error}): resume from another one in {file.parent}"
        ) from None
    return Checkpoint(file, step, config, tensors)


def require_networks(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Raise a UserError unless ``checkpoint`` has the networks of ``config``; no memory is taken for these yet."""
    if config.rivals > len(checkpoint.tensors):
        raise UserError(f"{checkpoint.path} does not hold the {config.rivals} rivals that --rivals asks for")
    with torch.device("meta"):
        networks = build(config.network_tables, config.spec, seed=0)
    for name, module in zip(("generator", "discriminator"), networks, strict=True):
        checkpoint.require(name, module)


def load_networks(path: Path, device: torch.device) -> tuple[Checkpoint, LatentSpec, Generator, Discriminator]:
    """A run's checkpoint and its networks on ``device``, in eval mode."""
    checkpoint = load(path)
    require_networks(checkpoint, checkpoint.config)
    spec = checkpoint.config.spec
    generator, discriminator = build(checkpoint.config.network_tables, spec, seed=checkpoint.config.seed)
    checkpoint.restore("generator", generator)
    checkpoint.restore("discriminator", discriminator)
    return checkpoint, spec, generator.to(device).eval(), discriminator.to(device).eval()


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's moments and step counts by ``index.name``."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`optimiser_tensors`; learning rates stay as they are configured.

    Raises:
        UserError: ``tensors`` are not Adam's, or of other weights.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    shapes = {
        f"{number}.{key}": () if key == "step" else parameter.shape
        for number, parameter in enumerate(parameters)
        for key in _ADAM
    }
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if index.isdecimal() and int(index) >= len(parameters):
            continue  # a switch of the objective has moved this parameter to the other optimiser
        if tensor.shape != shapes.get(name) or tensor.dtype != torch.float32:
            raise UserError(
                f"the optimiser's {name} in the checkpoint is {tensor.dtype} {tuple(tensor.shape)}, which is not what "
                f"Adam keeps of its weight: resume from another one"
            )
        if key != "step":
            # The fused step walks through memory: a moment in another layout than its weight is another weight's.
            tensor = torch.empty_like(parameters[int(index)], requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    for number, kept in state.items():
        if kept.keys() != _ADAM:
            raise UserError(f"the checkpoint has {', '.join(kept)} of weight {number} alone: resume from another one")
    rates = [group["lr"] for group in optimiser.param_groups]
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate  # it was copied, and a tensor that a schedule writes must be the very one


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step:08d}.safetensors"


def _all(run_dir: Path) -> dict[Path, int]:
    """The checkpoints that training has named and the steps in their names, in order; others are the user's own."""
    found = {path: _NAME.fullmatch(path.name) for path in (run_dir / FOLDER).glob("step-*.safetensors")}
    steps = {path: int(name[1]) for path, name in found.items() if name}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def remove_later(run_dir: Path, step: int) -> None:
    """Remove the checkpoints below ``run_dir`` of steps after ``step``, which are what going back to it abandons."""
    for path, of_path in _all(run_dir).items():
        if of_path > step:
            path.unlink(missing_ok=True)


def newest(run_dir: Path) -> Path | None:
    """The checkpoint of the highest step below ``run_dir``; None where there is none."""
    return next(reversed(_all(run_dir)), None)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: a file's name lies in its folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and run without
            raise
    finally:
        os.close(descriptor)
