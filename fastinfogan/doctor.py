"""``python -m fastinfogan.doctor``: which backend serves which op here and why, and whether each is right."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import tyro

from fastinfogan import __version__
from fastinfogan.commands import run_command
from fastinfogan.errors import UserError
from fastinfogan.ops import native, selfcheck
from fastinfogan.ops.backend import VARIABLE
from fastinfogan.ops.selfcheck import check_ops
from fastinfogan.precision import choose_device, choose_precision

PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "numpy", "safetensors", "tyro")


@dataclass(frozen=True)
class Doctor:
    """Check every fused op on this device against its plain PyTorch reference."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    json: bool = False
    """Print everything as JSON instead."""


def examine(device: torch.device) -> dict[str, Any]:
    """Versions, the device, the extension and every check, as JSON-ready values."""
    serving = selfcheck.serving(device)  # first: it may be told of what is not there
    checks = check_ops(device)
    if device.type == "cuda" and not all(check.agrees for check in checks):
        serving = dict.fromkeys(serving, "reference")  # as a run does that meets this
    return {
        "versions": {"fastinfogan": __version__, "python": platform.python_version(), **_versions()},
        "device": {
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "type": device.type,
            "threads": torch.get_num_threads(),
            "amp": str(choose_precision(device, amp=True).dtype).removeprefix("torch."),
            "amp_reason": choose_precision(device, amp=True).reason,
        },
        "extension": {
            "built": native.available(),
            "why_not": native.why_not,
            "cuda": native.on_cuda(),
        },
        "forced_backend": os.environ.get(VARIABLE),
        "checks": [
            {**asdict(check), "worst": check.worst if math.isfinite(check.worst) else None, "agrees": check.agrees}
            for check in checks
        ],
        "serving": {check.op: serving[check.op] for check in checks},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def report(found: dict[str, Any]) -> str:
    """``examine``'s findings as text."""
    device, extension = found["device"], found["extension"]
    lines = ["  ".join(f"{name} {value}" for name, value in found["versions"].items())]
    lines.append(
        f"device {device['type']}: {device['name']}, {device['threads']} threads; "
        f"--amp uses {device['amp']}: {device['amp_reason']}"
    )
    cuda = ", with CUDA kernels" if extension["cuda"] else ", for the CPU alone"
    lines.append("C++ extension: " + (f"built{cuda}" if extension["built"] else extension["why_not"]))
    if found["forced_backend"]:
        lines.append(f"{VARIABLE}={found['forced_backend']} overrides what this device would choose")
    if not found["checks"]:
        lines.append("no fused backend runs on this device: every op uses the PyTorch reference")
    for check in found["checks"]:
        verdict = "agrees" if check["agrees"] else "DISAGREES"
        used = "in use" if found["serving"][check["op"]] == check["backend"] else "not in use"
        worst = "no number" if check["worst"] is None else f"{check['worst']:.2f}"
        reason = check["failure"] or f"worst error {worst} of what is tolerated"
        lines.append(f"  {check['op']:<20}{check['backend']:<8}{verdict}  {reason}  {check['seconds']:.2f} s  {used}")
    return "\n".join(lines)


def main() -> None:
    """The command; exit status 2 when a backend disagrees with the reference."""
    command = tyro.cli(Doctor, prog="python -m fastinfogan.doctor")
    found = examine(choose_device(command.device))
    print(json.dumps(found, indent=2) if command.json else report(found))
    if wrong := [f"{check['op']} ({check['backend']})" for check in found["checks"] if not check["agrees"]]:
        raise UserError(
            f"{', '.join(wrong)} disagree with the reference on this device: set {VARIABLE}=reference and report it"
        )


if __name__ == "__main__":
    run_command(main)
