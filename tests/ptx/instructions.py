"""What each arithmetic instruction computes, from the definitions of the PTX manual (ISA 9.x, chapter 9.7).

:func:`semantics` gives the types of an opcode's operands and a function of arrays with one lane per element. Types are
PTX's: ``pred`` is bool, integers are numpy's of that width, ``f32`` is float32, ``f16``, ``bf16`` and packed types are
their bits. A modifier that is not listed makes the opcode unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx import arithmetic as fp

Function = Callable[..., Any]

DTYPES: dict[str, np.dtype] = {
    "pred": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"uint{bits}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    **dict.fromkeys(("f16", "bf16"), np.dtype(np.uint16)),
    **dict.fromkeys(("f16x2", "bf16x2", "s16x2", "u16x2"), np.dtype(np.uint32)),
    "f32x2": np.dtype(np.uint64),
}


class UnknownInstruction(Exception):
    """An opcode, or a modifier of one, that this executor does not implement."""


@dataclass(frozen=True)
class Semantics:
    """``function`` of arrays of the types ``sources`` gives an array of the type ``result``."""

    result: str
    sources: tuple[str, ...]
    function: Function


_DOUBLE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
_ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
_UNPACK = {"bf16": fp.from_bf16, "f16": fp.from_f16}
_PACK = {"bf16": fp.to_bf16, "f16": fp.to_f16}


def _plain(function: Function) -> Function:
    return lambda *values: fp.canonical(function(*values))


_FLOAT: dict[str, tuple[int, Function]] = {
    "add": (2, _plain(operator.add)),
    "sub": (2, _plain(operator.sub)),
    "mul": (2, _plain(operator.mul)),
    "fma": (3, fp.fma),
    "max": (2, fp.maximum),
    "min": (2, fp.minimum),
    "neg": (1, lambda a: (a.view(np.uint32) ^ np.uint32(1 << 31)).view(np.float32)),
    "abs": (1, lambda a: (a.view(np.uint32) & np.uint32(0x7FFFFFFF)).view(np.float32)),
}
# Units of the last place by which the manual lets each of these be wrong.
_APPROXIMATE: dict[str, tuple[int, float, Function]] = {
    "ex2.approx": (1, 2.0, np.exp2),
    "lg2.approx": (1, 2.0, np.log2),
    "rcp.approx": (1, 1.0, np.reciprocal),
    "sqrt.approx": (1, 1.0, np.sqrt),
    "rsqrt.approx": (1, 2.0, lambda a: 1.0 / np.sqrt(a)),
    "div.full": (2, 2.0, operator.truediv),
    "div.approx": (2, 2.0, operator.truediv),
    "rcp.rn": (1, 0.0, np.reciprocal),
    "sqrt.rn": (1, 0.0, np.sqrt),
    "div.rn": (2, 0.0, operator.truediv),
}


def _shift_left(a: Any, count: Any) -> Any:
    bits = a.dtype.itemsize * 8
    return np.where(count >= bits, a.dtype.type(0), a << np.minimum(count, bits - 1).astype(a.dtype))


def _shift_right(a: Any, count: Any) -> Any:
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


def _extract(a: Any, position: Any, length: Any) -> Any:
    """bfe: bits past the top are zero, or for a signed type the sign of the field's (or the word's) top bit."""
    bits = a.dtype.itemsize * 8
    position, length = (np.minimum(value & 0xFF, bits) for value in (position, length))
    unsigned = a.view(np.dtype(f"uint{bits}"))
    field = _shift_right(unsigned, position) & (_shift_left(np.full_like(unsigned, 1), length) - unsigned.dtype.type(1))
    if a.dtype.kind == "u":
        return field
    top = np.minimum(position + length - np.minimum(length, 1), bits - 1)
    negative = (_shift_right(unsigned, top) & 1).astype(bool) & (length > 0)
    inside = np.minimum(length, bits - position)
    fill = ~(_shift_left(np.full_like(unsigned, 1), inside) - unsigned.dtype.type(1))
    return np.where(negative, field | fill, field).view(a.dtype)


def _insert(a: Any, b: Any, position: Any, length: Any) -> Any:
    """bfi: the low ``length`` bits of a, put into b at ``position``."""
    bits = a.dtype.itemsize * 8
    position, length = (np.minimum(value & 0xFF, bits) for value in (position, length))
    one = a.dtype.type(1)
    mask = _shift_left(_shift_left(np.full_like(a, 1), length) - one, position)
    return (_shift_left(a, position) & mask) | (b & ~mask)


def _permute(a: Any, b: Any, selector: Any) -> Any:
    """prmt: each nibble of the selector names a byte of {b, a}; its top bit repeats that byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((nibble & 7).astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)).astype(np.uint32)
        byte = np.where(nibble & 8, np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0)), byte)
        result |= byte << np.uint32(8 * i)
    return result


def _divide(a: Any, b: Any) -> Any:
    """Integer division towards zero; by zero every bit is set, as the hardware leaves it."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient < 0) & (quotient * safe != a)).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), quotient)


def _remainder(a: Any, b: Any) -> Any:
    return np.where(b == 0, a, a - _divide(a, b) * b)


_INTEGER: dict[str, tuple[int, Function]] = {
    "add": (2, operator.add),
    "sub": (2, operator.sub),
    "mul.lo": (2, operator.mul),
    "mul.hi": (2, fp.high_half),
    "mad.lo": (3, lambda a, b, c: a * b + c),
    "div": (2, _divide),
    "rem": (2, _remainder),
    "max": (2, np.maximum),
    "min": (2, np.minimum),
    "neg": (1, operator.neg),
    "abs": (1, np.abs),
    "popc": (1, lambda a: np.bitwise_count(a).astype(np.uint32)),
}
_LOGIC: dict[str, tuple[int, Function]] = {
    "and": (2, operator.and_),
    "or": (2, operator.or_),
    "xor": (2, operator.xor),
    "not": (1, operator.invert),
}
_COMPARE: dict[str, Function] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}


def _comparison(mods: list[str], kind: str) -> Function:
    if mods[0] in ("num", "nan"):
        both = mods[0] == "num"
        return lambda a, b: ~(np.isnan(a) | np.isnan(b)) if both else np.isnan(a) | np.isnan(b)
    if mods[0] in _COMPARE:
        compare = _COMPARE[mods[0]]
        # IEEE's != is true for NaN; PTX's ordered .ne is not.
        if mods[0] == "ne" and "f" in kind:
            return lambda a, b: (a < b) | (a > b)
        return compare
    if mods[0].endswith("u") and mods[0][:-1] in _COMPARE:
        compare = _COMPARE[mods[0][:-1]]
        return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
    raise UnknownInstruction


def _set_predicate(mods: list[str], kind: str) -> Semantics:
    mods = [mod for mod in mods if mod != "ftz"]
    compare = _comparison(mods, kind)
    if kind in _UNPACK:
        unpack, inner = _UNPACK[kind], compare
        compare = lambda a, b: inner(unpack(a), unpack(b))  # noqa: E731
    if len(mods) == 1:
        return Semantics("pred", (kind, kind), compare)
    if len(mods) == 2 and mods[1] in _LOGIC:
        combine = _LOGIC[mods[1]][1]
        return Semantics("pred", (kind, kind, "pred"), lambda a, b, c: combine(compare(a, b), c))
    raise UnknownInstruction


def _convert(mods: list[str], target: str, source: str) -> Semantics:
    if target.endswith("x2") and source == "f32" and mods == ["rn"]:
        pack = _PACK[target[:-2]]
        # The first operand is the upper half.
        return Semantics(
            target, ("f32", "f32"), lambda a, b: (pack(a).astype(np.uint32) << 16) | pack(b).astype(np.uint32)
        )
    if target in _PACK and source == "f32" and mods == ["rn"]:
        return Semantics(target, ("f32",), _PACK[target])
    if target == "f32" and source in _UNPACK and not mods:
        return Semantics("f32", (source,), lambda a: fp.canonical(_UNPACK[source](a)))
    dtype = DTYPES[target]
    if target == "f32" and source[0] in "su" and mods == ["rn"]:
        return Semantics("f32", (source,), lambda a: a.astype(np.float32))
    if target[0] in "su" and source == "f32" and len(mods) == 1 and mods[0] in _ROUNDINGS:
        rounding = _ROUNDINGS[mods[0]]
        return Semantics(target, ("f32",), lambda a: fp.to_integer(a, dtype, rounding))
    if target[0] in "su" and source[0] in "su" and not mods:
        return Semantics(target, (source,), lambda a: a.astype(dtype))
    raise UnknownInstruction


def _packed(root: str, kind: str, ftz: bool) -> Semantics:
    """Two halves of a register, or one 16-bit float: unpacked, computed as wide numbers, packed again."""
    element = kind.removesuffix("x2")
    if element == "f32":
        arity, function = _FLOAT[root]
        run = fp.with_ftz(function) if ftz else function
        return Semantics(kind, (kind,) * arity, lambda *v: run(*(a.view(np.float32) for a in v)).view(np.uint64))
    if element in ("s16", "u16"):
        arity, function = _INTEGER[root]
        dtype = DTYPES[element]
        return Semantics(kind, (kind,) * arity, lambda *v: function(*(a.view(dtype) for a in v)).view(np.uint32))
    arity, function = _FLOAT[root]
    unpack, pack = _UNPACK[element], _PACK[element]
    wide = fp.fma_double if root == "fma" else function
    dtype = DTYPES[kind]
    return Semantics(
        kind, (kind,) * arity, lambda *v: pack(wide(*(unpack(a.view(np.uint16)) for a in v))).astype("u2").view(dtype)
    )


def semantics(opcode: str, error: float = 0.0) -> Semantics:
    """The meaning of ``opcode``; approximations are off by ``error`` (-1 to 1) times what the manual allows."""
    try:
        return _semantics(opcode, error)
    except (UnknownInstruction, KeyError, IndexError):
        raise UnknownInstruction(opcode) from None


def _semantics(opcode: str, error: float) -> Semantics:
    root, *mods = opcode.split(".")
    kind = mods[-1] if mods else ""
    middle = mods[:-1]
    match root:
        case "mov" if not middle:
            return Semantics(kind, (kind,), lambda a: a)
        case "selp" if not middle:
            return Semantics(kind, (kind, kind, "pred"), lambda a, b, p: np.where(p, a, b))
        case "setp":
            return _set_predicate(middle, kind)
        case "cvt":
            return _convert(mods[:-2], mods[-2], mods[-1])
        # Generic addresses are those of the spaces: local memory lies beside global, shared has no pointers here.
        case "cvta" if opcode in ("cvta.to.global.u64", "cvta.local.u64", "cvta.to.local.u64"):
            return Semantics("u64", ("u64",), lambda a: a)
        case "shl" if not middle:
            return Semantics(kind, (kind, "u32"), _shift_left)
        case "shr" if not middle:
            return Semantics(kind, (kind, "u32"), _shift_right)
        case "bfe" if not middle:
            return Semantics(kind, (kind, "u32", "u32"), _extract)
        case "bfi" if not middle:
            return Semantics(kind, (kind, kind, "u32", "u32"), _insert)
        case "prmt" if opcode == "prmt.b32":
            return Semantics("b32", ("b32", "b32", "b32"), _permute)
        case "and" | "or" | "xor" | "not" if not middle and kind[0] in "bp":
            arity, function = _LOGIC[root]
            return Semantics(kind, (kind,) * arity, function)
        case "mul" | "mad" if middle == ["wide"]:
            double = DTYPES[_DOUBLE[kind]]
            if root == "mul":
                return Semantics(_DOUBLE[kind], (kind, kind), lambda a, b: a.astype(double) * b.astype(double))
            return Semantics(
                _DOUBLE[kind], (kind, kind, _DOUBLE[kind]), lambda a, b, c: a.astype(double) * b.astype(double) + c
            )
    if kind in DTYPES and kind[0] in "sub" and kind[-2:] != "x2" and kind != "bf16":
        arity, function = _INTEGER[".".join([root, *middle])]
        return Semantics("u32" if root == "popc" else kind, (kind,) * arity, function)
    return _floating(root, middle, kind, error)


def _floating(root: str, middle: list[str], kind: str, error: float) -> Semantics:
    ftz = "ftz" in middle
    middle = [mod for mod in middle if mod != "ftz"]
    name = ".".join([root, *middle])
    if kind == "f32" and name in _APPROXIMATE:
        arity, units, exact = _APPROXIMATE[name]
        function = fp.approximate(exact, units * error)
        return Semantics("f32", ("f32",) * arity, fp.with_ftz(function) if ftz else function)
    if middle not in ([], ["rn"]):
        # add.rn.f32.bf16: the first operands (one for add and sub, two for fma) are narrow, the last is fp32.
        if middle == ["rn", "f32"] and kind in _UNPACK and root in ("add", "sub", "fma"):
            unpack = _UNPACK[kind]
            arity, function = _FLOAT[root]
            return Semantics(
                "f32",
                (kind,) * (arity - 1) + ("f32",),
                lambda *v: function(*(unpack(a) for a in v[:-1]), v[-1]),
            )
        raise UnknownInstruction
    if kind == "f32":
        arity, function = _FLOAT[root]
        return Semantics("f32", ("f32",) * arity, fp.with_ftz(function) if ftz else function)
    return _packed(root, kind, ftz)
