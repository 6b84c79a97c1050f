"""Known answers of what is more than a load or store of one space: lanes' own memory, generic addresses, matrices."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")

from tests.ptx.memory import SHARED_BASE
from tests.test_ptx_instructions import STORE_R2, run

STACK = ".local .align 8 .b8 depot[8]; .reg .b64 %SP; .reg .b64 %SPL; mov.b64 %SPL, depot; cvta.local.u64 %SP, %SPL;"


@pytest.mark.parametrize(("into", "by"), [("st.local.b32 [%SPL+4]", "ld.b32 %r2, [%SP+4]"),
                                          ("st.b32 [%SP+4]", "ld.local.b32 %r2, [%SPL+4]"),
                                          ("st.local.v2.b16 [depot+4]", "ld.local.b32 %r2, [depot+4]")])  # fmt: skip
def test_each_lane_has_local_memory_of_its_own(into: str, by: str) -> None:
    value = "{%rs1, %rs1}" if "v2" in into else "%r1"
    data, result = run(f"{STACK} cvt.u16.u32 %rs1, %r1; {into}, {value}; {by}; {STORE_R2}", threads=64, blocks=2)
    assert not result.findings, result.findings
    assert data.view(np.uint32)[:64].tolist() == [i * (0x10001 if "v2" in into else 1) for i in range(64)]


def test_bytes_of_local_memory_read_together_are_little_endian() -> None:
    data, _ = run(f"{STACK} mov.b16 %rs1, 0x12; mov.b16 %rs2, 0x34; st.b8 [%SP+7], %rs1; st.b8 [%SP+6], %rs2;"
                  "ld.b16 %rs3, [%SP+6]; st.global.b16 [%rd1], %rs3; ret;")  # fmt: skip
    assert data[:2].view(np.uint16)[0] == 0x1234


def test_generic_addresses_find_global_memory_beside_local_lane_by_lane() -> None:
    """Even lanes store to their stack, odd ones to the output."""
    body = f"""{STACK} mul.wide.u32 %rd3, %r1, 4; add.s64 %rd3, %rd1, %rd3; and.b32 %r3, %r1, 1;
    setp.eq.s32 %p1, %r3, 0; selp.b64 %rd4, %SP, %rd3, %p1; st.b32 [%rd4], %r1; ld.b32 %r2, [%rd4]; add.s32 %r2, %r2, 1;
    st.global.b32 [%rd3+512], %r2; ret;"""
    data, result = run(body)
    assert not result.findings, result.findings
    words = data.view(np.uint32)
    assert words[:32].tolist() == [i * (i % 2) for i in range(32)]
    assert words[128:160].tolist() == list(range(1, 33))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("read of unwritten bytes", "ld.local.b32 %r2, [%SPL];"),
        ("read of unwritten bytes", "st.b8 [%SP], %r1; ld.b16 %rs1, [%SP];"),
        ("out of bounds", "st.local.b32 [%SPL+8], %r1;"),
        ("out of bounds", "st.local.b32 [%SPL+-4], %r1;"),
        ("out of bounds", "st.b32 [%SP+16], %r1;"),
        ("misaligned access", "st.local.b32 [%SPL+2], %r1;"),
        ("misaligned access", "st.v2.b32 [%SP+4], {%r1, %r1};"),
    ],
)
def test_the_sanitizer_watches_local_memory(kind: str, body: str) -> None:
    _, result = run(f"{STACK} {body} ret;", threads=64)
    assert [found.kind for found in result.findings] == [kind], result.findings


def test_a_register_of_an_inner_block_takes_half_of_a_word() -> None:
    data, _ = run(
        "mov.b32 %r2, 0x12345678; { .reg .b16 tmp; mov.b32 {tmp, %rs1}, %r2; } st.global.b16 [%rd1], %rs1; ret;"
    )
    assert data[:2].view(np.uint16)[0] == 0x1234


@pytest.mark.parametrize(("mode", "row", "column"), [("", 2, 5), (".trans", 5, 2)])
def test_stmatrix_puts_each_lanes_pair_into_its_row_or_column(mode: str, row: int, column: int) -> None:
    """Element (r, c) of matrix j is 100 j + 10 r + c; ``row``, ``column``: where (2, 5) lands."""
    pair = (
        "shr.u32 %r5, %r1, 2; mul.lo.s32 %r5, %r5, 10; and.b32 %r6, %r1, 3; shl.b32 %r6, %r6, 1; add.s32 %r5, %r5, %r6;"
    )
    pair += "add.s32 %r6, %r5, 1; shl.b32 %r6, %r6, 16; or.b32 %r5, %r5, %r6;"
    values = "".join(f"add.s32 %r{10 + j}, %r5, {100 * j * 0x10001};" for j in range(4))
    body = f"""{pair} {values} mul.lo.s32 %r4, %r1, 16; add.s32 %r4, %r4, {SHARED_BASE};
    stmatrix.sync.aligned.m8n8.x4{mode}.shared.b16 [%r4], {{%r10, %r11, %r12, %r13}}; bar.sync 0;
    mul.lo.s32 %r5, %r1, 2; and.b32 %r5, %r5, 15;
    add.s32 %r5, %r5, {SHARED_BASE + 16 * 8 * 3}; ld.shared.b16 %rs2, [%r5+{16 * row}];
    cvt.u32.u16 %r2, %rs2; {STORE_R2}"""
    data, result = run(body, shared_bytes=512)
    assert not result.findings
    assert data.view(np.uint32)[column] == 325


def test_ldmatrix_gives_back_what_stmatrix_put_there() -> None:
    matrices = "mov.b32 %r10, %r1; mul.lo.s32 %r4, %r1, 16;"
    for mode in ("", ".trans"):
        body = f"""{matrices} add.s32 %r4, %r4, {SHARED_BASE};
        stmatrix.sync.aligned.m8n8.x1{mode}.shared.b16 [%r4], {{%r10}};
        bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x1{mode}.shared.b16 {{%r2}}, [%r4]; {STORE_R2}"""
        data, result = run(body, shared_bytes=512)
        assert not result.findings
        assert data.view(np.uint32)[:32].tolist() == list(range(32))


def test_matrix_rows_are_aligned_and_watched() -> None:
    address = f"mul.lo.s32 %r4, %r1, 16; add.s32 %r4, %r4, {SHARED_BASE + 4};"
    _, result = run(f"{address} stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r4], {{%r1}}; ret;", shared_bytes=512)
    assert {found.kind for found in result.findings} == {"misaligned access"}
    address = f"mul.lo.s32 %r4, %r1, 16; add.s32 %r4, %r4, {SHARED_BASE};"
    _, result = run(f"{address} ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4]; ret;",
                    shared_bytes=512)  # fmt: skip
    assert {found.kind for found in result.findings} == {"read of unwritten bytes"}


def test_only_the_lanes_of_a_generic_access_that_touch_global_memory_are_counted() -> None:
    body = f"""{STACK} mul.wide.u32 %rd3, %r1, 32; add.s64 %rd3, %rd1, %rd3; setp.lt.u32 %p1, %r1, 8;
    selp.b64 %rd4, %rd3, %SP, %p1; st.b32 [%rd4], %r1; ret;"""
    _, result = run(body, count=True)
    assert not result.findings
    assert (result.counters.requests["store"], result.counters.sectors["store"]) == (1, 8)
