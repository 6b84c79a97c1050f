"""Builds ``csrc/`` as ``fastinfogan._C``: C++ for the CPU, CUDA too where nvcc is found; everything else is metadata.

The extension is optional. Without a C++ compiler the package installs all the same and runs its PyTorch reference on
the CPU; without nvcc, or where nvcc fails, the extension is built for the CPU alone. Nothing here imports torch: the
extension takes pointers, so it is built in isolation and fits every version of torch.

    FASTINFOGAN_NO_CUDA=1    do not look for nvcc
    FASTINFOGAN_SANITIZE=1   build with AddressSanitizer and UndefinedBehaviorSanitizer, for the tests
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("csrc")
CPU_OPS = ("sample_latents", "head_loss", "image_batch", "codes", "patches", "transpose", "norm_act", "adam")
CPU_SOURCES = [str(SOURCES / f"cpu_{name}.cpp") for name in (*CPU_OPS, "table")]
CUDA_SOURCES = [str(SOURCES / "pack_codes.cu")]
X86 = platform.machine().lower() in ("x86_64", "amd64")
SANITIZE = os.environ.get("FASTINFOGAN_SANITIZE") == "1"

# The CPU sources are compiled once for each of these and the machine's best is chosen at import, so that a binary runs
# on every processor of its architecture.
INSTRUCTION_SETS = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]

# No -ffast-math: the bits are part of the contract. What is given up instead is harmless to them: errno after sqrt,
# and floating point traps, which keep a compiler from turning a choice into a vector select.
FLAGS = ["-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]
# Apple's compiler has no OpenMP runtime: there the loops are vectorised and run on one thread.
THREADS = [] if sys.platform == "darwin" else ["-fopenmp"]
VECTORS = ["-fopenmp-simd"] if sys.platform == "darwin" else []
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []

# Code for the oldest GPUs that nvcc 13 knows (T4, RTX 20) and for the data-centre GPUs of the last three generations,
# and PTX of the newest for what comes after.
CUDA_ARCHITECTURES = ("75", "80", "90", "100")


class Toolkit:
    """nvcc, and what it says about itself."""

    def __init__(self, nvcc: str) -> None:
        self.nvcc = nvcc
        known = self._run("--list-gpu-code").split()
        self.architectures = [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch}" in known]
        if not self.architectures:
            raise RuntimeError(f"{nvcc} compiles for none of sm_{', sm_'.join(CUDA_ARCHITECTURES)}")
        # nvcc may be a wrapper far from its toolkit; only nvcc knows where its libraries lie.
        plan = self._run("--dryrun", "-c", CUDA_SOURCES[0], "-o", "unused.o")
        libraries = next((line for line in plan.splitlines() if "LIBRARIES=" in line), "")
        self.library_dirs = [path for path in re.findall(r'-L([^"\s]+)', libraries) if not path.endswith("stubs")]

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([self.nvcc, *arguments], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    @staticmethod
    def find() -> Toolkit | None:
        """The toolkit of CUDA_HOME, else of PATH; None without one."""
        if os.environ.get("FASTINFOGAN_NO_CUDA") == "1" or SANITIZE or sys.platform != "linux":
            return None
        home = os.environ.get("CUDA_HOME")
        nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
        nvcc = nvcc or shutil.which("nvcc")
        return Toolkit(nvcc) if nvcc else None

    @property
    def names(self) -> str:
        return " ".join([*(f"sm_{arch}" for arch in self.architectures), f"compute_{self.architectures[-1]}"])

    def compile(self, source: str, directory: str) -> str:
        newest = self.architectures[-1]
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.architectures]
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        target = Path(directory) / f"{Path(source).stem}_cu.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", "-cudart=static"]
        subprocess.run([self.nvcc, *flags, *targets, "-c", source, "-o", str(target)], check=True)
        return str(target)


def reason(error: Exception) -> str:
    """A failed command by its name alone; what the compiler said stands above the warning in the log."""
    command = re.match(r"Command '\['([^']+)'", str(error))
    return f"{Path(command[1]).name} failed, see above" if command else f"{type(error).__name__}: {error}"


class BuildExtension(build_ext):
    """Compiles the CPU sources per instruction set, adds CUDA where it works, and never fails an installation."""

    def build_extension(self, ext: Extension) -> None:
        try:
            import pybind11

            ext.include_dirs = [pybind11.get_include()]
            objects = self.compile_cpu()
        except Exception as error:
            self.give_up(error)
            return
        try:
            toolkit = Toolkit.find()
            if toolkit is not None:
                self.link(ext, objects, toolkit)
                return
        except Exception as error:
            self.warn(
                f"CUDA was found but fastinfogan's CUDA sources did not build ({reason(error)}). The extension is "
                "built for the CPU alone; GPUs use the Triton kernels. Set FASTINFOGAN_NO_CUDA=1 to skip this attempt."
            )
        try:
            self.link(ext, objects, None)
        except Exception as error:
            self.give_up(error)

    def compile_cpu(self) -> list[str]:
        """Objects of every CPU source for every instruction set."""

        def compile_one(job: tuple[str, str]) -> list[str]:
            name, source = job
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("FIG_ISA", name), *([("FIG_X86", "1")] if X86 else [])],
                extra_postargs=[*FLAGS, *THREADS, *VECTORS, *SANITIZERS, *INSTRUCTION_SETS[name]],
            )

        jobs = [(name, source) for name in INSTRUCTION_SETS for source in CPU_SOURCES]
        for name in INSTRUCTION_SETS:
            self.mkpath(str(Path(self.build_temp) / name / SOURCES))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [path for paths in pool.map(compile_one, jobs) for path in paths]

    def link(self, ext: Extension, cpu_objects: list[str], toolkit: Toolkit | None) -> None:
        """Compile the bindings, with CUDA where there is a toolkit, and link."""
        ext.extra_objects = list(cpu_objects)
        ext.define_macros = [("FIG_X86", "1")] if X86 else []
        ext.libraries, ext.library_dirs = [], []
        ext.extra_compile_args = [*FLAGS, *SANITIZERS]
        ext.extra_link_args = [*THREADS, *SANITIZERS]
        if toolkit is not None:
            ext.extra_objects += [toolkit.compile(source, self.build_temp) for source in CUDA_SOURCES]
            ext.define_macros += [("FIG_WITH_CUDA", "1"), ("FIG_CUDA_ARCHS", f'"{toolkit.names}"')]
            ext.library_dirs = toolkit.library_dirs
            ext.libraries = ["cudart_static", "dl", "rt", "pthread"]
        self.force = True  # the same source is compiled with other macros
        super().build_extension(ext)

    def give_up(self, error: Exception) -> None:
        self.warn(
            f"fastinfogan's C++ extension did not build ({reason(error)}). The package works without it: on the CPU it "
            "uses the PyTorch reference, several times slower in the small ops between the networks, and on a GPU the "
            "Triton kernels. To build it, install a C++17 compiler (Debian: apt-get install g++) and run "
            "pip install -e . again."
        )


setup(
    packages=[*find_packages(include=["fastinfogan", "fastinfogan.*"]), "fastinfogan.kernels"],
    # A top-level module named kernels would collide with a well-known package.
    package_dir={"fastinfogan.kernels": "kernels"},
    ext_modules=[
        Extension(
            "fastinfogan._C",
            [str(SOURCES / "bindings.cpp")],
            depends=[str(path) for path in sorted(SOURCES.iterdir())],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
