"""Grey chairs in 3D, in place of the paper's rendered chairs: rotation and width, Figure 4's factors, exactly.

The chairs are put together here in ten styles, or come from a folder of 3D models. As in the published set they stand
on white and are seen from somewhat above, all around.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastinfogan.data.render.chair_models import find_models
from fastinfogan.data.render.chair_shapes import STYLES, Measures, chair
from fastinfogan.data.render.mesh import Mesh, Scene, towards, turned
from fastinfogan.data.render.output import Layout
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe, categorical

SIZES = (64, 32)
LAYOUT = Layout()
LIGHT, AMBIENT = towards(-35, 50), 0.3
MIDDLE = 1.06  # height of the image's middle above the floor, in usual seat heights

VIEW = (
    Factor("azimuth", "circular", 0, 360, "degrees"),
    Factor("elevation", "continuous", 10, 35, "degrees"),
    Factor("width", "continuous", 0.7, 1.4),
    Factor("height", "continuous", 0.75, 1.1),
    Factor("tone", "continuous", 0.2, 0.85),
)
DETAILS = (
    Factor("back", "continuous", 0.85, 1.15),
    Factor("depth", "continuous", 0.85, 1.15),
    Factor("thickness", "continuous", 0.8, 1.4),
    Factor("slant", "continuous", 2, 16, "degrees"),
)


class Chairs(Painter):
    """Draws chairs, put together here or from the models that the recipe names; needs moderngl and EGL."""

    shown = ("azimuth", "elevation", "width", "height", "style")

    def __init__(self, recipe: Recipe) -> None:
        self.shape = (recipe.size, recipe.size)
        self.models = find_models(Path(recipe.models)) if recipe.models else ()
        # a model has its own details
        self.factors = (
            (*VIEW, categorical("style", (model.name for model in self.models)))
            if self.models
            else (*VIEW, categorical("style", STYLES), *DETAILS)
        )
        # triangles of models face either way
        self.scene = Scene(recipe.size, zoom=0.59, ambient=AMBIENT, background=1.0, closed=not self.models)

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The chair with the factors ``values``, in front of white; at azimuth 0 it faces the camera."""
        azimuth, elevation, width, height, tone, style, *details = values.tolist()
        if self.models:
            positions, triangles = self.models[int(style)].mesh
            positions = positions * np.array([width, height, 1], np.float32)
        else:
            positions, triangles = chair(list(STYLES)[int(style)], Measures(width, height, *details))
            positions -= np.array([0, MIDDLE, 0], np.float32)
        albedo = np.full(len(positions), tone, np.float32)
        return self.scene.draw(Mesh(positions, albedo, triangles), turned(azimuth, elevation), LIGHT)


PAINTER = Chairs
