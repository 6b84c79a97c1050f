"""Image sets with exact ground truth, drawn here: ``python -m fastinfogan.data render NAME --count N --out DIR``.

Image i of a set is a function of (seed, i) alone, whatever the count, the number of processes or an interruption in
between; but all 737,280 sprites come in the published order. What lies in ``DIR`` once all of it is complete:

==============  ===================================================================================================
every renderer  ``factors.npz``, ``contact.png``, and ``render.json`` with the name, count, seed and size
faces, chairs   ``images.npy``: uint8 [n, H, W], C order, read with ``np.load(path, mmap_mode="r")``
celeba-like     ``img_align_celeba/000001.jpg ...`` (178 x 218), ``list_attr_celeba.txt``, ``list_eval_partition.txt``
svhn-like       ``train_32x32.mat`` and ``test_32x32.mat``: the last quarter of the images is the test split
sprites         ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``
==============  ===================================================================================================

``factors.npz`` holds plain arrays, so that ``np.load(path)`` needs no pickle, with row i about image i (numbered from
0; of svhn-like the training images come first):

- ``names``: str [k]; ``kinds``: str [k], each ``continuous``, ``circular`` or ``categorical``; ``units``: str [k],
  ``degrees`` for angles, empty for ratios and sliders, the classes separated by ``|`` for a categorical factor;
- ``low``, ``high``: float32 [k], the range a factor is drawn from; ``high - low`` is the period of a circular one;
- ``values``: float32 [n, k]; the class number, counted from 0, of a categorical factor.

There is no split inside ``images.npy``: a reader who needs one takes the last rows, or renders another seed.
:class:`fastinfogan.data.render.sprites.Sprites` makes batches of sprites on the device without any file.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from fastinfogan.data.render.chair_models import model_files
from fastinfogan.data.render.output import produce
from fastinfogan.data.render.painter import Recipe
from fastinfogan.errors import UserError

RenderName = Literal["faces", "chairs", "celeba-like", "svhn-like", "sprites"]
NAMES: tuple[str, ...] = get_args(RenderName)

__all__ = ["NAMES", "RenderName", "render"]


def render(
    name: str,
    *,
    count: int,
    seed: int,
    out: Path,
    size: int | None = None,
    models: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw ``count`` images of the set ``name`` into the folder ``out``, in the files listed above.

    ``size`` is the side in pixels where the renderer has a choice (faces and chairs: 32 or 64), ``models`` a folder of
    chair models, ``workers`` the number of processes, one per core where none is given. An interrupted command goes on
    where it stopped; a folder that holds the finished set already is left as it is. Returns the path of the contact
    sheet. Raises :class:`UserError` for a value out of range, a package or system library that is missing, or a folder
    that holds something else.
    """
    if name not in NAMES:
        raise UserError(f"unknown renderer {name!r}: choose one of {', '.join(NAMES)}")
    renderer = import_module(f"fastinfogan.data.render.{name.replace('-', '_')}")
    sizes = renderer.SIZES
    size = sizes[0] if size is None else size
    least, most = renderer.LAYOUT.least, renderer.LAYOUT.most
    if not least <= count <= most:
        raise UserError(f"--count {count:,} is out of range: {name} takes from {least} to {most:,} images")
    if not 0 <= seed < 1 << 64:
        raise UserError(f"--seed {seed} is out of range: choose a whole number from 0 to 2**64 - 1")
    if size not in sizes:
        raise UserError(f"--size {size} is not drawn: {name} takes {' or '.join(map(str, sizes))} pixels a side")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} is too few: choose 1 or more")
    if models is not None and name != "chairs":
        raise UserError(f"--models {models} is for chairs: drop it, or render chairs")
    recipe = Recipe(name, count, seed, size)
    if models is not None:
        recipe = replace(recipe, models=str(models.absolute()), model_files=model_files(models))
    return produce(recipe, renderer.PAINTER, renderer.LAYOUT, out, workers=workers, progress=progress)
