"""Rendered sets in published formats: read by the loaders of the published files, with labels that are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rendering import require
from scipy.io import loadmat

from fastinfogan.data import open_split
from fastinfogan.data.celeba import celeba_attributes
from fastinfogan.data.factors import read_factors
from fastinfogan.data.render import celeba_like, render, sprites, svhn_like
from fastinfogan.data.render.painter import Recipe, picture
from fastinfogan.data.render.sprites import Sprites
from fastinfogan.data.split import Decoded


def test_svhn_like_is_read_as_svhn_with_the_digits_as_labels(tmp_path: Path) -> None:
    render("svhn-like", count=41, seed=1, out=tmp_path / "svhn", progress=False)
    digits = read_factors(tmp_path / "svhn" / "factors.npz").values[:, 0].long()
    parts = [open_split("svhn", tmp_path, split, (3, 32, 32)) for split in ("train", "test")]
    assert all(isinstance(part, Decoded) for part in parts)
    assert [len(part) for part in parts] == [30, 11]
    assert (torch.cat([part.labels for part in parts]) == digits).all()
    assert 0 in digits  # which the file calls 10
    painter = svhn_like.SvhnLike(Recipe("svhn-like", 41, 1, 32))
    for number, part in ((2, parts[0]), (30, parts[1])):
        assert (part.pixels[number - 30 * (number >= 30)].numpy() == picture(painter, 1, number).pixels).all()


def test_svhn_like_files_are_laid_out_as_published(tmp_path: Path) -> None:
    render("svhn-like", count=40, seed=1, out=tmp_path, progress=False)
    content = loadmat(tmp_path / "train_32x32.mat")
    assert content["X"].shape == (32, 32, 3, 30) and content["X"].dtype == np.uint8
    assert content["y"].shape == (30, 1) and content["y"].dtype == np.uint8
    assert set(content["y"].flatten()) <= set(range(1, 11)) and 10 in content["y"]


def test_the_digit_in_the_middle_stands_out_of_every_plate() -> None:
    painter = svhn_like.SvhnLike(Recipe("svhn-like", 1, 0, 32))
    for number in range(40):
        alone = {"left": 0.0, "right": 0.0, "light": 0.0, "blur": 0.2, "tilt": 0.0, "across": 0.0, "down": 0.0}
        pixels = picture(painter, 0, number, **alone).pixels.astype(float).mean(2)
        plate = pixels[:2].mean()
        assert np.abs(pixels[6:26, 8:24] - plate).max() > 45


@pytest.mark.parametrize(("factor", "side"), [("left", slice(0, 9)), ("right", slice(23, 32))])
def test_distractors_stand_on_their_side(factor: str, side: slice) -> None:
    painter = svhn_like.SvhnLike(Recipe("svhn-like", 1, 0, 32))
    upright = {"tilt": 0.0, "across": 0.0, "down": 0.0, "scale": 0.8, "font": 0.0, "left": 0.0, "right": 0.0}
    without = picture(painter, 2, 5, **upright).pixels.astype(float)
    with_one = picture(painter, 2, 5, **(upright | {factor: 9.0})).pixels.astype(float)
    changed = np.abs(with_one - without).max((0, 2)) > 20
    assert changed[side].sum() >= 3 and not np.delete(changed, np.arange(32)[side]).any()


def test_a_plate_is_lit_shifted_and_tilted_as_its_factors_say() -> None:
    painter = svhn_like.SvhnLike(Recipe("svhn-like", 1, 0, 32))
    level = dict.fromkeys(("left", "right", "font", "light", "tilt", "across", "down"), 0.0) | {"digit": 1.0}

    def drawn(**changed: float) -> np.ndarray:
        return picture(painter, 2, 5, **(level | {"scale": 1.0} | changed)).pixels.astype(float).mean(2)

    plain = drawn()
    lit = (drawn(light=1.0) / plain).mean(0)
    assert lit[:4].max() < 0.7 and lit[-4:].min() > 1.3  # from the right
    assert np.abs(drawn(across=2.0, down=-2.0)[4:26, 6:28] - plain[6:28, 4:26]).mean() < 5  # the noise
    ink = np.abs((tilted := drawn(tilt=12.0)) - tilted[:2].mean()) > 20
    top, foot = (rows.sum(0) @ np.arange(32) / rows.sum() for rows in (ink[6:13], ink[19:26]))
    assert top > foot + 1.5  # leans to the right


def test_sprites_are_read_as_dsprites(tmp_path: Path) -> None:
    render("sprites", count=50, seed=1, out=tmp_path / "dsprites", progress=False)
    opened = open_split("dsprites", tmp_path, "train", (1, 64, 64))
    assert isinstance(opened, Decoded) and opened.factors is not None
    classes = opened.factors.values.long()
    assert opened.factors.names == ("shape", "scale", "orientation", "x", "y")
    numbers = torch.from_numpy(np.ravel_multi_index(tuple(classes.T.numpy()), sprites.CLASSES))
    assert len(set(numbers.tolist())) == 50  # none twice
    assert (opened.pixels == Sprites("cpu").at(numbers)).all()


def test_latents_of_sprites_mean_what_is_published(tmp_path: Path) -> None:
    render("sprites", count=50, seed=1, out=tmp_path, progress=False)
    content = np.load(tmp_path / sprites.FILE, allow_pickle=False)
    assert content["imgs"].dtype == np.uint8 and set(np.unique(content["imgs"])) == {0, 1}
    classes, values = content["latents_classes"], content["latents_values"]
    assert content["latents_sizes"].tolist() == [1, 3, 6, 40, 32, 32] and content["latents_names"][3] == "orientation"
    assert (classes[:, 0] == 0).all() and (values[:, 0] == 1).all()
    assert np.allclose(values[:, 1], classes[:, 1] + 1)
    assert np.allclose(values[:, 2], 0.5 + classes[:, 2] / 10)
    assert np.allclose(values[:, 3], classes[:, 3] * 2 * np.pi / 39)
    assert np.allclose(values[:, 4:], classes[:, 4:] / 31)
    own = read_factors(tmp_path / "factors.npz").values.numpy()
    assert np.allclose(own, np.column_stack([classes[:, 1], values[:, 2], np.degrees(values[:, 3]), values[:, 4:]]))


def test_the_whole_set_of_sprites_is_in_the_published_order() -> None:
    painter = sprites.SpritePainter(Recipe("sprites", sprites.ALL, 9, 64))
    shape, scale, orientation, x, y = painter.values(245_760 + 40_960 + 1024 + 32 + 1, np.random.default_rng()).tolist()
    assert (shape, round(scale, 4), round(orientation, 3)) == (1, 0.6, round(360 / 39, 3))
    assert (round(x * 31), round(y * 31)) == (1, 1)
    assert (sprites.SpritePainter(Recipe("sprites", 20, 9, 64)).numbers[:9] != np.arange(9)).any()


def test_a_shifted_sprite_is_the_one_drawn_where_it_stands() -> None:
    numbers = torch.randint(0, sprites.ALL, (60,), generator=torch.Generator().manual_seed(0))
    numbers[:2] = torch.tensor([0, sprites.ALL - 1])
    drawn = Sprites("cpu").at(numbers)
    assert drawn.shape == (60, 64, 64, 1) and drawn.dtype == torch.uint8 and drawn.is_contiguous()
    across, down = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    classes = np.unravel_index(numbers.numpy(), sprites.CLASSES)
    for image, shape, scale, orientation, x, y in zip(drawn, *classes, strict=True):
        angle, size = 2 * np.pi * (orientation % 39) / 39, 0.5 + scale / 10
        u, v = across - 16 - x, down - 16 - y
        turned = (np.cos(angle) * u + np.sin(angle) * v) / size, (np.cos(angle) * v - np.sin(angle) * u) / size
        inside = sprites._inside(sprites.SHAPES[shape], *turned)
        assert (image[:, :, 0].numpy() != 255 * inside).sum() <= 2  # a pixel's middle may lie on the outline


def test_no_sprite_is_cut_off_and_the_last_orientation_is_the_first() -> None:
    drawn = sprites.bases()
    assert drawn.shape == (720, 64, 64) and set(np.unique(drawn)) == {0, 255}
    rows, columns = (np.flatnonzero(drawn.any(axes)) for axes in ((0, 2), (0, 1)))
    assert min(rows[0], columns[0]) >= 16 and max(rows[-1], columns[-1]) <= 47
    turns = drawn.reshape(18, 40, 64, 64)
    assert (turns[:, 0] == turns[:, 39]).all()
    areas = (turns > 0).sum((2, 3))
    mean = areas.mean(1, keepdims=True)
    assert (np.abs(areas - mean) < 0.5 * 4 * np.sqrt(mean)).all()  # turning keeps it, to half a pixel of outline
    grown = areas.mean(1).reshape(3, 6)
    assert np.allclose(grown / grown[:, -1:], (np.linspace(0.5, 1, 6) ** 2)[None], atol=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sprites_on_the_gpu_are_those_on_the_cpu_and_nothing_waits() -> None:
    held = Sprites("cuda")
    numbers = torch.randint(0, sprites.ALL, (256,), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = held.at(numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (images.cpu() == Sprites("cpu").at(numbers.cpu())).all()


@pytest.fixture(scope="module")
def cartoons() -> object:
    require("celeba-like")
    return celeba_like.CelebaLike(Recipe("celeba-like", 1, 0, 218))


@pytest.fixture(scope="module")
def celeba(cartoons: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("celeba")
    render("celeba-like", count=40, seed=1, out=root / "celeba", progress=False)
    return root


def test_celeba_like_is_read_as_celeba(celeba: Path) -> None:
    train, test = (open_split("celeba", celeba, split, (3, 32, 32)) for split in ("train", "test"))
    assert [len(train), len(test)] == [36, 4] and train.names[0].endswith("000001.jpg")
    from PIL import Image

    with Image.open(celeba / "celeba" / "img_align_celeba" / "000001.jpg") as image:
        assert image.size == (178, 218) and image.format == "JPEG" and image.mode == "RGB"
    splits = [line.split()[1] for line in (celeba / "celeba" / "list_eval_partition.txt").read_text().splitlines()]
    assert splits == ["0"] * 32 + ["1"] * 4 + ["2"] * 4


def test_attributes_follow_from_the_factors(celeba: Path) -> None:
    folder = celeba / "celeba"
    names, marks = celeba_attributes(folder / "list_attr_celeba.txt", [f"{i:06d}.jpg" for i in range(1, 41)])
    factors = read_factors(folder / "factors.npz")
    units = np.load(folder / "factors.npz")["units"]
    column = dict(zip(factors.names, range(len(factors.names)), strict=True))
    said = [
        {name: str(units[k]).split("|")[int(row[k])] for name, k in column.items() if units[k] and "|" in str(units[k])}
        for row in factors.values
    ]
    mark = {name: marks[:, number] == 1 for number, name in enumerate(names)}
    assert len(names) == 40 and names[0] == "5_o_Clock_Shadow" and names[-1] == "Young"
    for number, one in enumerate(said):
        assert mark["Bald"][number] == (one["hair"] == "bald")
        assert mark["Eyeglasses"][number] == (one["glasses"] != "none")
        assert mark["Smiling"][number] == (one["mouth"] in ("smirk", "smile", "grin"))
        assert mark["Mustache"][number] == (one["beard"] == "mustache")
        assert mark["No_Beard"][number] == (one["beard"] in ("none", "mustache"))
        haired = one["hair"] not in ("bald", "receding")
        assert mark["Blond_Hair"][number] == (one["hair colour"] == "blond" and haired)
    assert mark["Black_Hair"].any() and mark["Bald"].any() and not mark["Young"].any()
    colours = mark["Black_Hair"].astype(int) + mark["Blond_Hair"] + mark["Brown_Hair"] + mark["Gray_Hair"]
    assert colours.max() == 1


@pytest.mark.parametrize("hair", range(len(celeba_like.HAIR)))
def test_every_hair_lets_beard_and_glasses_be_seen(hair: int, cartoons: celeba_like.CelebaLike) -> None:
    # drawn whole, python-avatars leaves the beard out for some hairs: its label would lie
    plain = picture(cartoons, 0, 0, hair=hair, beard=0, glasses=0).pixels.astype(int)
    for factor, classes in (("beard", celeba_like.BEARDS), ("glasses", celeba_like.GLASSES)):
        for number in range(1, len(classes)):
            changed = picture(cartoons, 0, 0, hair=hair, **({"beard": 0, "glasses": 0} | {factor: number})).pixels
            assert (np.abs(changed - plain).max(2) > 25).sum() > 150, (factor, number)


def test_layers_make_the_drawing_that_the_library_makes_whole(cartoons: celeba_like.CelebaLike) -> None:
    import io

    from PIL import Image

    avatars = cartoons.avatars
    drawing = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=avatars.HairType.SHORT_FLAT,
        hair_color=avatars.HairColor.BROWN,
        facial_hair=avatars.FacialHairType.BEARD_MEDIUM,
        facial_hair_color=avatars.HairColor.BROWN,
        skin_color=avatars.SkinColor.LIGHT,
        accessory=avatars.AccessoryType.ROUND,
        mouth=avatars.MouthType.SMILE,
        eyes=avatars.EyeType.DEFAULT,
        eyebrows=avatars.EyebrowType.DEFAULT_NATURAL,
        nose=avatars.NoseType.SMALL,
        clothing=avatars.ClothingType.HOODIE,
        clothing_color=avatars.ClothingColor.BLUE_03,
    ).render()
    content = cartoons.resvg.svg_to_bytes(svg_string=drawing, skip_system_fonts=True, width=290)
    with Image.open(io.BytesIO(content)) as picture_:
        whole = picture_.convert("RGBA")
    classes = {"hair": 3, "hair colour": 1, "beard": 3, "skin": 1, "glasses": 1, "mouth": 4, "clothes colour": 1}
    piled = Image.new("RGBA", whole.size)
    for number, (name, _, colour) in enumerate(celeba_like.LAYERS):
        piled.alpha_composite(*cartoons._layer(number, classes.get(name, 0), classes.get(colour, 0)))
    difference = np.abs(np.asarray(whole).astype(int) - np.asarray(piled)).max(2)
    assert (difference > 24).mean() < 0.005  # seams of antialiased edges


def test_the_pose_of_a_cartoon_is_where_it_says(cartoons: celeba_like.CelebaLike) -> None:
    level = {"tilt": 0.0, "scale": 1.0, "right": 0.0, "down": 0.0, "hair": 0.0}
    base = picture(cartoons, 0, 3, **level).pixels.astype(int)
    moved = picture(cartoons, 0, 3, **(level | {"right": 6.0, "down": -5.0})).pixels.astype(int)
    assert np.abs(moved[20:150, 40:150] - base[25:155, 34:144]).mean() < 1
    face = (np.abs(base - base[0, 0]).max(2) > 30)[:100]
    grown = (
        np.abs((big := picture(cartoons, 0, 3, **(level | {"scale": 1.1})).pixels.astype(int)) - big[0, 0]).max(2) > 30
    )
    assert 1.05 < grown[:100].any(0).sum() / face.any(0).sum() < 1.2
    tilted = [picture(cartoons, 0, 3, **(level | {"tilt": tilt})).pixels.astype(int) for tilt in (-14.0, 14.0)]
    tops = [(np.abs(one - one[0, 0]).max(2) > 30)[:60].sum(0) @ np.arange(178) for one in tilted]
    weights = [(np.abs(one - one[0, 0]).max(2) > 30)[:60].sum() for one in tilted]
    assert tops[0] / weights[0] < tops[1] / weights[1] - 10  # a positive tilt leans the head to the right
