"""The path of a call, from checked problems to whoever runs them, and the short cut of a warm call.

    problems -> plan -> source -> artifact -> launch

A call on a GPU that was seen before (same op, shapes, strides, dtypes, alignment, flags) skips all but the launch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from .device import DeviceSpec
from .errors import ArgumentError, BackendError
from .plan import Options, Plan
from .planner import make_plan
from .problem import Problem
from .views import HOST, check_overlaps, describe

HOST_BACKENDS = ("reference", "emulator")
DEFAULT_ARCH = "sm_90a"


@dataclass(frozen=True)
class HostBackend:
    """What NumPy arrays run on, and the arch that it stands for."""

    name: str
    arch: str


@dataclass(frozen=True)
class Call:
    """A checked call: problems over named arrays. ``device`` is HOST or a GPU's number."""

    op: str
    problems: tuple[Problem, ...]
    temporaries: tuple[tuple[str, int], ...]
    arrays: dict[str, Any]
    pointers: dict[str, int]
    device: int


_DEFAULT_OPTIONS = Options()  # frozen
_host_backend: ContextVar[HostBackend | None] = ContextVar("gpulinear_host_backend", default=None)
_options: ContextVar[Options] = ContextVar("gpulinear_options", default=_DEFAULT_OPTIONS)


def _make_host_backend(name: str, arch: str) -> HostBackend:
    if name not in HOST_BACKENDS:
        raise BackendError(f"the host backend must be one of {', '.join(HOST_BACKENDS)}, got {name!r}")
    DeviceSpec.preset(arch)  # raises BackendError for an unknown arch
    return HostBackend(name, arch)


def current_host_backend() -> HostBackend:
    """The host backend of this context: ``host_backend``, else GPULINEAR_HOST_BACKEND, else the reference."""
    chosen = _host_backend.get()
    if chosen is None:
        chosen = _make_host_backend(os.environ.get("GPULINEAR_HOST_BACKEND", "reference"), DEFAULT_ARCH)
    return chosen


@contextmanager
def host_backend(name: str, arch: str = DEFAULT_ARCH) -> Iterator[None]:
    """Run NumPy arrays on ``name`` inside the block.

    Args:
        name: "reference" (NumPy in float64) or "emulator" (the shipped kernels).
        arch: the GPU architecture whose kernels are planned, such as "sm_90a".

    Raises:
        BackendError: unknown backend or arch.

    Source: docs/design.md, "Public API".
    """
    token = _host_backend.set(_make_host_backend(name, arch))
    try:
        yield
    finally:
        _host_backend.reset(token)


@contextmanager
def options(*, num_sms: int | None = None, workspace_limit: int | None = None) -> Iterator[None]:
    """Limit what calls inside the block may use; the bits stay the same.

    Args:
        num_sms: plan for this many SMs (at least 1), to leave room for overlapping work. None: all of them.
        workspace_limit: bytes of temporary memory that split-K may take (at least 0).

    Raises:
        ArgumentError: a value out of range.

    Source: docs/design.md, "Public API".
    """
    if num_sms is not None and num_sms < 1:
        raise ArgumentError(f"num_sms must be at least 1, got {num_sms}")
    if workspace_limit is not None and workspace_limit < 0:
        raise ArgumentError(f"workspace_limit must be at least 0 bytes, got {workspace_limit}")
    limit = Options.workspace_limit if workspace_limit is None else workspace_limit
    with planning(Options(num_sms, limit)):
        yield


@contextmanager
def planning(chosen: Options) -> Iterator[None]:
    """Plan calls inside the block under ``chosen``."""
    token = _options.set(chosen)
    try:
        yield
    finally:
        _options.reset(token)


def empty(device: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An uninitialised array where the call's other arrays live."""
    if device == HOST:
        return np.empty(shape, dtype)
    from .backends import cuda

    return cuda.empty(device, shape, dtype)


def plan_call(call: Call, spec: DeviceSpec) -> Plan:
    """The plan of a call on ``spec`` under the options of this context."""
    return make_plan(call.op, call.problems, call.temporaries, spec, _options.get())


def reload_tuning() -> None:
    """Read the tuning tables again when they are next needed, and plan every call anew."""
    from .tuning.table import forget

    forget()
    make_plan.cache_clear()
    _warm.clear()


# ---- the warm path -----------------------------------------------------------------------------

_WARM_LIMIT = 4096
_warm: dict[Any, Bound] = {}


class Bound:
    """A call whose plan is bound to loaded kernels. Only pointers are new from call to call."""

    def __init__(self, launch: Any, call: Call, arrays: Sequence[Any], names: Sequence[str]) -> None:
        self.launch = launch
        self.names = [name for name in names if name in call.arrays]
        self.positions = [names.index(name) for name in self.names]
        self.device = call.device
        self.made: list[
            tuple[int, tuple[int, ...], Any]
        ] = []  # (position, shape, dtype) of outputs that the caller does not give
        self.outputs: list[tuple[int, int, int]] = []  # (position, low, high) around the pointer
        self.inputs: list[tuple[int, int, int]] = []
        for position, name in enumerate(names):
            array = call.arrays.get(name)
            if array is None:
                continue
            if arrays[position] is None:
                self.made.append((position, array.shape, array.dtype))
                continue
            view = describe(name, array)
            low, high = view.byte_range()
            span = (position, low - view.pointer, high - view.pointer)
            (self.outputs if name.endswith("out") else self.inputs).append(span)

    def __call__(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Launch on ``arrays``, positions as in the lookup; returns them with the missing outputs filled in."""
        filled = list(arrays)
        for index, (position, low, high) in enumerate(self.outputs):
            start = filled[position].data.ptr
            for other, other_low, other_high in self.inputs + self.outputs[index + 1 :]:
                other_start = filled[other].data.ptr
                if start + low < other_start + other_high and other_start + other_low < start + high:
                    self._check_overlaps(arrays)
        for position, shape, dtype in self.made:
            filled[position] = empty(self.device, shape, dtype)
        self.launch([filled[position].data.ptr for position in self.positions])
        return tuple(filled)

    def _check_overlaps(self, arrays: tuple[Any, ...]) -> None:
        """Byte ranges meet: legal only for disjoint columns of one fused buffer."""
        names = dict(zip(self.positions, self.names, strict=True))
        check_overlaps(
            [describe(names[position], arrays[position]) for position, _, _ in self.outputs],
            [describe(names[position], arrays[position]) for position, _, _ in self.inputs],
        )


def _key(op: str, arrays: Sequence[Any], flags: tuple[Any, ...]) -> Any:
    """What decides a plan and its launchers. Anything but CuPy arrays raises (NumPy's bfloat16 a ValueError)."""
    parts: list[Any] = [op, flags, _options.get()]
    bits = 128
    for array in arrays:
        if array is None:
            parts.append(None)
        else:
            data = array.data
            bits |= data.ptr
            # The lowest bits say whether items lie at multiples of their size; of what is above all arrays share.
            parts.append((array.shape, array.strides, array.dtype, data.device_id, data.ptr & 7))
    parts.append(bits & -bits)
    return tuple(parts)


def lookup(op: str, arrays: Sequence[Any], flags: tuple[Any, ...]) -> Bound | None:
    """The bound launcher of an earlier call like this one, or None."""
    try:
        return _warm.get(_key(op, arrays, flags))
    except (AttributeError, TypeError, ValueError):  # not CuPy arrays, or unhashable flags: the cold path judges them
        return None


def run(call: Call, op: str, arrays: Sequence[Any], flags: tuple[Any, ...], names: Sequence[str]) -> None:
    """Run a checked call where its arrays live. GPU calls are remembered for ``lookup``."""
    if call.device == HOST:
        _run_on_host(call)
        return
    from .backends import cuda

    plan = plan_call(call, cuda.spec(call.device))
    launch = cuda.BoundPlan(plan, call.device, [name for name in names if name in call.arrays])
    bound = Bound(launch, call, arrays, names)
    launch([call.arrays[name].data.ptr for name in bound.names])
    if len(_warm) >= _WARM_LIMIT:
        _warm.clear()
    _warm[_key(op, arrays, flags)] = bound


def _run_on_host(call: Call) -> None:
    backend = current_host_backend()
    if backend.name == "reference":
        from .backends import reference

        reference.run(call.problems, call.arrays)
        return
    from .backends import emulator

    emulator.execute(plan_call(call, DeviceSpec.preset(backend.arch)), call.problems, call.arrays)
