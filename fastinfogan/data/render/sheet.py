"""The contact sheet of a rendered set: some of its images with what they were drawn from, and each factor alone."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastinfogan.data.render.painter import Factor, Painter, Picture, picture

COLUMNS, ROWS = 8, 3
_SIDE = 112  # pixels that a small image is enlarged to
_LINE, _GAP, _MARGIN = 13, 6, 84


def contact_sheet(painter: Painter, seed: int, count: int) -> Image.Image:
    """The first images of the set, captioned, and below them a row for each of ``painter.shown``.

    Such a row shows image 0 while that factor goes through its range, or through its first classes, and the others of
    ``painter.shown`` that are continuous stay in the middle of theirs.
    """
    shown = [factor for factor in painter.factors if factor.name in painter.shown]
    first = [picture(painter, seed, index) for index in range(min(count, COLUMNS * ROWS))]
    rows = [("images" if start == 0 else "", first[start : start + COLUMNS]) for start in range(0, len(first), COLUMNS)]
    calm = {factor.name: (factor.low + factor.high) / 2 for factor in shown if factor.kind == "continuous"}
    for factor in shown:
        row = [picture(painter, seed, 0, **(calm | {factor.name: value})) for value in _steps(factor)]
        rows.append((factor.name, row))

    zoom = max(1, -(-_SIDE // max(painter.shape[:2])))
    height, width = (side * zoom for side in painter.shape[:2])
    tall = [height + _GAP + _LINE * (len(shown) if number * COLUMNS < len(first) else 1) for number in range(len(rows))]
    sheet = Image.new("RGB", (_MARGIN + COLUMNS * (width + _GAP), sum(tall)), "lightgray")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    top = 0
    for (title, pictures), step in zip(rows, tall, strict=True):
        draw.text((4, top + height // 2), title, fill="black", font=font)
        said = [factor for factor in shown if factor.name == title] or shown
        for column, one in enumerate(pictures):
            left = _MARGIN + column * (width + _GAP)
            sheet.paste(_enlarged(one, zoom), (left, top))
            for line, text in enumerate(_captions(painter, one, said)):
                while font.getlength(text) > width + _GAP:
                    text = text[:-1]
                draw.text((left, top + height + line * _LINE), text, fill="black", font=font)
        top += step
    return sheet


def _steps(factor: Factor) -> list[float]:
    if factor.kind == "categorical":
        return [float(value) for value in range(min(COLUMNS, int(factor.high) + 1))]
    last = COLUMNS if factor.kind == "circular" else COLUMNS - 1  # the end of a circle is its beginning
    return [factor.low + (factor.high - factor.low) * step / last for step in range(COLUMNS)]


def _captions(painter: Painter, one: Picture, said: list[Factor]) -> list[str]:
    values = dict(zip((factor.name for factor in painter.factors), one.values.tolist(), strict=True))
    return [f"{factor.name} {factor.told(values[factor.name])}" for factor in said]


def _enlarged(one: Picture, zoom: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(one.pixels, zoom, 0), zoom, 1)).convert("RGB")
