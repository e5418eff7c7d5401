"""What a call would do, without doing it: its plan, and its kernels compiled ahead of time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import gemm
from .calls import BUILDERS
from .device import DeviceSpec
from .errors import ArgumentError
from .plan import Plan
from .views import HOST


def _build(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> gemm.Call:
    if op not in BUILDERS:
        raise ArgumentError(f"op must be one of {', '.join(BUILDERS)}, got {op!r}")
    return BUILDERS[op](*args, **kwargs)


def _plan(call: gemm.Call, arch: str | None) -> Plan:
    if arch is None and call.device != HOST:
        from .backends import cuda

        return gemm.plan_call(call, cuda.spec(call.device))
    return gemm.plan_call(call, DeviceSpec.preset(arch or gemm.current_host_backend().arch))


def explain(op: str, *args: Any, arch: str | None = None, **kwargs: Any) -> Plan:
    """The plan of a call: kernels, tiles, S, grid, what is read in place or copied, and the refused candidates.

    Args:
        op: "linear", "dgrad", "wgrad", "bgrad", "linear_backward" or "split".
        args, kwargs: the arguments of that function: arrays of any shapes and dtypes it takes, or ShapeDtype.
        arch: plan for this architecture, such as "sm_80"; default: the arrays' own GPU, else the host backend's arch.

    Returns:
        Plan: ``print`` it. Predicted microseconds in it come from the cost model and are not measurements.

    Raises:
        ArgumentError, ShapeError, DTypeError: as the call would. BackendError: unknown arch, or no kernel can do it.

    Source: docs/design.md, "The way a call takes".
    """
    return _plan(_build(op, args, kwargs), arch)


def warmup(op: str, *args: Any, arch: str | None = None, **kwargs: Any) -> Plan:
    """Compile, in threads, every kernel that a call needs; for CuPy arrays also load them, before a graph capture.

    Args:
        op, args, kwargs, arch: as for ``explain``. Shapes and dtypes must be those of the later calls.

    Returns:
        Plan: what was prepared. Nothing is launched or written.

    Raises:
        ArgumentError, ShapeError, DTypeError: as the call would. BackendError: NVRTC is missing, or no kernel can do it.
        CompileError: NVRTC refused a kernel.

    Source: docs/design.md, "Public API".
    """
    from .launch import compile_step

    call = _build(op, args, kwargs)
    plan = _plan(call, arch)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda step: compile_step(step, plan.arch), plan.steps))
    if call.device != HOST and arch is None:
        from .backends import cuda

        cuda.BoundPlan(plan, call.device, list(call.arrays))
    return plan
