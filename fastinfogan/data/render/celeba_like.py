"""Labelled cartoon faces in the files of CelebA: not CelebA, but with its kinds of factor, and all of them known.

Hair, glasses, mouth, beard, skin, clothes and background differ, and so does the pose in the plane of the image. The
attributes are CelebA's own where the cartoon has a matching one, and -1 where it has none.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from fastinfogan.data.render.output import Layout
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe, categorical
from fastinfogan.errors import UserError

WIDTH, HEIGHT = 178, 218  # pixels of CelebA's aligned images
SIZES = (HEIGHT,)
QUALITY = 90  # of the JPEGs
VALIDATION_SHARE = TEST_SHARE = 10  # one image in this many, from the end, as CelebA's splits are runs of numbers

# class -> the part's name in python-avatars
HAIR = {
    "bald": "NONE",
    "receding": "SIDES",
    "cropped": "CAESAR",
    "short": "SHORT_FLAT",
    "waved": "SHORT_WAVED",
    "quiff": "QUIFF",
    "pixie": "PIXIE",
    "bun": "BUN",
    "bob": "BOB",
    "straight": "STRAIGHT_STRAND",
    "loose": "LOOSE_HAIR",
    "curly": "CURLY",
    "afro": "FRO",
}
HAIR_COLOURS = {"black": "BLACK", "brown": "BROWN", "auburn": "AUBURN", "blond": "BLONDE_GOLDEN", "gray": "SILVER_GRAY"}
SKINS = {"pale": "PALE", "light": "LIGHT", "brown": "BROWN", "dark brown": "DARK_BROWN", "black": "BLACK"}
GLASSES = {"none": "NONE", "round": "ROUND", "frame": "PRESCRIPTION_2", "dark": "WAYFARERS"}
MOUTHS = {
    "serious": "SERIOUS",
    "sad": "SAD",
    "open": "DISBELIEF",
    "smirk": "TWINKLE",
    "smile": "SMILE",
    "grin": "BIG_SMILE",
}
EYES = {"open": "DEFAULT", "squinting": "HAPPY", "sideways": "SIDE", "wide": "SURPRISED"}
BROWS = {"even": "DEFAULT_NATURAL", "arched": "RAISED_EXCITED_NATURAL", "bushy": "FLAT_NATURAL"}
BEARDS = {"none": "NONE", "mustache": "MOUSTACHE_MAGNUM", "stubble": "BEARD_LIGHT", "beard": "BEARD_MEDIUM"}
NOSES = {"small": "SMALL", "usual": "DEFAULT", "big": "WIDE"}
CLOTHES = {"hoodie": "HOODIE", "sweater": "COLLAR_SWEATER", "shirt": "SHIRT_V_NECK", "tie": "SHIRT_WICK"}
CLOTHES_COLOURS = {"black": "BLACK", "blue": "BLUE_03", "gray": "GRAY_01", "red": "RED", "green": "PASTEL_GREEN"}

# factor -> (its classes, the enumeration of python-avatars, the argument of its Avatar)
PARTS: Mapping[str, tuple[Mapping[str, str], str, str]] = {
    "hair": (HAIR, "HairType", "top"),
    "hair colour": (HAIR_COLOURS, "HairColor", "hair_color"),
    "skin": (SKINS, "SkinColor", "skin_color"),
    "glasses": (GLASSES, "AccessoryType", "accessory"),
    "mouth": (MOUTHS, "MouthType", "mouth"),
    "eyes": (EYES, "EyeType", "eyes"),
    "brows": (BROWS, "EyebrowType", "eyebrows"),
    "beard": (BEARDS, "FacialHairType", "facial_hair"),
    "nose": (NOSES, "NoseType", "nose"),
    "clothes": (CLOTHES, "ClothingType", "clothing"),
    "clothes colour": (CLOTHES_COLOURS, "ClothingColor", "clothing_color"),
}
POSE = (
    Factor("tilt", "continuous", -14, 14, "degrees"),
    Factor("scale", "continuous", 0.85, 1.1),
    Factor("right", "continuous", -10, 10, "pixels"),
    Factor("down", "continuous", -8, 8, "pixels"),
    Factor("background hue", "circular", 0, 360, "degrees"),
    Factor("background light", "continuous", 0.25, 0.95),
)
_CANVAS = (264, 280)  # of an avatar, in its own units
_FACE = (132, 116)  # the middle of the face in an avatar's own units
_SCALE = 0.92  # pixels per unit at scale 1
_DENSITY = 1.1  # pixels per unit in which the layers are kept

# What is painted over what: the factor, the group of the drawing that shows it alone, the factor of its colour.
LAYERS = (
    ("skin", "transparent_Body", None),
    ("clothes", "transparent_Clothing", "clothes colour"),
    ("mouth", "transparent_Mouth", None),
    ("nose", "transparent_Nose", None),
    ("eyes", "transparent_Eyes", None),
    ("brows", "transparent_Eyebrow", None),
    ("beard", "no_hair_Facial-Hair", "hair colour"),
    ("hair", "transparent_Top", "hair colour"),
    ("glasses", "no_hair_Accessory", None),
)

# All of CelebA's attributes, each with the classes that have it: (factor, classes) of which every one must hold.
_HAIRED = ("hair", tuple(HAIR)[2:])
ATTRIBUTES: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "5_o_Clock_Shadow": (("beard", ("stubble",)),),
    "Arched_Eyebrows": (("brows", ("arched",)),),
    "Attractive": (),
    "Bags_Under_Eyes": (),
    "Bald": (("hair", ("bald",)),),
    "Bangs": (("hair", ("bob", "pixie")),),
    "Big_Lips": (),
    "Big_Nose": (("nose", ("big",)),),
    "Black_Hair": (("hair colour", ("black",)), _HAIRED),
    "Blond_Hair": (("hair colour", ("blond",)), _HAIRED),
    "Blurry": (),
    "Brown_Hair": (("hair colour", ("brown",)), _HAIRED),
    "Bushy_Eyebrows": (("brows", ("bushy",)),),
    "Chubby": (),
    "Double_Chin": (),
    "Eyeglasses": (("glasses", ("round", "frame", "dark")),),
    "Goatee": (),
    "Gray_Hair": (("hair colour", ("gray",)), _HAIRED),
    "Heavy_Makeup": (),
    "High_Cheekbones": (),
    "Male": (),
    "Mouth_Slightly_Open": (("mouth", ("open", "smile", "grin")),),
    "Mustache": (("beard", ("mustache",)),),
    "Narrow_Eyes": (("eyes", ("squinting",)),),
    "No_Beard": (("beard", ("none", "mustache")),),
    "Oval_Face": (),
    "Pale_Skin": (("skin", ("pale",)),),
    "Pointy_Nose": (),
    "Receding_Hairline": (("hair", ("receding",)),),
    "Rosy_Cheeks": (),
    "Sideburns": (),
    "Smiling": (("mouth", ("smirk", "smile", "grin")),),
    "Straight_Hair": (("hair", ("bob", "straight")),),
    "Wavy_Hair": (("hair", ("waved", "loose", "curly")),),
    "Wearing_Earrings": (),
    "Wearing_Hat": (),
    "Wearing_Lipstick": (),
    "Wearing_Necklace": (),
    "Wearing_Necktie": (("clothes", ("tie",)),),
    "Young": (),
}


class CelebaLike(Painter):
    """Draws cartoon faces; needs python-avatars and resvg-py.

    Each part is drawn once as a layer, and a face is a pile of them: ten times as fast as drawing it whole. It also
    lets every hair have every beard and glasses, which the library's own drawings do not.
    """

    factors = (*(categorical(name, classes) for name, (classes, _, _) in PARTS.items()), *POSE)
    shown = ("hair", "hair colour", "skin", "glasses", "mouth", "beard", "tilt")
    shape = (HEIGHT, WIDTH, 3)

    def __init__(self, recipe: Recipe) -> None:
        self.avatars, self.resvg = _packages()
        self.kept: dict[tuple[int, int, int], tuple[Image.Image, tuple[int, int]]] = {}

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The cartoon with the factors ``values``: uint8 [218, 178, 3]."""
        classes = dict(zip(PARTS, values[: len(PARTS)].astype(int).tolist(), strict=True))
        tilt, scale, right, down, hue, light = values[len(PARTS) :].tolist()
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, light, 0.45))
        canvas = (round(_CANVAS[0] * _DENSITY), round(_CANVAS[1] * _DENSITY))
        face = Image.new("RGBA", canvas, (red, green, blue))
        for number, (name, _, colour) in enumerate(LAYERS):
            key = (number, classes[name], classes[colour] if colour else 0)
            if key not in self.kept:
                self.kept[key] = self._layer(*key)
            face.alpha_composite(*self.kept[key])
        # for each pixel of the image, where it comes from: the pose undone
        angle, grown = np.radians(tilt), _SCALE * scale / _DENSITY
        along, across = np.cos(angle) / grown, np.sin(angle) / grown
        x, y = WIDTH / 2 + right, HEIGHT / 2 + down
        back_x = (along, across, _FACE[0] * _DENSITY - along * x - across * y)
        back_y = (-across, along, _FACE[1] * _DENSITY + across * x - along * y)
        posed = face.convert("RGB").transform(
            (WIDTH, HEIGHT),
            Image.Transform.AFFINE,
            back_x + back_y,
            Image.Resampling.BICUBIC,
            fillcolor=(red, green, blue),
        )
        return np.asarray(posed)

    def _layer(self, number: int, part: int, colour: int) -> tuple[Image.Image, tuple[int, int]]:
        """One part in one colour, cut to what is not transparent, and where its upper left corner lies."""
        name, group, colour_name = LAYERS[number]
        avatars = self.avatars
        chosen = {"style": avatars.AvatarStyle.TRANSPARENT, "top": avatars.HairType.NONE}
        chosen["clothing"] = avatars.ClothingType.NONE  # or it would be random
        for factor, index in ((name, part), (colour_name, colour)):
            if factor:
                names, enumeration, argument = PARTS[factor]
                chosen[argument] = getattr(getattr(avatars, enumeration), list(names.values())[index])
        chosen["facial_hair_color"] = chosen.get("hair_color", avatars.HairColor.BLACK)
        drawing = ElementTree.fromstring(avatars.Avatar(**chosen).render())
        _keep_only(drawing, group)
        content = self.resvg.svg_to_bytes(
            svg_string=ElementTree.tostring(drawing, "unicode"),
            width=round(_CANVAS[0] * _DENSITY),
            skip_system_fonts=True,
        )
        with Image.open(io.BytesIO(content)) as picture:
            layer = picture.convert("RGBA")
        left, top, right, bottom = layer.getbbox() or (0, 0, 1, 1)
        return layer.crop((left, top, right, bottom)), (left, top)


class CelebaFiles(Layout):
    """CelebA's own files: ``img_align_celeba``, ``list_attr_celeba.txt`` and ``list_eval_partition.txt``."""

    products = ("img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt")
    least, most = 3, 999_999  # six digits are all that the names have

    def allocate(self, part: Path, count: int, shape: tuple[int, ...]) -> None:
        """The folder of the images."""
        (part / self.products[0]).mkdir(exist_ok=True)

    def write(self, part: Path, first: int, images: Sequence[Bytes]) -> None:
        """Images as JPEG, numbered from 1."""
        for number, pixels in enumerate(images, start=first + 1):
            Image.fromarray(pixels).save(part / self.products[0] / f"{number:06d}.jpg", quality=QUALITY)

    def finish(self, part: Path, factors: Sequence[Factor], values: Floats) -> None:
        """The attributes and the splits."""
        names = [f"{number:06d}.jpg" for number in range(1, len(values) + 1)]
        marks = [_has(rules, factors, values) for rules in ATTRIBUTES.values()]
        lines = [str(len(names)), " ".join(ATTRIBUTES)]
        for name, row in zip(names, np.stack(marks, 1).tolist(), strict=True):
            lines.append(f"{name} " + " ".join(" 1" if mark else "-1" for mark in row))
        (part / self.products[1]).write_text("\n".join(lines) + "\n")
        test = len(names) - -(-len(names) // TEST_SHARE)
        train = test - -(-test // VALIDATION_SHARE)
        splits = (f"{name} {(number >= train) + (number >= test)}" for number, name in enumerate(names))
        (part / self.products[2]).write_text("\n".join(splits) + "\n")


def _keep_only(drawing: ElementTree.Element, group: str) -> None:
    """Empty ``drawing`` of all that is neither in the element with the id ``group`` nor around it nor a definition."""
    for child in list(drawing):
        if child.get("id") == group or child.tag.endswith("}defs"):
            continue
        if any(one.get("id") == group for one in child.iter()):
            _keep_only(child, group)
        else:
            drawing.remove(child)


def _has(
    rules: Sequence[tuple[str, tuple[str, ...]]], factors: Sequence[Factor], values: Floats
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which images have an attribute: bool [n]."""
    has = np.full(len(values), bool(rules))
    for name, wanted in rules:
        column = next(number for number, factor in enumerate(factors) if factor.name == name)
        classes = factors[column].unit.split("|")
        has &= np.isin(values[:, column], [classes.index(one) for one in wanted])
    return has


def _packages() -> tuple[Any, Any]:
    try:
        import python_avatars
        import resvg_py
    except ImportError as error:
        raise UserError(
            f"drawing cartoon faces needs python-avatars and resvg-py ({error}): pip install -e '.[render]'"
        ) from None
    return python_avatars, resvg_py


PAINTER = CelebaLike
LAYOUT = CelebaFiles()
