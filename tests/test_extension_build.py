"""The extension is optional: what breaks its build must not break the installation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastinfogan.ops import native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup.py reads, without any build output."""
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "kernels", "fastinfogan"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def setup_py(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_compiler_that_fails_leaves_a_working_package_and_says_so(checkout):
    done = setup_py(checkout, "build_ext", "--inplace", CXX="/bin/false", CC="/bin/false")
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert log.count("extension did not build") == 1 and "install a C++17 compiler" in log
    assert not list(checkout.rglob("*.so"))
    # Without the finder of an editable install, which would offer the extension of that checkout.
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')];"
        "from fastinfogan.ops import native, native_layers; assert not native.available(); print(native.why_not)"
    )
    imported = subprocess.run(
        [sys.executable, "-c", program],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "extension is not built" in imported.stdout


def test_an_extension_of_another_version_is_not_called(tmp_path: Path) -> None:
    (tmp_path / "_C.py").write_text("")  # as one was that had no number yet
    program = (
        f"import fastinfogan; fastinfogan.__path__.insert(0, {str(tmp_path)!r});"
        "from fastinfogan.ops import native, native_layers; assert not native.available(); print(native.why_not)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "of another version of the package: pip install -e . builds it anew" in done.stdout


# Change these two together: what a call passes is trusted, and an old extension that is called anew may read anywhere.
SIGNATURES = {1: "c91e142fabcb1589"}


def test_the_interface_is_counted_up_where_signatures_change() -> None:
    source = (ROOT / "csrc" / "bindings.cpp").read_text()
    signatures = re.findall(r"^[\w:<>&*, ]+ \w+\([^;{]*\) \{$", source, re.MULTILINE)
    defined = re.findall(r'\.def\("\w+"|\.attr\("\w+"\)', source)
    (number,) = map(int, re.findall(r'attr\("interface"\) = (\d+);', source))
    digest = hashlib.sha256("\n".join([*signatures, *defined]).encode()).hexdigest()[:16]
    assert len(signatures) > 20 and number == native.INTERFACE and {number: digest} == SIGNATURES


def test_a_cuda_compiler_that_fails_leaves_the_cpu_extension(checkout):
    nvcc = checkout / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    for source in (checkout / "csrc").glob("cpu_*.cpp"):  # what is compiled does not matter here, and this is quick
        source.write_text("")
    (checkout / "csrc" / "bindings.cpp").write_text("#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_C, module) {}\n")
    done = setup_py(checkout, "build_ext", "--inplace", CUDA_HOME=str(nvcc.parent.parent))
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    if "extension did not build" in log:
        pytest.skip("no C++ compiler here")
    assert "CUDA sources did not build" in log and "built for the CPU alone" in log
    assert len(list((checkout / "fastinfogan").glob("_C*.so"))) == 1


def test_setup_imports_no_torch():
    program = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "fastinfogan"


def test_instruction_sets_share_no_symbol(tmp_path):
    """An inline function compiled for AVX-512 must not become the one that every machine runs."""
    compiler, nm = shutil.which("g++"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs g++ and nm")
    for source in sorted((ROOT / "csrc").glob("cpu_*.cpp")):
        built = str(tmp_path / f"{source.stem}.o")
        flags = ["-std=c++17", "-O0", "-fopenmp", "-DFIG_ISA=elsewhere"]
        subprocess.run([compiler, *flags, "-c", str(source), "-o", built], check=True)
        symbols = subprocess.run([nm, "-C", built], capture_output=True, text=True, check=True).stdout
        shared = [line for line in symbols.splitlines() if line[17:18] == "W" and "elsewhere" not in line]
        assert not shared, f"{source.name}: {shared}"
