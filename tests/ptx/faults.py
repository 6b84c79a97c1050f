"""Faults put into the compiled PTX, each of which the sanitizer or the comparison with the reference must catch.

A fault edits one site of the text; every site of a kernel is tried. What it must be called is part of the fault: a race
that only shows as a wrong number would pass on the machine where it happens not to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from fastinfogan import Categorical, LatentSpec, Uniform
from tests.ptx.cases import Case, case, worst_error
from tests.ptx.device import Output, execute
from tests.ptx.executor import Stuck
from tests.triton_compile import Launch, launches_of

_SPEC = LatentSpec(6, (Categorical(3), Categorical(5), Uniform(2)))
_SHAPE = (12, 10, 1)
WRONG = "disagrees with the reference"
_REGISTERS = "\t.reg .b32 %fault<2>;\n\t.reg .b64 %faultd<2>;\n\t.reg .pred %faultp<1>;\n"

Edit = Callable[[str], Iterator[str]]


@dataclass(frozen=True)
class Fault:
    """``edit`` yields the PTX with one site broken after the other; ``caught_as``: names of which one must be given."""

    name: str
    kernel: str
    edit: Edit
    caught_as: frozenset[str]
    batch: int = 67
    dtype: torch.dtype = torch.float32

    @property
    def may_be_idle(self) -> bool:
        """A removal can turn out to remove nothing; an added error cannot."""
        return self.edit in (_REMOVE_BARRIER, _DROP_STORE_MASK, _DROP_LOAD_MASK, _DROP_STORE)


@dataclass
class Verdict:
    """What each site came to.

    names: how often each name was given. missed: the texts of the sites that nothing noticed though they matter.
    idle: sites that change nothing in this launch: a mask that excludes no lane, a store that no lane makes, a barrier
    on either side of which no byte is used by two warps.
    """

    fault: Fault
    sites: int = 0
    idle: int = 0
    names: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    @property
    def caught(self) -> bool:
        return self.sites > self.idle and not self.missed and bool(self.fault.caught_as & self.names.keys())


def _sites(pattern: str, replace: Callable[[re.Match[str]], str]) -> Edit:
    """An edit that replaces one match of ``pattern`` after the other."""

    def edit(ptx: str) -> Iterator[str]:
        start = ptx.index("{", ptx.index(".reqntid")) + 1
        declared = f"{ptx[:start]}\n{_REGISTERS}{ptx[start:]}"
        for match in re.finditer(pattern, declared):
            yield declared[: match.start()] + replace(match) + declared[match.end() :]

    return edit


def _shifted(amount: int, *parameters: int) -> Edit:
    """Pointer parameters that begin ``amount`` bytes further on."""
    numbers = "|".join(map(str, parameters))
    return _sites(
        rf"ld\.param\.b64\s+(%rd\d+), \[\w+_param_({numbers})\];",
        lambda match: f"{match[0]}\n\tadd.s64 {match[1]}, {match[1]}, {amount};",
    )


def _blocks_on_one_place(stride: int) -> Edit:
    """Parameter 0 moved back by the block's number times ``stride``: all blocks write where block 0 writes."""
    return _sites(
        r"ld\.param\.b64\s+(%rd\d+), \[\w+_param_0\];",
        lambda match: (
            f"{match[0]}\n\tmov.u32 %fault0, %ctaid.x;\n\tmul.wide.s32 %faultd0, %fault0, {-stride};"
            f"\n\tadd.s64 {match[1]}, {match[1]}, %faultd0;"
        ),
    )


_REMOVE_BARRIER = _sites(r"\n\s*bar\.sync\s+0;", lambda match: "")
# The barriers between all threads' partial sums and the thread that counts their block's arrival, and between the
# arrival of the last block and its threads' reading of everybody's sums.
_REMOVE_BEFORE_ARRIVAL = _sites(r"\n\s*bar\.sync\s+0;(?=((?!bar\.sync)[\s\S])*?atom\.global)", lambda match: "")
_REMOVE_AFTER_ARRIVAL = _sites(r"(atom\.global((?!bar\.sync)[\s\S])*)bar\.sync\s+0;", lambda match: match[1])
_SKIP_BARRIER = _sites(
    r"\n\s*bar\.sync\s+0;",
    lambda match: (
        "\n\tmov.u32 %fault0, %tid.x;\n\tsetp.lt.u32 %faultp0, %fault0, 32;"
        f"\n\t@%faultp0 bra $L__fault;{match[0]}\n$L__fault:"
    ),
)
_DROP_STORE_MASK = _sites(r"@!?%p\d+ (st\.global)", lambda match: match[1])
_DROP_LOAD_MASK = _sites(r"@!?%p\d+ (ld\.global)", lambda match: match[1])
_DROP_STORE = _sites(r"\n[^\n;]*st\.global[^;]*;", lambda match: "")
# Warp w writes where warp w xor 1 should.
_SWAP_SLOTS = _sites(
    r"st\.shared(\.v\d)?\.b32\s*\[\s*(%r\d+)",
    lambda match: (
        f"xor.b32 %fault0, {match[2]}, {128 * int((match[1] or '.v1')[2:])};\n\t{match[0].replace(match[2], '%fault0')}"
    ),
)
_RACE, _BLOCKS = frozenset({"shared race", "global race"}), frozenset({"conflicting writes of two blocks"})
_BARRIER = frozenset({"barrier not reached by all lanes"})
_OUTSIDE = frozenset({"out of bounds", "misaligned access"})
FAULTS = (
    Fault("barrier removed", "sample_latents", _REMOVE_BARRIER, _RACE),
    Fault("barrier removed", "head_loss G", _REMOVE_BARRIER, _RACE),
    Fault("barrier before the arrival removed", "head_loss G", _REMOVE_BEFORE_ARRIVAL, frozenset({"global race"}), 600),
    Fault("barrier after the arrival removed", "head_loss D", _REMOVE_AFTER_ARRIVAL, frozenset({"global race"}), 5000),
    Fault("barrier skipped by one warp", "sample_latents", _SKIP_BARRIER, _BARRIER),
    Fault("pointer one element on", "head_loss D", _shifted(4, 0, 1, 2, 3, 4), _OUTSIDE),
    Fault("pointer one element on", "sample_latents", _shifted(4, 0, 2), _OUTSIDE),
    Fault("pointer one element on", "image_batch", _shifted(4, 0), _OUTSIDE),
    Fault("pointer one element on", "pack_codes", _shifted(4, 0, 1), _OUTSIDE),
    Fault("pointer one element on", "unpack_codes", _shifted(8, 0), _OUTSIDE),
    Fault("pointer off by two bytes", "pack_codes", _shifted(2, 0), frozenset({"misaligned access"})),
    Fault("mask of a store dropped", "pack_codes", _DROP_STORE_MASK, _OUTSIDE),
    Fault("mask of a store dropped", "image_batch", _DROP_STORE_MASK, _OUTSIDE),
    Fault("mask of a store dropped", "unpack_codes", _DROP_STORE_MASK, _OUTSIDE),
    Fault("mask of a load dropped", "unpack_codes", _DROP_LOAD_MASK, _OUTSIDE | {WRONG}),
    Fault("two warps' slots swapped", "sample_latents", _SWAP_SLOTS, frozenset({WRONG})),
    Fault("output left unwritten", "sample_latents", _DROP_STORE, frozenset({"output left unwritten"})),
    Fault("output left unwritten", "head_loss G", _DROP_STORE, frozenset({"output left unwritten"})),
    Fault("output left unwritten", "unpack_codes", _DROP_STORE, frozenset({"output left unwritten"})),
    Fault("blocks write to one place", "image_batch", _blocks_on_one_place(12 * 10 * 4), _BLOCKS),
)  # fmt: skip


def try_fault(fault: Fault, capability: int = 90, most_sites: int = 1000) -> Verdict:
    """Execute the kernel with each of the first ``most_sites`` sites broken."""
    made: list[object] = []
    one = case(fault.kernel, _SPEC, _SHAPE, fault.dtype, fault.batch, strided=fault.kernel != "pack_codes")
    launch = launches_of(lambda: made.append(one.launcher()), capability)[0]
    verdict = Verdict(fault)
    _, unbroken = _names(one, launch, made[0], launch.ptx)
    for ptx in fault.edit(launch.ptx):
        if verdict.sites == most_sites:
            break
        verdict.sites += 1
        names, accesses = _names(one, launch, made[0], ptx)
        verdict.names.update(names)
        if not names and fault.may_be_idle and accesses == unbroken:
            verdict.idle += 1
        elif not names:
            verdict.missed.append(_difference(launch.ptx, ptx))
    return verdict


def _names(one: Case, launch: Launch, value: object, ptx: str) -> tuple[set[str], int]:
    """What was noticed, and how many accesses were made."""
    for tensor in value if isinstance(value, tuple) else (value,):
        if tensor.numel():
            tensor.zero_()
    try:
        result = execute(launch, ptx)
    except Stuck as stuck:
        return {str(stuck)}, 0
    names = {finding.kind for finding in result.findings}
    if worst_error(one, Output(value)) > 1.0:
        names.add(WRONG)
    return names, result.counters.accesses


def _difference(before: str, after: str) -> str:
    """The lines of the edit."""
    old, new = before.splitlines(), after.splitlines()
    missing = Counter(old) - Counter(new)
    return " / ".join(line.strip() for line in missing) or "an added line"
