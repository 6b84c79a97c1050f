"""PTX text to instructions: only the grammar that triton and nvcc emit for this project; the rest is an error.

A statement that is neither a known directive, a label nor an instruction raises :class:`PTXError` with its line, so
that nothing is ever skipped in silence.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^{]*)?)\{", re.DOTALL)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.global\s+)?(?:\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<(\d+)>)?")
_SCOPE = re.compile(r"\{[ \t]*\.reg[ \t]+\.(\w+)[ \t]+(\w+);([^\n]*?;)[ \t]*\}")
_LOCAL = re.compile(r"\.local\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]")
_LABEL = re.compile(r"^\s*([$\w]+):")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z]\w*(?:[.:]+\w+)*)(?:\s+(.*))?$", re.DOTALL)
_INTEGER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$")
_MEMORY = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")
_BYTES = {"u8": 1, "b8": 1, "u16": 2, "b16": 2, "u32": 4, "b32": 4, "f32": 4, "s32": 4, "u64": 8, "b64": 8, "f64": 8}


class PTXError(Exception):
    """PTX that this executor does not know, named by its line and text."""


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    """An integer constant, or the bits of a float (``is_float``) whose width is 32 or 64."""

    value: int
    is_float: bool = False


@dataclass(frozen=True)
class Symbol:
    name: str


@dataclass(frozen=True)
class Vector:
    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


Operand = Register | Immediate | Symbol | Vector | Address


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``guard`` is the predicate register that must be true, or false where ``negated``."""

    line: int
    text: str
    opcode: str
    operands: tuple[Operand, ...]
    guard: str = ""
    negated: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    """An entry point: its parameters, registers (name -> type), instructions and labels (name -> instruction).

    stack: the symbol of each lane's own ``stack_bytes`` of local memory, where it has any.
    """

    name: str
    parameters: list[Parameter]
    stack: str = ""
    stack_bytes: int = 0
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(ptx: str, kernel: str = "") -> Kernel:
    """The entry point whose name contains ``kernel``; without one, the only entry point."""
    # Comments keep their line ends: lines in reports are those of the PTX.
    text = _SCOPE.sub(_without_scope, _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), ptx))
    found = [match for match in _ENTRY.finditer(text) if kernel in match[1]]
    if len(found) != 1:
        raise PTXError(f"expected one entry point like {kernel!r}, found {[match[1] for match in found]}")
    entry = found[0]
    start = entry.end()
    depth, end = 1, start
    while depth:
        end += 1
        depth += {"{": 1, "}": -1}.get(text[end], 0)
    result = Kernel(entry[1], _parameters(entry[2]))
    _body(result, text[start:end], text.count("\n", 0, start) + 1)
    return result


def _without_scope(scope: re.Match[str]) -> str:
    """``{ .reg .b16 tmp; mov.b32 {tmp, %rs1}, %r1; }`` with a register of the kernel, %tmp, for the block's own."""
    statements = re.sub(rf"(?<![\w%.]){scope[2]}\b", f"%{scope[2]}", scope[3])
    return f".reg .{scope[1]} %{scope[2]};{statements}"


def _parameters(text: str) -> list[Parameter]:
    parameters: list[Parameter] = []
    offset = 0
    for declaration in filter(None, map(str.strip, text.split(","))):
        match = _PARAMETER.fullmatch(" ".join(declaration.split()))
        if not match:
            raise PTXError(f"unknown parameter {declaration!r}")
        size = _BYTES[match[2]] * int(match[4] or 1)
        alignment = int(match[1] or _BYTES[match[2]])
        offset = -(-offset // alignment) * alignment
        parameters.append(Parameter(match[3], offset, size))
        offset += size
    return parameters


def _body(kernel: Kernel, text: str, line: int) -> None:
    pending, began = "", line
    for raw in text.split("\n"):
        rest = raw
        while not pending.strip() and (match := _LABEL.match(rest)):
            kernel.labels[match[1]] = len(kernel.instructions)
            rest = rest[match.end() :]
        if not pending.strip():
            pending, began = "", line
            if re.match(r"\s*\.loc\s", rest):
                rest = ""
        pending += rest + " "
        *statements, pending = pending.split(";")
        for statement in statements:
            _statement(kernel, statement.strip(), began)
        line += 1
    if pending.strip():
        raise PTXError(f"line {began}: unfinished statement {pending.strip()!r}")


def _statement(kernel: Kernel, statement: str, line: int) -> None:
    if statement.startswith(".pragma"):
        return
    while match := _LABEL.match(statement):
        kernel.labels[match[1]] = len(kernel.instructions)
        statement = statement[match.end() :].strip()
    if match := _REGISTERS.fullmatch(" ".join(statement.split())):
        for name in [f"{match[2]}{i}" for i in range(int(match[3]))] if match[3] else [match[2]]:
            if kernel.registers.setdefault(name, match[1]) != match[1]:
                raise PTXError(f"line {line}: {name} has two types")
        return
    if (match := _LOCAL.fullmatch(" ".join(statement.split()))) and not kernel.stack:
        kernel.stack, kernel.stack_bytes = match[1], int(match[2])
        return
    match = _INSTRUCTION.fullmatch(statement)
    if not match:
        raise PTXError(f"line {line}: unknown statement {statement!r}")
    operands = tuple(_operand(part, line) for part in _split(match[4] or ""))
    text = " ".join(statement.split())
    kernel.instructions.append(Instruction(line, text, match[3], operands, match[2] or "", match[1] == "!"))


def _split(text: str) -> list[str]:
    """Operands between the commas that are not inside braces or brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str, line: int) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_operand(part, line) for part in _split(text[1:-1])))
    if match := _MEMORY.match(text):
        base = _operand(match[1], line)
        if not isinstance(base, Register | Symbol | Immediate):
            raise PTXError(f"line {line}: unknown address {text!r}")
        return Address(base, int(match[2] or "0", 0))
    if match := _INTEGER.match(text):
        return Immediate(int(match[1] + match[2], 0))
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16), is_float=True)
    if re.fullmatch(r"%[\w.]+", text):
        return Register(text)
    if re.fullmatch(r"[$\w]+", text):
        return Symbol(text)
    raise PTXError(f"line {line}: unknown operand {text!r}")


def float_bits(value: float) -> int:
    """The bits of ``value`` as fp32, as an immediate holds them."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
