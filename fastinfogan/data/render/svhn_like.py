"""Digits of house numbers in the files of SVHN: not SVHN, but with its kinds of factor, and all of them known.

The digit in the middle is the label; others may stand beside it, cut off by the edge. Fonts, colours, light, blur and
pose differ. The fonts are those that matplotlib brings along, so nothing is fetched.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fastinfogan.data.render.output import Layout
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe, categorical

SIDE = 32
SIZES = (SIDE,)
TEST_SHARE = 4  # one image in four: 26,032 of SVHN's 99,289
ZERO = 10  # the published label of digit 0
NOISE = 3.0  # standard deviation of a pixel, of 255
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
)
DIGITS = "0123456789"

_FINE = 3  # points along either side of a pixel, while a plate is drawn
_HEIGHT = 22.0  # pixels from foot to head of a digit at scale 1
_GAP = 0.06  # between digits, in heights
_HEADER = b"MATLAB 5.0 MAT-file, digits rendered by fastinfogan"

NUMBER = (
    categorical("digit", DIGITS),
    categorical("left", ("none", *DIGITS)),
    categorical("right", ("none", *DIGITS)),
    categorical("font", FONTS),
)
POSE = (
    Factor("tilt", "continuous", -12, 12, "degrees"),
    Factor("scale", "continuous", 0.8, 1.2),
    Factor("across", "continuous", -2, 2, "pixels"),
    Factor("down", "continuous", -2, 2, "pixels"),
)
COLOURS = (
    Factor("plate hue", "circular", 0, 360, "degrees"),
    Factor("plate light", "continuous", 0.1, 0.9),
    Factor("digit hue", "circular", 0, 360, "degrees"),
    Factor("contrast", "continuous", 0.3, 0.65),
    Factor("light", "continuous", -1, 1),
    Factor("blur", "continuous", 0.2, 1.1, "pixels"),
)


class SvhnLike(Painter):
    """Draws plates with digits."""

    factors = (*NUMBER, *POSE, *COLOURS)
    shown = ("digit", "left", "right", "font", "plate light", "light")
    shape = (SIDE, SIDE, 3)

    def __init__(self, recipe: Recipe) -> None:
        self.fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The plate with the factors ``values``: uint8 [32, 32, 3]; ``generator`` gives the noise."""
        classes, pose, colours = values[:4].astype(int).tolist(), values[4:8].tolist(), values[8:].tolist()
        plate_hue, plate_light, digit_hue, contrast, light, blur = colours
        ink = self._ink(*classes, *pose, blur=blur)[:, :, None]
        # away from the middle grey, so that the digit can always be told from the plate
        digit_light = plate_light + (contrast if plate_light < 0.5 else -contrast)
        plate, digit = _colour(plate_hue, plate_light, 0.35), _colour(digit_hue, digit_light, 0.5)
        shading = 1 + 0.5 * light * np.linspace(-1, 1, SIDE)[None, :, None]
        lit = 255 * (plate + ink * (digit - plate)) * shading
        return np.clip(np.rint(lit + NOISE * generator.standard_normal(self.shape)), 0, 255).astype(np.uint8)

    def _ink(
        self,
        digit: int,
        left: int,
        right: int,
        font: int,
        tilt: float,
        scale: float,
        across: float,
        down: float,
        *,
        blur: float,
    ) -> Floats:
        """How much of each pixel the digits cover: float32 [32, 32] in [0, 1]."""
        side = SIDE * _FINE
        picture = Image.new("L", (side, side))
        draw = ImageDraw.Draw(picture)
        face = _font(str(self.fonts / f"{FONTS[font]}.ttf"), round(_HEIGHT * scale * _FINE))
        middle, gap = side / 2, _GAP * _HEIGHT * scale * _FINE
        half = face.getlength(DIGITS[digit]) / 2
        draw.text((middle, middle), DIGITS[digit], fill=255, font=face, anchor="mm")
        for number, sign, anchor in ((left, -1, "rm"), (right, 1, "lm")):
            if number:
                draw.text(
                    (middle + sign * (half + gap), middle), DIGITS[number - 1], fill=255, font=face, anchor=anchor
                )
        shift = (round(across * _FINE), round(down * _FINE))
        picture = picture.rotate(-tilt, Image.Resampling.BILINEAR, translate=shift)
        soft = picture.filter(ImageFilter.GaussianBlur(blur * _FINE))
        return np.asarray(soft.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / np.float32(255)


class SvhnFiles(Layout):
    """SVHN's own files, ``train_32x32.mat`` and ``test_32x32.mat``: X uint8 [32, 32, 3, n], y uint8 [n, 1]."""

    products = ("train_32x32.mat", "test_32x32.mat")
    least = 2
    most = 500_000  # what one array of such a file, up to 2 GB, can hold

    def finish(self, part: Path, factors: Sequence[Factor], values: Floats) -> None:
        """Write the two files in place of the array."""
        from scipy.io import savemat

        images = np.load(part / "images.npy", mmap_mode="r")
        digits = values[:, 0].astype(np.uint8)
        labels = np.where(digits == 0, ZERO, digits).astype(np.uint8)[:, None]
        train = len(images) - -(-len(images) // TEST_SHARE)
        for name, rows in zip(self.products, (slice(train), slice(train, None)), strict=True):
            savemat(part / name, {"X": images[rows].transpose(1, 2, 3, 0), "y": labels[rows]})
            with (part / name).open("r+b") as file:
                file.write(_HEADER.ljust(116))  # in place of the time


@lru_cache(maxsize=512)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    # a digit is 0.73 of the size high in these fonts
    return ImageFont.truetype(path, round(size / 0.73))


def _colour(hue: float, light: float, saturation: float) -> Floats:
    return np.array(colorsys.hls_to_rgb(hue / 360, light, saturation), np.float32)


PAINTER = SvhnLike
LAYOUT = SvhnFiles()
