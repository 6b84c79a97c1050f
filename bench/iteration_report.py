"""What one training iteration asks of a GPU, counted without one: launches, FLOPs, bytes, and the time they need.

The trainer runs on torch's ``meta`` device, where ops have shapes and no data, and every op that it dispatches is
counted. What a GPU makes of them is a model, not measured:

- a launch per op that touches memory; one per gradient for the backward pass of a convolution, and as many for Adam and
  other ops on lists of tensors as their chunks of 65,536 values take, at most 320 a launch. cuDNN may add some to
  change layouts, so this is at least;
- FLOPs: of every product, padding with zeros included, which the floor of ``step`` leaves out;
- bytes: each op reads its arguments and writes its results once, as if no cache kept anything in between;
- floor: the longer of FLOPs over the peak of the tensor cores (of plain fp32 without ``--amp``) and bytes over the peak
  of the memory, from the vendor's data sheets: dense, no sparsity. No GPU reaches its peaks.

The measured columns are those of ``bench/results/step.csv``, empty until the command in the last column has run on that
GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import tyro
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.field import CAPTURED, OP_BY_OP, TABLES
from bench.measure import RESULTS, put_beside_model, read_csv, significant, write_csv
from bench.ours import NoRun
from fastinfogan.config import PRESETS, TrainConfig
from fastinfogan.data import BatchPlan, Decoded, ResidentBatches
from fastinfogan.precision import Precision
from fastinfogan.trainer import Trainer

META = torch.device("meta")
STATIC = RESULTS / "iteration_static.csv"
NO_LAUNCH = ("prim", "profiler")
CHUNK, CHUNKS = 65_536, 320  # of torch's multi_tensor_apply
MEASURED = {CAPTURED: "measured_graph_us", OP_BY_OP: "measured_eager_us"}  # by contestant of `step`
# The quick start with eight heads, as in its first half. The meta device has no value for a falling rate, whose few
# scalars are left out.
CONFIGS = {name: dataclasses.replace(PRESETS[preset], decay=0.0) for name, preset in TABLES.items()}
ELSEWHERE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Peaks from the data sheet of the SXM module: dense FLOP/s by number format, bytes/s of its memory."""

    flops: dict[torch.dtype, float]
    bandwidth: float


GPUS = {
    "A100 80GB": Gpu({torch.float32: 19.5e12, torch.bfloat16: 312e12}, 2.039e12),
    "H100": Gpu({torch.float32: 67e12, torch.bfloat16: 989e12}, 3.35e12),
    "B200": Gpu({torch.float32: 75e12, torch.bfloat16: 2250e12}, 8.0e12),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Count one training iteration of each preset."""

    batches: tuple[int, ...] = (128, 1024)
    """Images per iteration."""
    out: Path = STATIC
    """The CSV to write."""


class Launches(TorchDispatchMode):
    """Counts what is dispatched. ops: launches by op; bytes: read and written by them."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if number := launches(func, args):
            self.ops[f"{func.namespace}.{func.overloadpacket.__name__}"] += number
            self.bytes += sum(map(_bytes, _distinct((args, kwargs)))) + sum(map(_bytes, _distinct(results)))
        return results


def launches(func: Any, args: Any) -> int:
    """Kernels that one dispatched op launches at least."""
    name = func.overloadpacket.__name__
    if func.namespace in NO_LAUNCH or name in ELSEWHERE or func.is_view:
        return 0
    if name == "convolution_backward":
        return sum(args[10])
    if name == "_fused_adam_" or name.startswith("_foreach"):
        chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in args[0])
        return math.ceil(chunks / CHUNKS) + (name == "_foreach_norm")  # which adds up what its chunks have found
    return 1


def _distinct(tree: Any) -> list[torch.Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}.values())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Autocast(TorchFunctionMode):
    """What autocast does on a GPU, on a device that it does not know: casts weights once, inputs where they come."""

    OPS = (F.linear, F.conv2d, F.conv_transpose2d, torch.conv2d, torch.conv_transpose2d, torch.bmm)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weights: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.OPS:
            args = [self._cast(arg) for arg in args]
            kwargs = {name: self._cast(arg) for name, arg in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _cast(self, arg: Any) -> Any:
        if not isinstance(arg, torch.Tensor) or arg.dtype != torch.float32:
            return arg
        if not (arg.is_leaf and arg.requires_grad):
            return arg.to(self.dtype)
        if id(arg) not in self.weights:
            self.weights[id(arg)] = arg.to(self.dtype)
        return self.weights[id(arg)]


@contextmanager
def on_meta(dtype: torch.dtype) -> Iterator[Precision]:
    """A precision on the meta device, which takes for the time what only real devices have: fused Adam, autocast."""
    precision = Precision(META, dtype, "no GPU is here")
    with (
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta"]),
        mock.patch("torch.optim.adam._device_dtype_check_for_fused", lambda *_, **__: None),
        mock.patch.object(
            Precision, "autocast", lambda self: nullcontext() if dtype == torch.float32 else Autocast(dtype)
        ),
    ):
        yield precision


def meta_trainer(config: TrainConfig, precision: Precision) -> Trainer:
    """A trainer whose tensors have shapes and no data."""
    tables = config.network_tables
    channels, height, width = tables.image
    images = Decoded("none", torch.empty((2 * config.batch, height, width, channels), dtype=torch.uint8, device=META))
    plan = BatchPlan(config.batch, config.seed, *tables.image_range, flip=config.flip, device=META)
    return Trainer(config, ResidentBatches(images, plan), NoRun(), precision)  # type: ignore[arg-type]


def count(config: TrainConfig, dtype: torch.dtype) -> tuple[Launches, int]:
    """Launches and FLOPs of one iteration of ``config``, once the optimisers have their state."""
    with on_meta(dtype) as precision:
        trainer = meta_trainer(config, precision)
        trainer.iteration(0)
        with FlopCounterMode(display=False) as flops, Launches() as counted:
            trainer.iteration(1)
    return counted, flops.get_total_flops()


def report(options: Options) -> list[dict[str, object]]:
    """A row per preset, batch, number format and GPU."""
    rows: list[dict[str, object]] = []
    for preset, base in CONFIGS.items():
        for batch in options.batches:
            config = dataclasses.replace(base, batch=batch)
            for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
                counted, flops = count(config, dtype)
                total = sum(counted.ops.values())
                for gpu, peak in GPUS.items():
                    arithmetic, memory = flops / peak.flops[dtype], counted.bytes / peak.bandwidth
                    rows.append(
                        {
                            "preset": preset, "batch": batch, "format": label, "gpu": gpu,
                            "kind": "model, not measured", "launches": total,
                            "gflop": significant(flops / 1e9), "mbyte": significant(counted.bytes / 1e6),
                            "arithmetic_us": significant(arithmetic * 1e6), "memory_us": significant(memory * 1e6),
                            "floor_us": significant(max(arithmetic, memory) * 1e6),
                            **dict.fromkeys(MEASURED.values(), ""),
                            "measure_with": f"python -m bench step --presets {preset} --batches {batch} --device cuda",
                        }
                    )  # fmt: skip
                print(
                    f"{preset:<13}batch {batch:<6}{label}  {total:>5} launches  {flops / 1e9:>8.1f} GFLOP  "
                    f"{counted.bytes / 1e6:>8.0f} MB   floor "
                    + ", ".join(f"{row['gpu']} {row['floor_us']}" for row in rows[-len(GPUS) :])
                    + " us (model, not measured)"
                )
    return rows


def fill_in(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Put the times of ``rows`` of ``step``, measured on a GPU, beside the model's estimates for it in ``path``."""
    for row in rows:
        contestant, label = row["provider"].rsplit(" ", 1)
        if contestant in MEASURED:
            identity = {"preset": row["preset"], "batch": row["batch"], "format": label}
            measured = {MEASURED[contestant]: significant(1e3 * float(row["median"]))}
            put_beside_model(path, measured, identity, row["device"])


def main(argv: list[str]) -> None:
    """Print the counts and write them as CSV."""
    options = tyro.cli(Options, prog="python -m bench step --static", description=__doc__, args=argv)
    write_csv(options.out, report(options))
    fill_in(options.out, read_csv(RESULTS / "step.csv"))
