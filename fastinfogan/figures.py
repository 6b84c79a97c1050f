"""Sample grids and traversals in the form of the paper's Figures 2 to 6, as PNG.

In a traversal each row keeps its noise and its other codes, and one code runs along the columns: a categorical code
over its values, a continuous one from -2 to 2, wider than the [-1, 1] it was trained on, as the paper shows it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fastinfogan import ops
from fastinfogan.codes import LatentSpec
from fastinfogan.files import write_whole
from fastinfogan.metrics.images import as_pixels
from fastinfogan.networks import Generator
from fastinfogan.ops import unpack_codes
from fastinfogan.ops.philox import FIGURES
from fastinfogan.prior import draw_latents

ROWS = COLUMNS = 10
CONTINUOUS_VALUES = tuple(-2.0 + 4.0 * i / 9 for i in range(10))
_MIN_SIDE = 56  # pixels a small image is enlarged to, so that a digit can be looked at
_BAR = 18  # pixels for the labels


def sample_figure(generator: Generator, spec: LatentSpec, image_range: tuple[float, float], seed: int) -> Image.Image:
    """A 10 x 10 grid of samples; the same latents for every call with ``seed``."""
    z = latents(generator, spec, ROWS * COLUMNS, seed)
    return grid(generate(generator, z), COLUMNS, image_range)


def traversal(
    generator: Generator, spec: LatentSpec, code: int, seed: int, rows: int = ROWS
) -> tuple[torch.Tensor, list[str]]:
    """Images ``[rows * columns, c, h, w]`` that vary code number ``code`` of ``spec.names`` alone, and column labels.

    Where a continuous code runs, the first categorical code differs from row to row, as in Figure 2 (c) and (d).
    """
    noise, categories, continuous = unpack_codes(spec, latents(generator, spec, rows, seed))
    is_continuous = code >= len(spec.categorical)
    if is_continuous and spec.categorical:
        categories[:, 0] = torch.arange(rows, device=categories.device) % spec.categorical[0]
    swept = list(CONTINUOUS_VALUES) if is_continuous else list(range(spec.categorical[code]))
    values = torch.tensor(swept, device=noise.device)
    z = ops.traversal(spec, noise, categories, continuous, code=code, values=values)
    return generate(generator, z), [f"{value:+.1f}" if is_continuous else str(value) for value in swept]


def traversal_figure(
    generator: Generator, spec: LatentSpec, code: int, image_range: tuple[float, float], seed: int
) -> Image.Image:
    """The traversal of one code, ten rows, with the code's name and its values above the columns."""
    images, labels = traversal(generator, spec, code, seed)
    return grid(images, len(labels), image_range, labels, spec.names[code])


def save_figures(
    generator: Generator, spec: LatentSpec, image_range: tuple[float, float], seed: int, folder: Path, label: str
) -> list[Path]:
    """``samples`` and one ``traversal`` per code, as ``folder/NAME-label.png``; G keeps its mode."""
    was_training = generator.training
    generator.eval()
    paths = [folder / f"samples-{label}.png"]
    save(sample_figure(generator, spec, image_range, seed), paths[0])
    for code, name in enumerate(spec.names):
        paths.append(folder / f"traversal-{name}-{label}.png")
        save(traversal_figure(generator, spec, code, image_range, seed), paths[-1])
    generator.train(was_training)
    return paths


def grid(
    images: torch.Tensor,
    columns: int,
    image_range: tuple[float, float],
    labels: list[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Images ``[n, c, h, w]`` in ``image_range`` as one picture of ``columns`` columns, labelled above where asked."""
    pixels = as_pixels(images, image_range).cpu()
    n, height, width, channels = pixels.shape
    rows = -(-n // columns)
    padded = torch.zeros(rows * columns, height, width, channels, dtype=torch.uint8)
    padded[:n] = pixels
    tiled = padded.view(rows, columns, height, width, channels).permute(0, 2, 1, 3, 4)
    array = tiled.reshape(rows * height, columns * width, channels).numpy()
    zoom = max(1, -(-_MIN_SIDE // height))
    array = np.repeat(np.repeat(array, zoom, 0), zoom, 1)
    picture = Image.fromarray(array[:, :, 0] if channels == 1 else array).convert("RGB")
    if labels is None:
        return picture
    font = ImageFont.load_default(size=12)
    margin = 8 + int(font.getlength(title))
    framed = Image.new("RGB", (picture.width + margin, picture.height + _BAR), "white")
    framed.paste(picture, (margin, _BAR))
    draw = ImageDraw.Draw(framed)
    draw.text((4, 2), title, fill="black", font=font)
    for column, text in enumerate(labels):
        middle = margin + (column + 0.5) * width * zoom
        draw.text((middle, 2), text, fill="black", font=font, anchor="ma")
    return framed


def save(picture: Image.Image, path: Path) -> None:
    """Write ``picture`` in the format that the suffix of ``path`` names; on a full disk nothing of it stays.

    Raises:
        OSError, ValueError: it cannot be written, or there is no such format.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"unknown file extension: {path.suffix}")
    content = io.BytesIO()
    picture.save(content, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def curves_figure(metrics: Path, spec: LatentSpec) -> Figure:
    """Mutual information of each code in nats against iterations, its ceiling H(c) dashed: the paper's Figure 1.

    ``metrics`` is a run's ``metrics.jsonl``.
    """
    records = [record for line in metrics.read_text().splitlines() if "mi/total" in (record := json.loads(line))]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, entropy in zip(spec.names, spec.entropies, strict=True):
        steps = [r["step"] for r in records]
        (line,) = axes.plot(steps, [r[f"mi/{name}"] for r in records], label=name)
        ceiling = [r[f"entropy/{name}"] for r in records if f"entropy/{name}" in r]
        if ceiling:  # of a learnt prior, which moves
            axes.plot(steps, ceiling, color=line.get_color(), linestyle="--", linewidth=0.8)
        else:
            axes.axhline(entropy, color=line.get_color(), linestyle="--", linewidth=0.8)
    axes.set(xlabel="iteration", ylabel="mutual information bound, nats (dashed: H(c))")
    if spec.names:
        axes.legend()
    return figure


def latents(generator: Generator, spec: LatentSpec, rows: int, seed: int) -> torch.Tensor:
    """The generator's inputs of every picture: ``[rows, spec.dim]``, the same for every call with ``seed``."""
    device = next(generator.parameters()).device
    return draw_latents(spec, rows, generator.prior, seed=seed, step=0, stream=FIGURES, device=device).z


@torch.inference_mode()
def generate(generator: Generator, z: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Images of latents ``[n, dim]``, ``batch`` at a time."""
    return torch.cat([generator(part) for part in z.split(batch)])
