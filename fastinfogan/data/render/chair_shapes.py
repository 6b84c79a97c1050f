"""Ten styles of chair, put together from bars, plates and discs.

Lengths are in seat heights. x is to the right of who sits there, y up from the floor, z to the front; the seat's middle
stands over the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fastinfogan.data.render.painter import Floats

Point = tuple[float, float, float]
Doubles = npt.NDArray[np.float64]

_SIDES = 8  # of what is round: a leg is two pixels wide
_CORNERS = np.array([(x, y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], float) / 2


@dataclass(frozen=True)
class Measures:
    """What differs within a style: ``width`` and ``height`` as ratios to the usual chair, ``back``, ``depth`` and
    ``thickness`` likewise for the back's height, the seat's depth and the legs; ``slant`` of the back in degrees."""

    width: float
    height: float
    back: float
    depth: float
    thickness: float
    slant: float


@dataclass
class _Frame:
    """A chair while it is built, and the lengths that all styles share."""

    measures: Measures
    points: list[Doubles] = field(default_factory=list)
    triangles: list[npt.NDArray[np.int32]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        m = self.measures
        self.half_width, self.half_depth = 0.5 * m.width, 0.48 * m.depth
        self.seat, self.rise = m.height, 0.9 * m.back * m.height
        self.leg = 0.085 * m.thickness
        self.lean = np.tan(np.radians(m.slant))

    def add(self, points: Doubles, triangles: npt.NDArray[np.int64]) -> None:
        self.points.append(points)
        self.triangles.append((triangles + self.count).astype(np.int32))
        self.count += len(points)

    def prism(self, start: Point, end: Point, outline: Doubles, end_scale: float = 1.0) -> None:
        """The convex ``outline`` [n, 2] drawn from ``start`` to ``end``, closed at both, with flat sides."""
        axis = np.subtract(end, start)
        axis = axis / np.linalg.norm(axis)
        side = np.cross((0.0, 0.0, 1.0) if abs(axis[2]) < 0.9 else (0.0, 1.0, 0.0), axis)
        side /= np.linalg.norm(side)
        flat = outline[:, :1] * side + outline[:, 1:] * np.cross(axis, side)
        n = len(outline)
        ring = np.arange(n)
        following = np.roll(ring, -1)
        walls = np.concatenate(
            [np.stack([ring, following, following + n], 1), np.stack([ring, following + n, ring + n], 1)]
        )
        fan = np.stack([np.zeros(n - 2, int), ring[1:-1], ring[2:]], 1)
        points = np.concatenate([flat + start, flat * end_scale + end])
        self.add(points, np.concatenate([walls, fan[:, ::-1], fan + n]))

    def bar(self, start: Point, end: Point, thickness: float, end_scale: float = 1.0, *, round: bool = True) -> None:
        """A rod, tapered to ``end_scale``."""
        self.prism(start, end, (_circle(_SIDES) if round else _CORNERS) * thickness, end_scale)

    def plate(self, middle: Point, size: Point) -> None:
        """A box along the axes."""
        (x, y, z), (width, height, depth) = middle, size
        outline = _CORNERS * (width, depth)
        self.prism((x, y - height / 2, z), (x, y + height / 2, z), outline)

    def disc(self, middle: Point, radius: float, height: float) -> None:
        """A round plate that lies flat."""
        x, y, z = middle
        self.prism((x, y - height / 2, z), (x, y + height / 2, z), _circle(16) * 2 * radius)

    def behind(self, share: float, x: float = 0.0) -> Point:
        """The point of the back's plane at ``share`` of its height and ``x`` from its middle."""
        up = share * self.rise
        return (x, self.seat + up, -self.half_depth + self.leg / 2 - up * self.lean)

    def legs(self, spread: float = 0.0) -> None:
        """Four tapered legs, which stand ``spread`` farther out on the floor than at the seat."""
        x, z = self.half_width - self.leg / 2, self.half_depth - self.leg / 2
        for sx in (-1, 1):
            for sz in (-1, 1):
                top, foot = (sx * x, self.seat, sz * z), (sx * (x + spread), 0.0, sz * (z + spread))
                self.bar(top, foot, self.leg, 0.7)

    def cushion(self, height: float = 0.09) -> None:
        """The seat."""
        self.plate((0, self.seat, 0), (2 * self.half_width, height, 2 * self.half_depth))

    def posts(self, top: float = 1.0) -> None:
        """The two uprights of a back."""
        for side in (-1, 1):
            x = side * (self.half_width - self.leg / 2)
            self.bar(self.behind(0, x), self.behind(top, x), self.leg)

    def rail(self, share: float, height: float) -> None:
        """A board across the back."""
        x, y, z = self.behind(share)
        self.plate((x, y, z), (2 * self.half_width, height, 0.6 * self.leg + 0.02))

    def panel(self, bottom: float, top: float, thickness: float = 0.07, share: float = 1.0) -> None:
        """A board that fills the back between two heights, over ``share`` of its width."""
        outline = _CORNERS * (2 * self.half_width * share, thickness)
        self.prism(self.behind(bottom), self.behind(top), outline)

    def arms(self) -> None:
        """Two arm rests on posts."""
        height = 0.42
        for side in (-1, 1):
            x, y = side * self.half_width, self.seat + height * self.measures.height
            front = (x, y, self.half_depth * 0.8)
            self.bar((x, y, self.behind(height / 0.9)[2]), front, self.leg, round=False)
            self.bar(front, (x, self.seat, self.half_depth * 0.8), self.leg)


def _slats(frame: _Frame) -> None:
    frame.legs()
    frame.cushion()
    frame.posts()
    frame.rail(1.0, 0.14)
    for x in np.linspace(-0.6, 0.6, 4) * frame.half_width:
        frame.bar(frame.behind(0, x), frame.behind(1, x), 0.09, round=False)


def _ladder(frame: _Frame) -> None:
    frame.legs()
    frame.cushion()
    frame.posts(1.05)
    for share in (0.35, 0.66, 0.97):
        frame.rail(share, 0.13)


def _panel(frame: _Frame) -> None:
    frame.legs(0.04)
    frame.cushion()
    frame.panel(0.0, 1.0)


def _spindles(frame: _Frame) -> None:
    frame.legs(0.14)
    frame.disc((0, frame.seat, 0), max(frame.half_width, frame.half_depth), 0.1)
    bow = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, np.pi, 9)]
    arch = [frame.behind(0.55 + 0.5 * up, across * frame.half_width * 0.95) for across, up in bow]
    arch = [frame.behind(0, 0.85 * frame.half_width), *arch, frame.behind(0, -0.85 * frame.half_width)]
    for start, end in pairwise(arch):
        frame.bar(start, end, 0.08)
    for across in np.linspace(-0.65, 0.65, 5):
        top = 0.55 + 0.5 * np.sqrt(1 - across**2)
        frame.bar(frame.behind(0, 0.8 * across * frame.half_width), frame.behind(top, across * frame.half_width), 0.045)


def _armchair(frame: _Frame) -> None:
    frame.legs()
    frame.cushion(0.16)
    frame.panel(0.12, 1.0, 0.12)
    frame.posts(0.9)
    frame.arms()


def _club(frame: _Frame) -> None:
    frame.seat *= 0.85
    frame.half_width *= 1.2
    frame.plate((0, 0.52 * frame.seat, 0), (2 * frame.half_width, 0.8 * frame.seat, 2 * frame.half_depth))
    frame.cushion(0.2)
    frame.panel(-0.6, 0.8, 0.26)
    for side in (-1, 1):
        x = side * (frame.half_width + 0.05)
        frame.plate((x, 0.75 * frame.seat, 0.05), (0.24, 1.26 * frame.seat, 2 * frame.half_depth + 0.1))


def _swivel(frame: _Frame) -> None:
    frame.bar((0, 0.16, 0), (0, frame.seat, 0), 0.13)
    reach = 0.5 * (frame.half_width + frame.half_depth)
    for angle in np.arange(5) * 2 * np.pi / 5 + np.pi / 2:
        foot = (1.05 * reach * np.cos(angle), 0.07, 1.05 * reach * np.sin(angle))
        frame.bar((0, 0.2, 0), foot, 0.1, 0.7)
        frame.disc((foot[0], 0.04, foot[2]), 0.06, 0.08)
    frame.cushion(0.15)
    frame.bar(frame.behind(-0.05), frame.behind(0.5), 0.1)
    frame.panel(0.3, 1.05, 0.12, 0.85)


def _cantilever(frame: _Frame) -> None:
    frame.cushion(0.07)
    frame.panel(0.35, 1.0, 0.06)
    for side in (-1, 1):
        x = side * (frame.half_width - frame.leg / 2)
        path = [frame.behind(1, x), frame.behind(0, x), (x, frame.seat, frame.half_depth)]
        path += [(x, 0.05, frame.half_depth), (x, 0.05, -frame.half_depth)]
        for start, end in pairwise(path):
            frame.bar(start, end, 0.8 * frame.leg)
    ends = [(side * (frame.half_width - frame.leg / 2), 0.05, -frame.half_depth) for side in (-1, 1)]
    frame.bar(ends[0], ends[1], 0.8 * frame.leg)


def _rocking(frame: _Frame) -> None:
    frame.legs(0.03)
    frame.cushion()
    frame.posts(1.1)
    frame.rail(1.02, 0.18)
    for x in np.linspace(-0.55, 0.55, 5) * frame.half_width:
        frame.bar(frame.behind(0, x), frame.behind(1.02, x), 0.05)
    frame.arms()
    swing = np.linspace(-1.75, 1.45, 9) * frame.half_depth
    for side in (-1, 1):
        x = side * (frame.half_width - frame.leg / 2 + 0.03)
        runner = [(x, 0.16 * (z / frame.half_depth) ** 2 - 0.06, z) for z in swing]
        for start, end in pairwise(runner):
            frame.bar(start, end, 0.09, round=False)


def _bar(frame: _Frame) -> None:
    frame.seat *= 1.4
    frame.half_width *= 0.85
    frame.half_depth *= 0.85
    frame.rise *= 0.45
    frame.legs(0.12)
    frame.cushion(0.12)
    frame.panel(0.25, 1.0, 0.08)
    frame.posts(0.9)
    out = 0.07
    x, z = frame.half_width + out - frame.leg / 2, frame.half_depth + out - frame.leg / 2
    ring = [(-x, 0.45, -z), (x, 0.45, -z), (x, 0.45, z), (-x, 0.45, z), (-x, 0.45, -z)]
    for start, end in pairwise(ring):
        frame.bar(start, end, 0.06)


STYLES: dict[str, Callable[[_Frame], None]] = {
    "slats": _slats,
    "ladder": _ladder,
    "panel": _panel,
    "spindles": _spindles,
    "armchair": _armchair,
    "club": _club,
    "swivel": _swivel,
    "cantilever": _cantilever,
    "rocking": _rocking,
    "bar": _bar,
}


def chair(style: str, measures: Measures) -> tuple[Floats, npt.NDArray[np.int32]]:
    """The chair as positions float32 [v, 3] and triangles int32 [t, 3]; all sides of it are flat."""
    frame = _Frame(measures)
    STYLES[style](frame)
    return np.concatenate(frame.points).astype(np.float32), np.concatenate(frame.triangles)


def _circle(sides: int) -> Doubles:
    """A polygon of diameter 1, anticlockwise: [sides, 2]."""
    angles = np.arange(sides) * 2 * np.pi / sides
    return np.stack([np.cos(angles), np.sin(angles)], 1) / 2
