"""The self-check that a new device meets: it finds what is wrong, and a wrong kernel costs speed instead of results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from fastinfogan import doctor
from fastinfogan.ops import native, selfcheck
from fastinfogan.ops.backend import VARIABLE, available
from fastinfogan.ops.selfcheck import Check, check_ops, trust
from fastinfogan.precision import choose_precision
from tests.conftest import Command

CPU = torch.device("cpu")


def test_every_backend_of_every_op_agrees_here() -> None:
    checks = check_ops(CPU)
    assert all(check.agrees for check in checks), checks
    assert {check.op for check in checks if check.backend == "native"} == (
        {"sample_latents", "head_loss", "image_batch", "pack_codes", "unpack_codes", "traversal", "recognize"}
        | {"fc", "convolve", "convolve_transposed", "norm_act", "adam"}
        if "native" in available("cpu")
        else set()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda tensors: (tensors[0] + 1e-4, *tensors[1:]),
        lambda tensors: (tensors[0] * float("nan"), *tensors[1:]),
        lambda tensors: (tensors[0][:-1], *tensors[1:]),
        lambda tensors: (tensors[0].double(), *tensors[1:]),
    ],
)
def test_a_backend_that_is_slightly_wrong_does_not_agree(wrong) -> None:  # type: ignore[no-untyped-def]
    right = (torch.rand(4, 4), torch.arange(4))
    check = selfcheck._check("op", [lambda backend: right if backend == "reference" else wrong(right)], "native")
    assert not check.agrees


def test_an_integer_off_by_one_does_not_agree() -> None:
    check = selfcheck._check("op", [lambda backend: (torch.arange(4) + (backend == "native"),)], "native")
    assert not check.agrees


def test_a_kernel_that_does_not_compile_is_a_finding_and_no_crash() -> None:
    def case(backend: str) -> tuple[torch.Tensor, ...]:
        if backend == "triton":
            raise RuntimeError("no such architecture")
        return (torch.zeros(1),)

    check = selfcheck._check("op", [case], "triton")
    assert not check.agrees and check.failure == "RuntimeError: no such architecture"


class TestTrust:
    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv(VARIABLE, "")

    def test_a_disagreement_is_loud_and_switches_to_the_reference(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(selfcheck, "check_ops", lambda _: [Check("head_loss", "triton", 3.0, 0.1)])
        trust(torch.device("cuda"))
        assert "WARNING: on this GPU head_loss (triton) disagrees, so all ops" in capsys.readouterr().err
        assert os.environ[VARIABLE] == "reference"

    def test_a_kernel_that_cannot_be_built_is_told_with_what_it_lacks(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failed = Check("head_loss", "triton", 0.0, 0.1, "RuntimeError: Failed to find C compiler\nSet CC")
        monkeypatch.setattr(selfcheck, "check_ops", lambda _: [failed])
        trust(torch.device("cuda"))
        warning = capsys.readouterr().err
        assert "could not be built or run (RuntimeError: Failed to find C compiler)" in warning
        assert "gcc, python3-dev" in warning

    def test_what_agreed_is_checked_once_per_device_and_version(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[str] = []

        def check(_: torch.device) -> list[Check]:
            asked.append("once")
            return [Check("head_loss", "triton", 0.5, 0.1)]

        monkeypatch.setattr(selfcheck, "check_ops", check)
        trust(torch.device("cuda"))
        trust(torch.device("cuda"))
        assert asked == ["once"]
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Another GPU")
        trust(torch.device("cuda"))
        assert len(asked) == 2
        monkeypatch.setattr(native, "cuda_architectures", lambda: "sm_123")  # the extension was built anew
        trust(torch.device("cuda"))
        assert len(asked) == 3
        for owner in (selfcheck, torch):
            monkeypatch.setattr(owner, "__version__", "another")
            trust(torch.device("cuda"))
        monkeypatch.setattr(selfcheck, "_kernels", lambda: "an edited kernel")
        trust(torch.device("cuda"))
        assert len(asked) == 6
        assert os.environ[VARIABLE] == "" and "WARNING" not in capsys.readouterr().err

    def test_a_triton_that_cannot_be_imported_is_a_warning_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failed = Check("head_loss", "triton", 0.0, 0.1, "ImportError: broken")
        monkeypatch.setattr(selfcheck, "check_ops", lambda _: [failed])
        monkeypatch.setattr(selfcheck, "available", lambda _: ["triton", "reference"])
        monkeypatch.setitem(sys.modules, "triton", None)
        trust(torch.device("cuda"))
        assert "WARNING: on this GPU head_loss (triton) could not be built" in capsys.readouterr().err

    @pytest.mark.parametrize("home", ["locked", "none", "empty"])
    def test_without_a_cache_of_ones_own_it_is_checked_every_time(
        self, home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked: list[str] = []

        def check(_: torch.device) -> list[Check]:
            asked.append("once")
            return [Check("head_loss", "triton", 0.5, 0.1)]

        def locked(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(selfcheck, "check_ops", check)
        monkeypatch.chdir(tmp_path)
        if home == "locked":
            for method in ("read_text", "mkdir"):
                monkeypatch.setattr(Path, method, locked)
        else:
            monkeypatch.setattr(Path, "home", nobody)
            monkeypatch.setenv("XDG_CACHE_HOME", "")
            if home == "none":
                monkeypatch.delenv("XDG_CACHE_HOME")
        trust(torch.device("cuda"))
        trust(torch.device("cuda"))
        assert len(asked) == 2 and not list(tmp_path.iterdir())

    def test_a_cache_folder_that_is_named_needs_no_home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(Path, "home", lambda: pytest.fail("asked"))
        monkeypatch.setattr(selfcheck, "check_ops", lambda _: [])
        trust(torch.device("cuda"))
        assert (tmp_path / "fastinfogan" / "trusted").exists()

    def test_the_cpu_is_not_asked(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(selfcheck, "check_ops", lambda _: pytest.fail("checked"))
        trust(CPU)
        monkeypatch.setattr(native, "why_not", "the C++ extension is not built")
        trust(CPU)
        assert "notice: the C++ extension is not built; without it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("built_for", "capabilities", "serves"),
    [
        ("sm_75 sm_80 compute_80", [(7, 5)], True),
        ("sm_80 sm_90 compute_90", [(7, 5)], False),  # a T4 would find no code
        ("sm_80 sm_90 compute_90", [(12, 0), (8, 0)], True),  # the first compiles the PTX
        ("sm_80 sm_90 compute_90", [(9, 0), (7, 5)], False),
        ("", [(9, 0)], False),
    ],
)
def test_cuda_kernels_serve_no_gpu_that_they_were_not_compiled_for(
    monkeypatch: pytest.MonkeyPatch, built_for: str, capabilities: list[tuple[int, int]], serves: bool
) -> None:
    monkeypatch.setattr(native, "cuda_architectures", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert native.on_cuda() is serves


def test_the_command_prints_versions_backends_and_verdicts(command: Command) -> None:
    outcome = command(doctor, "--device", "cpu")
    assert outcome.code == 0
    assert torch.__version__ in outcome.out and "C++ extension:" in outcome.out
    for check in check_ops(CPU):
        assert f"{check.op:<20}{check.backend:<8}agrees" in outcome.out


def test_json_holds_the_same(command: Command) -> None:
    found = json.loads(command(doctor, "--device", "cpu", "--json").out)
    assert found["device"]["type"] == "cpu"
    assert set(found["serving"].values()) <= set(available("cpu"))
    assert all(check["agrees"] for check in found["checks"])


def test_a_disagreement_is_an_error_that_names_the_remedy(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_ops", lambda _: [Check("head_loss", "native", 9.0, 0.1)])
    outcome = command(doctor, "--device", "cpu")
    assert outcome.code == 2
    # What a run here chooses, for all that: nothing but the variable changes it.
    served = selfcheck.serving(CPU)["head_loss"]
    assert "DISAGREES" in outcome.out and ("not in use" in outcome.out) is (served != "native")
    assert "head_loss (native)" in outcome.err and f"{VARIABLE}=reference" in outcome.err
    monkeypatch.setenv(VARIABLE, "reference")
    assert "not in use" in command(doctor, "--device", "cpu").out


def test_on_a_gpu_nothing_fused_is_in_use_where_anything_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    found = [Check("head_loss", "triton", float("inf"), 0.1), Check("image_batch", "triton", 0.5, 0.1)]
    monkeypatch.setattr(doctor, "check_ops", lambda _: found)
    monkeypatch.setattr(doctor, "choose_precision", lambda *_, **__: choose_precision(CPU, amp=True))
    examined = doctor.examine(torch.device("cuda"))
    assert examined["serving"] == {"head_loss": "reference", "image_batch": "reference"}
    assert json.loads(json.dumps(examined, allow_nan=False))["checks"][0]["worst"] is None
    assert "worst error no number" in doctor.report(examined)


@pytest.mark.parametrize("asked", ["bogus", "triton"])
def test_a_backend_that_no_run_would_take_is_an_error_here_too(
    command: Command, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    if asked in available("cpu"):
        pytest.skip("Triton's interpreter is on")
    monkeypatch.setenv(VARIABLE, asked)
    outcome = command(doctor, "--device", "cpu")
    assert outcome.code == 2 and "backend" in outcome.err and "agrees" not in outcome.out


def test_a_machine_without_fused_backends_is_told_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_ops", lambda _: [])
    monkeypatch.setattr(doctor.native, "why_not", "the C++ extension is not built")
    monkeypatch.setenv(VARIABLE, "reference")
    out = command(doctor, "--device", "cpu").out
    assert "every op uses the PyTorch reference" in out
    assert "the C++ extension is not built" in out
    assert f"{VARIABLE}=reference overrides" in out
