"""Known answers of the executor's instructions, from the definitions in the PTX manual, edge values included."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")

from tests.ptx.executor import Executor, Result
from tests.ptx.instructions import UnknownInstruction
from tests.ptx.memory import GLOBAL_BASE, SHARED_BASE, Clocks, Finding, Memory
from tests.ptx.parser import PTXError, float_bits, parse

INF, NAN, ONES = math.inf, math.nan, 0xFFFFFFFF
LEAST, GREATEST = 2.0**-149, (2 - 2.0**-23) * 2.0**127
_LETTERS = {"b8": "rs", "b16": "rs", "b32": "r", "b64": "rd", "pred": "p"}


def f(value: float) -> int:
    return float_bits(value)


def pair(low: int, high: int, bits: int = 32) -> int:
    return low | high << bits


def run(body: str, threads: int = 32, blocks: int = 1, out_bytes: int = 1024, inputs: bytes = b"",
        shared_bytes: int = 0, count: bool = False) -> tuple[np.ndarray, Result]:  # fmt: skip
    """Execute ``body`` with the output's address in ``%rd1``, the inputs' in ``%rd2``, %tid.x in ``%r1``."""
    ptx = f""".visible .entry k(.param .u64 out, .param .u64 in)\n{{
    .reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<40>;
    ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [in]; mov.u32 %r1, %tid.x;
    {body}\n}}"""
    made: list[Memory] = []
    begin = -(-out_bytes // 256) * 256 + 256

    def memory(clocks: Clocks, findings: list[Finding]) -> Memory:
        made.append(
            Memory("global", GLOBAL_BASE, begin + len(inputs), clocks, np.zeros(len(clocks.clock), np.int64), findings)
        )
        made[0].state[:out_bytes] = 1
        made[0].state[begin : begin + len(inputs)] = 3
        made[0].data[begin : begin + len(inputs)] = np.frombuffer(inputs, np.uint8)
        return made[0]

    parameters = struct.pack("<QQ", GLOBAL_BASE, GLOBAL_BASE + begin)
    result = Executor(parse(ptx), (blocks,), (threads,), parameters, shared_bytes, memory, count=count).run()
    return made[0].data[:out_bytes], result


def evaluate(opcode: str, sources: list[tuple[str, int]], width: str) -> int:
    """The bits that ``opcode`` leaves in a register of ``width`` for sources given as (register width, bits)."""
    body, names = "", []
    for i, (kind, value) in enumerate(sources):
        name = f"%{_LETTERS[kind]}{i + 3}"
        names.append(name)
        body += f"mov.{kind} {name}, {value};\n"
    target = f"%{_LETTERS[width]}12"
    body += f"{opcode} {target}, {', '.join(names)};\n"
    if width == "pred":
        body += "selp.b32 %r12, 1, 0, %p12;\n"
        target, width = "%r12", "b32"
    data, result = run(f"{body} st.global.{width} [%rd1], {target}; ret;")
    assert not result.findings
    return int.from_bytes(data[: int(width[1:]) // 8].tobytes(), "little")


F32_CASES = [
    ("add.f32", [1.0, 2.0**-25], 1.0),
    ("add.f32", [1.0, 3 * 2.0**-25], 1.0 + 2.0**-23),
    ("add.f32", [INF, -INF], NAN),
    ("add.f32", [-0.0, -0.0], -0.0),
    ("add.f32", [LEAST, LEAST], 2 * LEAST),
    ("add.ftz.f32", [LEAST, LEAST], 0.0),
    ("sub.f32", [1.0, 1.0], 0.0),
    ("mul.f32", [GREATEST, 2.0], INF),
    ("mul.f32", [0.0, INF], NAN),
    ("mul.f32", [2.0**-126, 0.5], 2.0**-127),
    ("mul.ftz.f32", [-(2.0**-126), 0.5], -0.0),
    ("fma.rn.f32", [1 + 2.0**-23, 1 - 2.0**-23, -1.0], -(2.0**-46)),
    ("fma.rn.f32", [GREATEST, 2.0, -GREATEST], GREATEST),
    ("fma.rn.f32", [INF, 0.0, 1.0], NAN),
    # 1 + 2^-24 is half way; the third factor decides, below float64's last bit.
    ("fma.rn.f32", [2.0**-60, 2.0**-60, 1 + 2.0**-23], 1 + 2.0**-23),
    ("fma.rn.ftz.f32", [LEAST, GREATEST, 1.0], 1.0),
    ("max.f32", [NAN, 2.0], 2.0),
    ("max.f32", [-0.0, 0.0], 0.0),
    ("max.f32", [NAN, NAN], NAN),
    ("min.f32", [0.0, -0.0], -0.0),
    ("min.f32", [INF, NAN], INF),
    ("neg.f32", [0.0], -0.0),
    ("abs.f32", [-INF], INF),
    ("ex2.approx.f32", [-INF], 0.0),
    ("ex2.approx.f32", [3.0], 8.0),
    ("ex2.approx.f32", [-149.0], LEAST),
    ("ex2.approx.ftz.f32", [-149.0], 0.0),
    ("ex2.approx.f32", [128.0], INF),
    ("lg2.approx.f32", [0.0], -INF),
    ("lg2.approx.f32", [-1.0], NAN),
    ("lg2.approx.f32", [8.0], 3.0),
    ("lg2.approx.ftz.f32", [LEAST], -INF),
    ("rcp.rn.f32", [3.0], 1 / 3),
    ("rcp.rn.f32", [-0.0], -INF),
    ("sqrt.rn.f32", [2.0], math.sqrt(2)),
    ("sqrt.approx.f32", [-0.0], -0.0),
    ("sqrt.rn.f32", [-1.0], NAN),
    ("div.full.f32", [1.0, 0.0], INF),
    ("div.full.f32", [0.0, 0.0], NAN),
    ("div.full.f32", [1.0, 3.0], 1 / 3),
]


@pytest.mark.parametrize(("opcode", "sources", "answer"), F32_CASES)
def test_fp32_arithmetic(opcode: str, sources: list[float], answer: float) -> None:
    found = evaluate(opcode, [("b32", f(value)) for value in sources], "b32")
    assert found == (0x7FFFFFFF if math.isnan(answer) else f(answer)), hex(found)


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3))
def test_fma_rounds_the_exact_value_once(values: tuple[float, float, float]) -> None:
    from fractions import Fraction

    from tests.ptx.arithmetic import fma

    a, b, c = (np.array([value], np.float32) for value in values)
    exact = Fraction(values[0]) * Fraction(values[1]) + Fraction(values[2])
    with np.errstate(all="ignore"):
        found = float(fma(a, b, c)[0])
        if math.isinf(found):
            assert abs(exact) >= Fraction(GREATEST) + Fraction(2) ** 103
            return
        for neighbour in (np.nextafter(np.float32(found), np.float32(way)) for way in (INF, -INF)):
            if np.isfinite(neighbour):
                mine, other = (abs(Fraction(float(value)) - exact) for value in (found, neighbour))
                assert mine <= other
                if mine == other:
                    assert np.float32(found).view(np.uint32) % 2 == 0


INTEGER_CASES = [
    ("add.s32", [("b32", 0x7FFFFFFF), ("b32", 1)], "b32", 0x80000000),
    ("add.s64", [("b64", 2**64 - 1), ("b64", 1)], "b64", 0),
    ("add.s16x2", [("b32", 0x0001FFFF), ("b32", 0x00010001)], "b32", 0x00020000),
    ("sub.s16", [("b16", 0), ("b16", 1)], "b16", 0xFFFF),
    ("mul.lo.s32", [("b32", 0x10001), ("b32", 0x10001)], "b32", 0x20001),
    ("mul.hi.u32", [("b32", ONES), ("b32", ONES)], "b32", 0xFFFFFFFE),
    ("mul.hi.s32", [("b32", ONES), ("b32", 2)], "b32", ONES),
    ("mul.hi.s16", [("b16", 0x8000), ("b16", 0x8000)], "b16", 0x4000),
    ("mul.hi.u64", [("b64", 2**64 - 1), ("b64", 2**64 - 1)], "b64", 2**64 - 2),
    ("mul.wide.u32", [("b32", ONES), ("b32", ONES)], "b64", ONES * ONES),
    ("mul.wide.s32", [("b32", ONES), ("b32", 3)], "b64", 2**64 - 3),
    ("mul.wide.u16", [("b16", 0xFFFF), ("b16", 0xFFFF)], "b32", 0xFFFF * 0xFFFF),
    ("mad.lo.s32", [("b32", 3), ("b32", 4), ("b32", ONES)], "b32", 11),
    ("mad.wide.s32", [("b32", ONES), ("b32", 1), ("b64", 0)], "b64", 2**64 - 1),
    ("div.s64", [("b64", 2**64 - 7), ("b64", 2)], "b64", 2**64 - 3),
    ("div.u32", [("b32", ONES), ("b32", 16)], "b32", 0x0FFFFFFF),
    ("rem.s32", [("b32", 2**32 - 7), ("b32", 3)], "b32", 2**32 - 1),
    ("min.s32", [("b32", ONES), ("b32", 0)], "b32", ONES),
    ("min.u32", [("b32", ONES), ("b32", 0)], "b32", 0),
    ("neg.s32", [("b32", 0x80000000)], "b32", 0x80000000),
    ("shl.b32", [("b32", 1), ("b32", 31)], "b32", 0x80000000),
    ("shl.b32", [("b32", 1), ("b32", 32)], "b32", 0),
    ("shl.b64", [("b64", 1), ("b32", 64)], "b64", 0),
    ("shl.b16", [("b16", 1), ("b32", ONES)], "b16", 0),
    ("shr.u32", [("b32", ONES), ("b32", 32)], "b32", 0),
    ("shr.s32", [("b32", 0x80000000), ("b32", 99)], "b32", ONES),
    ("shr.s16", [("b16", 0x8000), ("b32", 15)], "b16", 0xFFFF),
    ("shr.u64", [("b64", 2**63), ("b32", 63)], "b64", 1),
    ("bfe.u32", [("b32", 0xABCD), ("b32", 4), ("b32", 8)], "b32", 0xBC),
    ("bfe.u32", [("b32", ONES), ("b32", 0), ("b32", 0)], "b32", 0),
    ("bfe.s32", [("b32", 0b1000), ("b32", 3), ("b32", 1)], "b32", ONES),
    ("bfe.s32", [("b32", 0x80000000), ("b32", 31), ("b32", 8)], "b32", ONES),
    ("bfe.u64", [("b64", 0xABCD << 16), ("b32", 16), ("b32", 16)], "b64", 0xABCD),
    ("bfi.b64", [("b64", 0xDEADBEEF), ("b64", 5), ("b32", 32), ("b32", 32)], "b64", 0xDEADBEEF00000005),
    ("prmt.b32", [("b32", 0x33221100), ("b32", 0x77665544), ("b32", 0x7531)], "b32", 0x77553311),
    ("prmt.b32", [("b32", 0x000000FF), ("b32", 0), ("b32", 0x8888)], "b32", ONES),
    ("prmt.b32", [("b32", 0x7F), ("b32", 0), ("b32", 0x8888)], "b32", 0),
    ("not.b32", [("b32", 0)], "b32", ONES),
    ("xor.b32", [("b32", 0xF0F0), ("b32", 0x0FF0)], "b32", 0xFF00),
    ("popc.b32", [("b32", 0xF0F0)], "b32", 8),
    ("cvt.s64.s32", [("b32", ONES)], "b64", 2**64 - 1),
    ("cvt.u64.u32", [("b32", ONES)], "b64", ONES),
    ("cvt.s64.s8", [("b64", 0x180)], "b64", 2**64 - 128),
    ("cvt.s16.s8", [("b16", 0x80)], "b16", 0xFF80),
    ("cvt.s8.s32", [("b32", 0x1FF)], "b16", 0xFFFF),
    ("cvt.u16.u32", [("b32", 0x12345)], "b16", 0x2345),
    ("cvt.u32.u64", [("b64", 0x123456789)], "b32", 0x23456789),
]


@pytest.mark.parametrize(("opcode", "sources", "width", "answer"), INTEGER_CASES)
def test_integer_arithmetic(opcode: str, sources: list[tuple[str, int]], width: str, answer: int) -> None:
    assert hex(evaluate(opcode, sources, width)) == hex(answer)


CONVERSIONS = [
    ("cvt.rn.bf16.f32", f(1 + 2.0**-8), "b16", 0x3F80),  # ties to even
    ("cvt.rn.bf16.f32", f(1 + 3 * 2.0**-8), "b16", 0x3F82),
    ("cvt.rn.bf16.f32", f(NAN), "b16", 0x7FFF),
    ("cvt.rn.bf16.f32", f(GREATEST), "b16", 0x7F80),
    ("cvt.rn.bf16.f32", f(-0.0), "b16", 0x8000),
    ("cvt.rn.f16.f32", f(65520.0), "b16", 0x7C00),
    ("cvt.rn.f16.f32", f(2.0**-25), "b16", 0),
    ("cvt.rn.f16.f32", f(3 * 2.0**-26), "b16", 1),
    ("cvt.rn.f16.f32", f(NAN), "b16", 0x7FFF),
    ("cvt.rn.f32.s32", 16777217, "b32", f(16777216.0)),
    ("cvt.rn.f32.u32", ONES, "b32", f(2.0**32)),
    ("cvt.rn.f32.s32", ONES, "b32", f(-1.0)),
    ("cvt.rzi.s32.f32", f(-1.9), "b32", ONES),
    ("cvt.rzi.s32.f32", f(3e9), "b32", 0x7FFFFFFF),
    ("cvt.rzi.s32.f32", f(NAN), "b32", 0),
    ("cvt.rzi.u32.f32", f(-5.0), "b32", 0),
    ("cvt.rni.s32.f32", f(2.5), "b32", 2),
    ("cvt.rzi.s64.f32", f(NAN), "b64", 1 << 63),
    ("cvt.rzi.s64.f32", f(INF), "b64", 2**63 - 1),
]


@pytest.mark.parametrize(("opcode", "bits", "width", "answer"), CONVERSIONS)
def test_conversions(opcode: str, bits: int, width: str, answer: int) -> None:
    assert hex(evaluate(opcode, [("b32", bits)], width)) == hex(answer)


PACKED = [
    ("cvt.rn.bf16x2.f32", [("b32", f(1.0)), ("b32", f(-2.0))], "b32", 0x3F80C000),
    ("cvt.rn.f16x2.f32", [("b32", f(1.0)), ("b32", f(-2.0))], "b32", 0x3C00C000),
    ("add.f32x2", [("b64", pair(f(1.0), f(2.0))), ("b64", pair(f(3.0), f(NAN)))], "b64", pair(f(4.0), 0x7FFFFFFF)),
    ("mul.f32x2", [("b64", pair(f(3.0), f(2.0)))] * 2, "b64", pair(f(9.0), f(4.0))),
    ("fma.rn.f32x2", [("b64", pair(f(3.0), f(2.0)))] * 3, "b64", pair(f(12.0), f(6.0))),
    ("fma.rn.bf16x2", [("b32", 0x3F80C000)] * 3, "b32", 0x40004000),
    ("add.bf16", [("b16", 0x3F80), ("b16", 0x3B80)], "b16", 0x3F80),  # 1 + 2^-8 is half way
    ("fma.rn.f16", [("b16", 0x3C01), ("b16", 0x3C01), ("b16", 0xBC00)], "b16", 0x1800),  # 2^-9 + 2^-20
    ("cvt.f32.bf16", [("b16", 0xFFC1)], "b32", 0x7FFFFFFF),
    ("cvt.f32.f16", [("b16", 0x0001)], "b32", f(2.0**-24)),
    ("sub.rn.f32.bf16", [("b16", 0x4000), ("b32", f(0.5))], "b32", f(1.5)),
    ("setp.ge.bf16", [("b16", 0x4000), ("b16", 0x3F80)], "pred", 1),
    ("setp.le.f16", [("b16", 0x7E00), ("b16", 0x7E00)], "pred", 0),
    ("setp.lt.f32", [("b32", f(NAN)), ("b32", f(1.0))], "pred", 0),
    ("setp.leu.f32", [("b32", f(NAN)), ("b32", f(1.0))], "pred", 1),
    ("setp.ne.f32", [("b32", f(NAN)), ("b32", f(NAN))], "pred", 0),
    ("setp.neu.f32", [("b32", f(NAN)), ("b32", f(NAN))], "pred", 1),
    ("setp.nan.f32", [("b32", f(NAN)), ("b32", f(1.0))], "pred", 1),
    ("setp.num.f32", [("b32", f(NAN)), ("b32", f(1.0))], "pred", 0),
    ("setp.eq.f32", [("b32", f(0.0)), ("b32", f(-0.0))], "pred", 1),
    ("setp.lt.s32", [("b32", ONES), ("b32", 0)], "pred", 1),
    ("setp.lt.u32", [("b32", ONES), ("b32", 0)], "pred", 0),
    ("selp.b32", [("b32", 5), ("b32", 6), ("pred", 0)], "b32", 6),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "sources", "width", "answer"), PACKED)
def test_packed_and_comparing_instructions(
    opcode: str, sources: list[tuple[str, int]], width: str, answer: int
) -> None:
    assert hex(evaluate(opcode, sources, width)) == hex(answer)


STORE_R2 = "mul.wide.u32 %rd3, %r1, 4; add.s64 %rd3, %rd1, %rd3; st.global.b32 [%rd3], %r2; ret;"


@pytest.mark.parametrize(
    ("mode", "lane_of"),
    [("bfly.b32 %r2, %r1, 5", lambda i: i ^ 5), ("idx.b32 %r2, %r1, 7", lambda i: 7),
     ("up.b32 %r2, %r1, 2", lambda i: max(i - 2, i if i < 2 else 0)),
     ("down.b32 %r2, %r1, 3", lambda i: i + 3 if i < 29 else i)],
)  # fmt: skip
def test_shuffles(mode: str, lane_of) -> None:  # type: ignore[no-untyped-def]
    clamp = 0 if mode.startswith("up") else 31
    data, _ = run(f"shfl.sync.{mode}, {clamp}, -1; {STORE_R2}")
    assert data.view(np.uint32)[:32].tolist() == [lane_of(i) for i in range(32)]


@pytest.mark.parametrize(
    ("opcode", "prepare", "answer"),
    [("max.f32", "cvt.rn.f32.u32 %r3, %r1; setp.eq.s32 %p1, %r1, 31; @%p1 mov.b32 %r3, 0x7FC00000;", f(30.0)),
     ("max.f32", "mov.b32 %r3, 0x7FC00000;", 0x7FFFFFFF), ("min.f32", "cvt.rn.f32.u32 %r3, %r1;", 0),
     ("add.s32", "mov.b32 %r3, %r1;", 496), ("min.s32", "neg.s32 %r3, %r1;", 2**32 - 31)],
)  # fmt: skip
def test_warp_reductions_leave_out_nan(opcode: str, prepare: str, answer: int) -> None:
    data, _ = run(f"{prepare} mov.b32 %r4, -1; redux.sync.{opcode} %r2, %r3, %r4; {STORE_R2}")
    assert data.view(np.uint32)[:32].tolist() == [answer] * 32


def test_diverged_lanes_meet_again_before_a_shuffle() -> None:
    data, result = run(f"""mov.b32 %r2, 0; mov.b32 %r3, 0;
    $head: setp.ge.u32 %p1, %r3, %r1; @%p1 bra $done; add.s32 %r2, %r2, %r3; add.s32 %r3, %r3, 1; bra $head;
    $done: shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1; {STORE_R2}""")
    assert not result.findings and result.counters.divergent_branches > 0
    assert data.view(np.uint32)[:32].tolist() == [sum(range(i ^ 1)) for i in range(32)]


def test_atomics_count_every_lane_of_every_block() -> None:
    body = "mov.b32 %r4, 2; atom.global.gpu.acq_rel.add.u32 %r2, [%rd1+0], %r4; ret;"
    _, result = run(body, blocks=3)
    assert [found.kind for found in result.findings] == ["read of unwritten bytes"]  # nobody set it to zero
    inputs = bytes(4)
    _, result = run(body.replace("%rd1", "%rd2"), blocks=3, inputs=inputs)
    assert not result.findings


SHARED = f"mul.lo.s32 %r3, %r1, 4; add.s32 %r3, %r3, {SHARED_BASE};"
SANITIZED = [
    ("out of bounds", "st.global.b32 [%rd1+1024], %r1; ret;"),
    ("out of bounds", "st.global.b32 [%rd1+-4], %r1; ret;"),
    ("misaligned access", "st.global.b32 [%rd1+2], %r1; ret;"),
    ("misaligned access", "st.global.v2.b32 [%rd1+4], {%r1, %r1}; ret;"),
    ("read of unwritten bytes", "ld.global.b32 %r2, [%rd1]; ret;"),
    ("read of unwritten bytes", f"{SHARED} ld.shared.b32 %r2, [%r3]; ret;"),
    ("out of bounds", f"{SHARED} st.shared.b32 [%r3+256], %r1; ret;"),
    ("shared race", f"{SHARED} st.shared.b32 [%r3], %r1; xor.b32 %r4, %r3, 128; ld.shared.b32 %r2, [%r4]; ret;"),
    ("shared race", f"{SHARED} mov.b32 %r5, {SHARED_BASE}; st.shared.b32 [%r5], %r1; ret;"),
    ("shared race", f"{SHARED} st.shared.b32 [%r3], %r1; bar.sync 0; xor.b32 %r4, %r3, 128; ld.shared.b32 %r2, [%r4];"
                    "st.shared.b32 [%r3], %r2; ret;"),
    ("conflicting writes of two blocks", "mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd3, %rd1, %rd3;"
                                         "st.global.b32 [%rd3], %r2; ret;"),
    ("barrier not reached by all lanes", "setp.lt.u32 %p1, %r1, 32; @%p1 bra $end; bar.sync 0; $end: ret;"),
    ("barrier not reached by all lanes", "setp.eq.s32 %p1, %r1, 3; @%p1 ret; shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;"
                                         "ret;"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), SANITIZED)
def test_the_sanitizer_names(kind: str, body: str) -> None:
    _, result = run(body, threads=64, blocks=2, shared_bytes=256)
    assert kind in {found.kind for found in result.findings}, result.findings
    found = next(found for found in result.findings if found.kind == kind)
    assert found.instruction.split(": ", 1)[1].split()[0] in body


def test_accesses_with_a_barrier_between_them_are_no_race() -> None:
    body = f"""{SHARED} st.shared.b32 [%r3], %r1; bar.sync 0; xor.b32 %r4, %r3, 128; ld.shared.b32 %r2, [%r4];
    bar.sync 0; st.shared.b32 [%r3], %r2; bar.sync 0; ld.shared.b32 %r2, [%r3]; {STORE_R2}"""
    data, result = run(body, threads=64, shared_bytes=256)
    assert not result.findings
    assert data.view(np.uint32)[:64].tolist() == [i ^ 32 for i in range(64)]


def test_ldmatrix_hands_each_lane_its_pair_of_a_row() -> None:
    store = "".join(f"st.shared.b32 [%r4+{4 * i}], %r{10 + i};" for i in range(4))
    fill = "".join(f"mad.lo.s32 %r{10 + i}, %r1, 4, {i};" for i in range(4))
    body = f"""mul.lo.s32 %r4, %r1, 16; add.s32 %r4, %r4, {SHARED_BASE}; {fill} {store} bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r2, %r23}}, [%r4]; {STORE_R2}"""
    data, result = run(body, shared_bytes=512)
    assert not result.findings
    assert data.view(np.uint32)[:32].tolist() == [4 * (16 + i // 4) + i % 4 for i in range(32)]


@pytest.mark.parametrize(
    "text",
    [
        "mma.sync.aligned.m16n8k8 %r2, %r1;",
        "add.sat.f32 %r2, %r1, %r1;",
        "atom.global.gpu.relaxed.exch.b32 %r2, [%rd1], %r1;",
        "ld.global.L1::evict_last.b32 %r2, [%rd1];",
        "bar.sync 1;",
    ],
)
def test_an_unknown_instruction_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(UnknownInstruction, match=text.split()[0].replace(".", r"\.")):
        run(f"{text} ret;")


def test_an_unknown_statement_is_an_error_that_names_its_line() -> None:
    with pytest.raises(PTXError, match="line 7"):
        run("\n\n.shared .b8 x[4]; ret;")
