"""Compile the CUDA kernels of ``csrc/`` for GPUs that are not there and read what ptxas made of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = sorted((Path(__file__).parent.parent / "csrc").glob("*.cu"))
NVCC = shutil.which("nvcc")


@dataclass(frozen=True)
class Kernel:
    """One instantiation: its demangled and its mangled name, its instructions, and what one thread of it takes."""

    name: str
    symbol: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    sass_instructions: int


def kernels_of(source: Path, capability: int) -> list[Kernel]:
    """Every kernel that ``source`` instantiates, compiled for ``sm_<capability>`` with the flags of setup.py."""
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = ["-std=c++17", "-O3", "-cubin", f"-arch=sm_{capability}"]
        subprocess.run([NVCC, *flags, str(source), "-o", str(cubin)], check=True, capture_output=True)
        listing = _cuobjdump("--dump-resource-usage", str(cubin))
        sass = {
            body.split(None, 1)[0]: sass_instructions(body)
            for body in _cuobjdump("-sass", str(cubin)).split("Function : ")
        }
    found = []
    for mangled, usage in re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", listing):
        counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
        found.append(
            Kernel(
                _demangled(mangled),
                mangled,
                counts["REG"],
                counts["STACK"] + counts["LOCAL"],
                counts["SHARED"],
                sass[mangled],
            )
        )
    return sorted(found, key=lambda kernel: kernel.name)


@cache
def ptx_of(source: Path, capability: int) -> str:
    """The PTX of ``source`` for ``compute_<capability>`` with the flags of setup.py."""
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        flags = ["-std=c++17", "-O3", "-ptx", f"-arch=compute_{capability}"]
        subprocess.run([NVCC, *flags, str(source), "-o", str(ptx)], check=True, capture_output=True)
        return ptx.read_text()


def _cuobjdump(*arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def sass_instructions(disassembly: str) -> int:
    """Instructions of a disassembled kernel, without the padding after the last one."""
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", disassembly)
    return sum(opcode != "NOP" for opcode in opcodes)


def _demangled(name: str) -> str:
    filt = shutil.which("c++filt")
    if filt is None:
        return name
    full = subprocess.run([filt, name], check=True, capture_output=True, text=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|^void |fastinfogan::|fig::", "", full).split("(")[0]
