"""Faults seeded into the compiled kernels are caught, and by the right name. All of them: ``python -m tests.ptx``."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from tests.ptx.faults import FAULTS, Fault, try_fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}-{fault.name}")
def test_one_fault_of_each_kind_is_caught_by_name(fault: Fault) -> None:
    verdict = try_fault(fault, most_sites=2)
    assert verdict.fault.caught_as & verdict.names.keys() or verdict.idle == verdict.sites, verdict
    assert not verdict.missed


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}-{fault.name}")
def test_every_site_of_every_fault_is_caught_by_name(fault: Fault, capability: int) -> None:
    verdict = try_fault(fault, capability)
    assert verdict.caught, verdict
