"""A run of a claim: trained and judged by the commands that a user has, gone on with where it was stopped.

The folder of a run is named after its configuration, so that claims that ask about the same run share it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.measure import ROOT, significant
from fastinfogan import checkpoint
from fastinfogan.config import TrainConfig, to_json
from fastinfogan.errors import UserError
from fastinfogan.metrics.evaluation import METRICS, QUICK, Group

MACHINE = "machine.json"
# Of the training: counted up where the same configuration ends elsewhere than before, so that no run of the code before
# stands for one of today's.
CODE = 1
SHARED_BY = 0.3  # of its images that a digit must have in a value to count as being there


def digest(config: TrainConfig) -> str:
    """Eight letters that change with anything in ``config`` but its seed and where things lie, and with ``CODE``.

    What has its default is left out, so that a run keeps its name when a new option comes.
    """
    plain = asdict(TrainConfig())
    own = {key: value for key, value in asdict(config).items() if value != plain[key]}
    chosen = {key: value for key, value in own.items() if key not in ("seed", "data", "run_dir", "device")}
    chosen |= {"code": CODE} if CODE > 1 else {}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def home(config: TrainConfig, folder: Path) -> Path:
    """Where below ``folder`` the run of ``config`` lies; claims train with ``--amp``."""
    return folder / f"{config.dataset}-{digest(replace(config, amp=True))}-{config.seed}"


def best_column(factor: str) -> str:
    """Of a row: how strongly any code has ``factor``, such as ``traversal/azimuth``."""
    return factor.replace("/", "/best/", 1)


def code_column(factor: str) -> str:
    """Of a row: the code that has ``factor`` most."""
    return factor.replace("/", "/code/", 1)


def trained(config: TrainConfig, folder: Path, machine: Mapping[str, str]) -> Path:
    """The folder of the run of ``config`` below ``folder``, complete; it keeps the ``machine`` that started it.

    Raises:
        UserError: the training command failed, or a run is there that does not say which machine trained it.
    """
    run = home(config, folder)
    newest = checkpoint.newest(run)
    if newest is not None and not (run / MACHINE).exists():
        raise UserError(f"{run} has no {MACHINE} to tell which machine trained it: delete the run, and start again")
    if newest is not None and checkpoint.load(newest).step >= config.iterations:
        return run
    if newest is None:
        run.mkdir(parents=True, exist_ok=True)
        start = run / "start.json"
        start.write_text(to_json(replace(config, run_dir=None)))
        (run / MACHINE).write_text(json.dumps(machine))
        run_module("train", "--config", start, "--run-dir", run)
    else:
        run_module("train", "--resume", run)
    return run


def judged(run: Path, groups: Sequence[Group], config: TrainConfig, *, again: bool = False) -> dict[str, str]:
    """Every number that ``groups`` yield, by its path in evaluation.json, and what went wrong with the categories."""
    if again or not (set(groups) <= set(QUICK) and _ended(run, config, groups)):
        run_module("evaluate", run, "--groups", *groups, "--data", config.data, "--device", config.device)
    found = json.loads((run / "evaluation.json").read_text())
    learnt, metrics = found.pop("frequencies", {}), found.pop("metrics", "")
    numbers = {name: significant(value) for name, value in _flat(found)}
    for group, table in associations(found).items():
        for factor, (strength, code) in strongest(table).items():
            numbers[best_column(f"{group}/{factor}")] = significant(strength)
            numbers[code_column(f"{group}/{factor}")] = code
    # Confusion is not kept of thousands of values.
    codes = {name: code for name, code in found["clusterings"].items() if code["confusion"]}
    for name, code in codes.items():
        matching = code["matching"]
        shares = learnt.get(name) or [1 / len(matching)] * len(matching)
        numbers[f"frequencies/{name}/distance"] = significant(distance(shares, matching, code["confusion"]))
        if name in learnt:
            for label, share in sorted(zip(matching, shares, strict=True)):
                if label >= 0:
                    numbers[f"frequencies/{name}/{label}"] = significant(share)
    failures = [failure(code["confusion"]) for code in codes.values()]
    rates = [line["images_per_second"] for line in lines(run) if "images_per_second" in line]
    return {
        **numbers,
        **({"failure": "; ".join(filter(None, failures)) or "none"} if failures else {}),
        "images_per_second": significant(median(rates)),
        "judge": str(metrics),
        "groups": " ".join(groups),
    }


def _ended(run: Path, config: TrainConfig, groups: Sequence[Group]) -> bool:
    """Whether the end of the run is judged by ``groups``, as the training command does it by the ``QUICK`` ones."""
    file = run / "evaluation.json"
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    content = {"information": found["information"], "clustering": found["clusterings"]}
    todays = found["step"] == config.iterations and found.get("metrics") == METRICS
    return todays and all(content[group] for group in groups)


def distance(shares: Sequence[float], matching: Sequence[int], confusion: Sequence[Sequence[int]]) -> float:
    """Total variation between the frequencies of values and of the labels that they are matched to, in [0, 1]."""
    images = sum(map(sum, confusion))
    truth = [sum(row) / images for row in confusion]
    apart = sum(abs(share - (truth[label] if label >= 0 else 0)) for share, label in zip(shares, matching, strict=True))
    return (apart + sum(share for label, share in enumerate(truth) if label not in matching)) / 2


Association = Mapping[str, Mapping[str, float | None]]  # of codes (first key) and factors: how strong


def associations(found: Mapping[str, Any]) -> dict[str, Association]:
    """What an evaluation says of codes and factors, by group: rank correlations, or information in nats."""
    traversal, strokes = (found.get(group) or {} for group in ("traversal", "strokes"))
    tables: dict[str, Association] = {
        "traversal": traversal.get("correlations", {}), "strokes": strokes.get("within", {})
    }  # fmt: skip
    if scores := found.get("disentanglement"):
        rows = (dict(zip(scores["factors"], row, strict=True)) for row in scores["information"])
        tables["disentanglement"] = dict(zip(scores["codes"], rows, strict=True))
    return tables


def strongest(table: Association) -> dict[str, tuple[float, str]]:
    """Of each factor the largest absolute association with any code, and that code: which one took it up is chance."""
    found: dict[str, tuple[float, str]] = {}
    for code, of_code in table.items():
        for factor, strength in of_code.items():
            if strength is not None and abs(strength) > found.get(factor, (-1.0, ""))[0]:
                found[factor] = abs(strength), code
    return found


def lines(run: Path) -> list[dict[str, float]]:
    """What the run logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def failure(confusion: Sequence[Sequence[int]]) -> str:
    """How labels and values fail to match, from counts by label and value: ``4 and 9 share a value, 1 has two``."""
    there = [[count > SHARED_BY * max(1, sum(row)) for count in row] for row in confusion]
    shared = [
        " and ".join(str(label) for label, row in enumerate(there) if row[value])
        for value in range(len(there[0]) if there else 0)
        if sum(row[value] for row in there) > 1
    ]
    split = [str(label) for label, row in enumerate(there) if sum(row) > 1]
    lost = [str(label) for label, row in enumerate(there) if not any(row)]
    told = [f"{labels} share a value" for labels in shared] + [f"{label} has two values" for label in split]
    told += [f"{label} is spread over many" for label in lost]
    return ", ".join(dict.fromkeys(told))  # two labels that share two values share them


def _flat(value: object, path: str = "") -> list[tuple[str, float]]:
    """The numbers within nested mappings, each with the keys that lead to it; of a list of draws their mean."""
    if isinstance(value, Mapping):
        return [leaf for key, one in value.items() for leaf in _flat(one, f"{path}/{key}" if path else str(key))]
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        value = fmean(value)
    return [(path, float(value))] if isinstance(value, int | float) else []


def run_module(module: str, *arguments: object) -> None:
    """``python -m fastinfogan.<module>`` with ``arguments``, to its end.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", f"fastinfogan.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        raise UserError(
            f"{' '.join(command[1:])} ended with status {done.returncode}: mend the cause above and start the same "
            f"claim again; it goes on where it stopped"
        )
