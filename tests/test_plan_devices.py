"""Devices as they come: little shared memory, few SMs, a MIG slice. Every call that the arch can do gets a legal plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import gpulinear as gl
from gpulinear.calls import BUILDERS
from gpulinear.config import GemmConfig
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.gemm import plan_call
from gpulinear.plan import Plan

# KB that a block may have: sm_75's default and limit; sm_86, 89 and 120; sm_80; sm_90 and 100. A MIG slice keeps its SMs'.
TURING, LATER = (48, 64), (99, 163, 227)
SHAPES = ((1, 64, 64), (7, 33, 129), (256, 256, 8208))  # (tokens, out, in)


def device(arch: str, smem: int, sms: int) -> DeviceSpec:
    """A preset with other limits: an SM holds what a block may have and the system's 1 KB."""
    return replace(
        DeviceSpec.preset(arch), smem_per_block_optin=smem, smem_per_sm=smem + 1024, sm_count=sms, name="a small device"
    )


def plan(op: str, shape: tuple[int, int, int], dtype: str, precision: str | None, spec: DeviceSpec) -> Plan:
    tokens, out, inner = shape
    at = {
        "x": gl.ShapeDtype((tokens, inner), dtype),
        "weight": gl.ShapeDtype((out, inner), dtype),
        "dy": gl.ShapeDtype((tokens, out), dtype),
    }
    names = {"linear": ("x", "weight"), "dgrad": ("dy", "weight"), "wgrad": ("dy", "x")}[op]
    call: Any = BUILDERS[op](*(at[name] for name in names), precision=precision)
    return plan_call(call, spec)


def kinds() -> list[tuple[str, str | None]]:
    plain: list[tuple[str, str | None]] = [(dtype, None) for dtype in ("float64", "float32", "float16", "bfloat16")]
    return plain + [("float32", precision) for precision in ("tf32", "tf32x3", "bf16x6")]


@pytest.mark.parametrize("sms", [1, 16, 132])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_device_gets_a_legal_plan(arch: str, sms: int) -> None:
    for smem in (kb * 1024 for kb in (TURING if arch == "sm_75" else LATER)):
        spec = device(arch, smem, sms)
        for dtype, precision in kinds():
            if precision is not None and spec.compute_capability < (8, 0):
                continue
            for op in ("linear", "dgrad", "wgrad"):
                for shape in SHAPES:
                    for step in plan(op, shape, dtype, precision, spec).steps:
                        assert step.smem_bytes <= smem, (step, spec)
                        assert step.threads <= 1024 and step.grid >= 1
                        if isinstance(step.config, GemmConfig):
                            assert step.config.threads * step.config.registers <= spec.regs_per_block


def test_what_an_arch_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("tf32", "tf32x3", "bf16x6"):
        with pytest.raises(gl.BackendError, match="sm_80"):
            plan("linear", (8, 8, 8), "float32", precision, DeviceSpec.preset("sm_75"))


def test_too_little_shared_memory_for_any_tile_is_said() -> None:
    with pytest.raises(gl.BackendError, match="shared memory"):
        plan("linear", (64, 64, 64), "float32", None, device("sm_80", 1024, 108))
