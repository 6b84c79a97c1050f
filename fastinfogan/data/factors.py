"""``factors.npz``: what a renderer drew each image from, read without believing it and without unpickling.

The format is told in :mod:`fastinfogan.data.render`: plain arrays, a row for each image in the order of the images.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data.archives import ARRAY_ERRORS
from fastinfogan.data.split import FactorKind, Factors
from fastinfogan.errors import UserError

FILE = "factors.npz"
MAX_BYTES = 1 << 30  # unpacked; a file that claims more is made to fill the memory


def read_factors(path: Path) -> Factors:
    """The factors in the file ``path``. Raises :class:`UserError` for a damaged file or arrays that do not agree."""
    arrays = load_arrays(path, ("names", "kinds", "low", "high", "values"))
    names, kinds = (tuple(arrays[key].tolist()) for key in ("names", "kinds"))
    values, low, high = (arrays[key] for key in ("values", "low", "high"))
    one_each = {array.shape for array in (arrays["names"], arrays["kinds"], low, high)} == {values.shape[1:]}
    typed = all(array.dtype.kind in ("U" if key in ("names", "kinds") else "fiu") for key, array in arrays.items())
    if values.ndim != 2 or not one_each or not typed:
        shapes = ", ".join(f"{key} {array.dtype} {list(array.shape)}" for key, array in arrays.items())
        raise UserError(f"{path} holds {shapes}, expected k names and values float32 [n, k]: render the set again")
    if not set(kinds) <= set(get_args(FactorKind)) or not np.isfinite(values).all():
        raise UserError(
            f"{path} holds the kinds {', '.join(sorted(set(map(str, kinds))))}, expected "
            f"{', '.join(get_args(FactorKind))} with finite values: render the set again"
        )
    for name, kind, most, classes in zip(names, kinds, high, values.T, strict=True):
        strange = classes[(classes % 1 != 0) | (classes < 0) | ~(classes <= most)]
        if kind == "categorical" and len(strange):
            raise UserError(
                f"{path} holds the class {strange[0]:g} of {name!r}, expected whole numbers from 0 to {most:g}: "
                f"render the set again"
            )
    table = torch.from_numpy(values.astype(np.float32))
    return Factors(names, kinds, table, tuple(low.tolist()), tuple(high.tolist()))


def factors_of(folder: Path, n: int) -> Factors | None:
    """The factors that lie beside ``n`` images in ``folder``, None where no such file does.

    Raises :class:`UserError` when there are more or fewer of them than images.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    factors = read_factors(path)
    if len(factors) != n:
        raise UserError(
            f"{path} describes {len(factors):,} images but {n:,} lie beside it: render the set again, or delete "
            f"{FILE} to go on without factors"
        )
    return factors


def write_factors(path: Path, factors: Factors) -> None:
    """``factors`` as the file ``path``, in the renderers' format."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(factors.names),
            kinds=np.array(factors.kinds),
            low=np.array(factors.low, np.float32),
            high=np.array(factors.high, np.float32),
            values=factors.values.numpy(),
        )


def load_arrays(path: Path, keys: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """The arrays ``keys`` of the npz file ``path``; no pickle in it is ever loaded.

    Raises :class:`UserError` when it is damaged, lacks one of them, or holds Python objects where one should be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if missing := [key for key in keys if f"{key}.npy" not in sizes]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            if (size := sum(sizes[f"{key}.npy"] for key in keys)) > MAX_BYTES:
                raise ValueError(f"it claims {size:,} bytes")
            arrays: dict[str, npt.NDArray[Any]] = {}
            for key in keys:  # np.load would give the bytes of a member that is no array
                with archive.open(f"{key}.npy") as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays
    except ARRAY_ERRORS as error:
        raise UserError(
            f"{path} of {path.stat().st_size:,} bytes is not a whole npz file of plain arrays ({error}): get it again"
        ) from None
