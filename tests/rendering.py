"""What the renderers need of the machine; a test that lacks it is skipped, and says what to install."""

from __future__ import annotations

from functools import cache

import pytest

from fastinfogan.data.render import mesh
from fastinfogan.errors import UserError

PACKAGES = {"faces": ["moderngl"], "chairs": ["moderngl"], "celeba-like": ["python_avatars", "resvg_py"]}


def require(renderer: str) -> None:
    """Skip the test unless ``renderer`` can draw here."""
    for package in PACKAGES.get(renderer, []):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[render]'")
    if renderer in ("faces", "chairs") and (lacking := _no_opengl()):
        pytest.skip(lacking)


@cache
def _no_opengl() -> str:
    try:
        mesh.Scene(4, zoom=1, ambient=0, background=0, closed=True)
    except UserError as error:
        return str(error)
    return ""
