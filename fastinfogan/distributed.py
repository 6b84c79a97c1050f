"""Several processes train one run, as torchrun starts them: who this one is, and what they tell each other.

The curve is that of one process at the same global batch. Latents, images, flips and warps are functions of the global
row, so each process takes its rows of what one would have drawn; gradients are averaged, and batch norm's statistics
are those of the global batch.

Gradients travel as one flat bucket per phase, after the phase's backward pass, and not by DDP. The phases call
``torch.autograd.backward`` on gradients that the loss op has computed, D is run twice in an iteration and frozen
in one of them: DDP's reducer counts on one forward and one backward pass per step, and its hooks and rebuilt buckets
get in the way of a captured graph. An all-reduce of one tensor is a single node of it. What DDP would add, hiding the
transfer behind the backward pass, is small here: bytes and times in ``bench/NOTES.md``.

What the host needs to agree on (a signal, the run's folder) goes through gloo on every device, so that nothing waits
for a GPU. There is one group, and nothing of ours refers to it: it ends where the run does. A thread of gloo's that
outlived it would let go of its last tensor while the interpreter ends, and bring the process down (torch 2.13).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device

Value = TypeVar("Value")
Average = Callable[[list[torch.Tensor]], None]  # replaces tensors by their means over all processes, in place


class LostProcess(UserError):
    """Another process of the run has ended or cannot be reached."""


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # from NCCL too, where its watchdog has not ended the process already
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise  # a fault of ours
        # Behind the place in gloo's source comes the reason, and behind that good advice.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].split("] ", 1)[-1].split(". ")[0]
        raise LostProcess(f"process {os.environ.get('RANK')} lost another one ({reason})") from None


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default.

    rank: 0 .. world - 1 over all machines; local: number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes the run's folder."""
        return self.rank == 0

    def share(self, batch: int, least: int = 1) -> int:
        """The rows of one process, of a global ``batch``: ``least`` or more.

        Raises:
            UserError: it cannot be shared evenly, or not by so many.
        """
        if batch % self.world:
            raise UserError(
                f"--batch {batch} is the global batch and cannot be shared evenly by {self.world} processes: choose a "
                f"multiple of {self.world}"
            )
        if batch < least * self.world:
            raise UserError(
                f"--batch {batch} leaves each of {self.world} processes {batch // self.world}, and each norms its own "
                f"rows, of which it needs {least}: choose a --batch of {least * self.world}, or --sync-batch-norm"
            )
        return batch // self.world

    def average_together(self, tensors: list[torch.Tensor]) -> None:
        """Replace each of ``tensors`` by its mean over all processes, in one bucket.

        Every process passes the same shapes.
        """
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.average_(bucket)
        parts = bucket.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])

    def average_(self, tensor: torch.Tensor) -> None:
        """The mean over all processes, in place; tensors on the device, in the order of its stream."""
        if self.world > 1:
            _all_reduce(tensor)
            tensor /= self.world

    def least_(self, tensor: torch.Tensor) -> None:
        """The least over all processes, element by element, in place."""
        if self.world > 1:
            _all_reduce(tensor, dist.ReduceOp.MIN)

    def any(self, here: bool) -> bool:
        """Whether it is true in any process. On the host: nothing waits for the device."""
        if self.world == 1:
            return here
        flag = torch.tensor([here], dtype=torch.int32)
        _all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def from_first(self, value: Value) -> Value:
        """What the first process has for ``value``, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        with _collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def take_from_first(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite ``tensors``, which lie on the device, with those of the first process.

        Weights are drawn by torch, whose normal numbers may differ in a last bit between kinds of processors.
        """
        if self.world > 1:
            for tensor in tensors:
                with _collective():
                    dist.broadcast(tensor, 0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine goes first, and the others then find done what it did: a download, say."""
        if self.local:
            self._meet()
        yield
        if not self.local:
            self._meet()

    def _meet(self) -> None:
        self.any(False)  # and not dist.barrier, which waits for the device


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """This process's place among those that torchrun started, and its device; the group ends with the context.

    Raises:
        UserError: ``device`` names one GPU for several processes, or there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield ALONE, _current(choose_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda:"):
        raise UserError(f"--device {device} names one GPU and {world} processes train: give --device cuda or auto")
    chosen = choose_device(device)
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: lower --nproc-per-node, or "
                f"train with --device cpu"
            )
        chosen = _current(torch.device("cuda", local))
    with _collective():
        meeting = {"store": _store(rank, world), "rank": rank, "world_size": world}
        if chosen.type == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=chosen, **meeting)
        else:
            dist.init_process_group("gloo", **meeting)
    ended = False
    try:
        yield Ranks(rank, world, local), chosen
        ended = True
    finally:
        if ended or chosen.type == "cpu":  # after an exception NCCL would wait for processes that are gone
            dist.destroy_process_group()


def _store(rank: int, world: int) -> Any:
    """Where the processes leave their addresses for each other, apart for every start of the group.

    torchrun's own store outlives a restart, and gloo would look for the processes of the start before.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world, is_master=rank == 0 and not hosted)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"start-{restarts()}", store)  # type: ignore[attr-defined]


def restarts() -> int:
    """How often torchrun has started this group of processes again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str:
    """A name that the processes of one torchrun share, also those that it starts again, and no other process has.

    On one machine that is its own process; on several it is what was given as ``--rdzv-id``, a new one for each run.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name != "none":
        return name
    parent = Path(f"/proc/{os.getppid()}/stat")
    began = parent.read_text().rpartition(")")[2].split()[19] if parent.exists() else ""  # numbers are used again
    return f"{socket.gethostname()} {os.getppid()} {began}"


def _current(device: torch.device) -> torch.device:
    """``device``, made the one that kernels are launched on, with its number: ``cuda`` is the one that already is."""
    if device.type != "cuda":
        return device
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _all_reduce(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> None:
    with _collective():
        dist.all_reduce(tensor, op)


class SynchronisedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all processes, each of which has equally many; on any device.

    torch's SyncBatchNorm takes CUDA tensors only, and outside of a captured graph it waits for the device.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any ``[n, channels, ...]``."""

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.BatchNorm1d and 2d; in eval mode nothing is exchanged."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, rows = _Normalise.apply(input, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            momentum = self.momentum
            assert momentum is not None, "a cumulative average is for evaluation, which one process does"
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), momentum)
        return output


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * weight + bias, and the mean and variance ``[channels]`` of all processes' rows.

    The fused kernels of eval mode serve training too, once mean and variance are known: forward they normalise with
    any given ones; backward they give sum(dy) and sum(dy * x_hat), of which, summed over the processes,
    dx = weight / std * (dy - sum(dy) / rows - x_hat * sum(dy * x_hat) / rows)    (Ioffe and Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Any:
        over = [dim for dim in range(x.dim()) if dim != 1]
        world = dist.get_world_size()
        rows = x.numel() // x.shape[1] * world
        # Means and variances are exchanged, not sums of squares: those cancel where a mean is far from 0.
        local = torch.cat(torch.var_mean(x.float(), over, correction=0))
        every = local.new_empty((world, len(local)))
        with _collective():
            dist.all_gather(list(every.unbind()), local)
        variances, means = every.view(world, 2, -1).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean) ** 2).mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.rows = eps, rows
        output = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, *_: Any) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, mean, torch.rsqrt(variance + ctx.eps), False, ctx.eps, [False, True, True]
        )
        if not ctx.needs_input_grad[0]:
            return None, d_weight, d_bias, None
        sums = torch.stack([d_bias, d_weight])
        _all_reduce(sums)
        d_sum, d_hat_sum = (sums / ctx.rows).unbind()
        inverse_std = torch.rsqrt(variance + ctx.eps)
        scale = weight * inverse_std
        slope = scale * inverse_std * d_hat_sum
        a, b, c = (_along_channels(one, x) for one in (scale, -slope, slope * mean - scale * d_sum))
        return torch.addcmul(torch.addcmul(c, dy, a), x, b).to(x.dtype), d_weight, d_bias, None


def _along_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def synchronise_norms(module: nn.Module) -> None:
    """Replace every batch norm within ``module`` by one over all processes, with the same weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synchronised = SynchronisedNorm(child.num_features, child.eps, child.momentum)
            synchronised.weight, synchronised.bias = child.weight, child.bias
            for buffer, value in child.named_buffers():
                setattr(synchronised, buffer, value)
            setattr(module, name, synchronised)
        else:
            assert not hasattr(child, "running_mean"), f"{type(child).__name__} is not known to be a batch norm"
            synchronise_norms(child)
