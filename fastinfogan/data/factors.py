"""``factors.npz``: what a renderer drew each image from, written, and read without belief and without unpickling.

The format is told in :mod:`fastinfogan.data.render`: plain arrays, a row for each image in the order of the images.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data.archives import ARRAY_ERRORS
from fastinfogan.data.split import FactorKind, Factors
from fastinfogan.errors import UserError
from fastinfogan.files import write_whole

FILE = "factors.npz"
_TEXTS = ("names", "kinds", "units")
MAX_BYTES = 1 << 30  # unpacked; a file that claims more is made to fill the memory


def read_factors(path: Path) -> Factors:
    """The factors in the file ``path``. Raises :class:`UserError` for a damaged file or arrays that do not agree.

    ``units`` may be absent: files of earlier versions beside shards have none.
    """
    arrays = load_arrays(path, ("names", "kinds", "low", "high", "values"), optional=("units",))
    values, low, high = (arrays[key] for key in ("values", "low", "high"))
    one_each = {array.shape for key, array in arrays.items() if key != "values"} == {values.shape[1:]}
    typed = all(array.dtype.kind in ("U" if key in _TEXTS else "fiu") for key, array in arrays.items())
    if values.ndim != 2 or not one_each or not typed:
        shapes = ", ".join(f"{key} {array.dtype} {list(array.shape)}" for key, array in arrays.items())
        raise UserError(f"{path} holds {shapes}, expected k names and values float32 [n, k]: render the set again")
    names, kinds, units = (tuple(arrays[key].tolist()) if key in arrays else () for key in _TEXTS)
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
    return Factors(names, kinds, table, tuple(low.tolist()), tuple(high.tolist()), units)


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
    """``factors`` as the file ``path``."""
    arrays = {
        "names": np.array(factors.names),
        "kinds": np.array(factors.kinds),
        "units": np.array(factors.units or ("",) * len(factors.names)),
        "low": np.array(factors.low, np.float32),
        "high": np.array(factors.high, np.float32),
        "values": factors.values.numpy(),
    }
    write_npz(path, arrays)


def write_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """``arrays`` as a compressed npz whose bytes do not depend on the time, as those of ``np.savez_compressed`` do."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as inside:
                np.lib.format.write_array(inside, np.asanyarray(array), allow_pickle=False)
    write_whole(path, content.getvalue())


def load_arrays(path: Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, npt.NDArray[Any]]:
    """The arrays ``keys`` of the npz file ``path``, and those of ``optional`` that it has; no pickle is ever loaded.

    Raises :class:`UserError` when it is damaged, lacks one of them, or holds Python objects where one should be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if missing := [key for key in keys if f"{key}.npy" not in sizes]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            keys = (*(key for key in optional if f"{key}.npy" in sizes), *keys)
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
