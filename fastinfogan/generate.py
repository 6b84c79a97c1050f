"""``python -m fastinfogan.generate RUN``: pictures from a trained run: samples, traversals, interpolations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image

from fastinfogan import checkpoint, figures
from fastinfogan.codes import LatentSpec
from fastinfogan.commands import run_command
from fastinfogan.config import require_seed
from fastinfogan.errors import UserError
from fastinfogan.networks import Generator
from fastinfogan.ops import pack_codes, selfcheck, unpack_codes
from fastinfogan.precision import choose_device

MOST_IMAGES = 100_000  # as one picture


@dataclass(frozen=True)
class Generate:
    """Draw pictures with a trained generator. Codes can be set by name and value: --set c1=3 c2=-1.5."""

    run: tyro.conf.Positional[Path]
    """The run's folder (its newest checkpoint is used), or one checkpoint file."""
    what: Literal["samples", "traversals", "interpolation"] = "samples"
    """A grid of samples; one traversal per code; or rows that move between two latents, noise and codes alike."""
    count: int = 100
    """Images in the grid of samples; rows of an interpolation are a tenth of it."""
    set: tuple[str, ...] = ()
    """Codes held at a value, as name=value: c1=3 for category 3 of c1, c2=-1.5 for a continuous one."""
    seed: int = 0
    """64-bit seed of the latents."""
    out: Path | None = None
    """The PNG file, or for traversals the folder; without it, in the run's figures/."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""


def parse_settings(spec: LatentSpec, settings: tuple[str, ...]) -> dict[int, float]:
    """``("c1=3", "c2=-1.5")`` -> {index in ``spec.names``: value}.

    Raises:
        UserError: no such code, no number, or a category that the code does not have.
    """
    values: dict[int, float] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in spec.names:
            raise UserError(
                f"--set {setting}: there is no code {name!r}; this run has {', '.join(spec.names) or 'none'}"
            )
        index = spec.names.index(name)
        try:
            values[index] = float(text)
        except ValueError:
            values[index] = math.nan
        if not abs(values[index]) <= torch.finfo(torch.float32).max:
            raise UserError(f"--set {setting}: expected a number after {name}=, -3.4e38 to 3.4e38, got {text!r}")
        if index < len(spec.categorical) and values[index] not in range(spec.categorical[index]):
            raise UserError(f"--set {setting}: {name} has the categories 0 to {spec.categorical[index] - 1}")
    return values


def fix_codes(spec: LatentSpec, z: torch.Tensor, values: dict[int, float]) -> torch.Tensor:
    """``z`` ``[n, spec.dim]`` with the codes in ``values`` (index in ``spec.names`` -> value) held at them."""
    noise, categories, continuous = (part.clone() for part in unpack_codes(spec, z))
    for index, value in values.items():
        if index < len(spec.categorical):
            categories[:, index] = int(value)
        else:
            continuous[:, index - len(spec.categorical)] = value
    return pack_codes(spec, noise, categories, continuous)


def interpolate(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    """Straight lines between rows of ``start`` and ``end`` ``[n, dim]``: ``[n * steps, dim]``, ends included.

    One-hots mix linearly on the way: the generator is shown what lies between two categories.
    """
    weight = torch.linspace(0, 1, steps, device=start.device)[None, :, None]
    return torch.lerp(start[:, None], end[:, None], weight).flatten(0, 1)


def draw(
    command: Generate, generator: Generator, spec: LatentSpec, image_range: tuple[float, float]
) -> dict[str, Image.Image]:
    """The pictures that ``command`` asks for, by name."""
    values = parse_settings(spec, command.set)
    columns = figures.COLUMNS
    if command.what == "traversals":
        return {
            f"traversal-{name}": figures.traversal_figure(generator, spec, code, image_range, command.seed)
            for code, name in enumerate(spec.names)
        }
    rows = -(-command.count // columns)
    n = command.count if command.what == "samples" else 2 * rows
    z = fix_codes(spec, figures.latents(generator, spec, n, command.seed), values)
    if command.what == "interpolation":
        z = interpolate(z[:rows], z[rows:], columns)
    return {command.what: figures.grid(figures.generate(generator, z), columns, image_range)}


def main() -> None:
    """The command."""
    command = tyro.cli(Generate, prog="python -m fastinfogan.generate")
    if not 1 <= command.count <= MOST_IMAGES:
        raise UserError(f"--count must be 1 or more and at most {MOST_IMAGES:,}, got {command.count}")
    require_seed(command.seed)
    if command.what == "traversals" and command.set:
        raise UserError("--set does not go with traversals, which run every code over its values: drop one of them")
    device = choose_device(command.device)
    selfcheck.trust(device)
    saved, spec, generator, _ = checkpoint.load_networks(command.run, device)
    if command.what == "traversals" and not spec.names:
        raise UserError(f"--what traversals runs along codes, and {command.run} was trained without any: draw samples")
    pictures = draw(command, generator, spec, saved.config.network_tables.image_range)
    folder = saved.run_dir / "figures"
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        if command.out is not None:
            path = command.out / f"{name}.png" if command.what == "traversals" else command.out
        try:
            figures.save(picture, path)
        except (OSError, ValueError) as error:
            remedy = "another folder as --out" if command.what == "traversals" else "another --out, ending in .png"
            raise UserError(f"cannot write the picture {path} ({error}): choose {remedy}") from None
        print(path)


if __name__ == "__main__":
    run_command(main)
