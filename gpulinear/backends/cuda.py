"""Runs plans on a GPU: cubins loaded as CuPy RawKernels, launched on the caller's device and current stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cupy
from cupy.cuda import driver, runtime

from ..device import DeviceSpec, live_spec
from ..errors import BackendError
from ..launch import ParamTemplate, buffer_order, compile_plan, kernel_names, make_template, record, recorders
from ..plan import Plan
from ..tensormap import TensorMaps, encode_on_driver

_lock = threading.Lock()
_kernels: dict[tuple[int, str], Any] = {}


def _encode(*arguments: Any) -> bytes:
    """A tensor map. The driver wants a current context, and a thread has none before its first work on the GPU."""
    if not driver.ctxGetCurrent():
        runtime.setDevice(runtime.getDevice())
    return encode_on_driver(*arguments)


_maps = TensorMaps(_encode)

# Workspace and results of calls made inside a graph capture. The graph writes to them at every replay, so they may never
# go back to the pool.
_captured: list[Any] = []


def release_captured() -> None:
    """Let go of the memory of all captured graphs: only for who knows that none of them is replayed again."""
    _captured.clear()


@lru_cache(maxsize=64)
def spec(device: int) -> DeviceSpec:
    """What the planner needs to know of GPU ``device``."""
    return live_spec(device)


def empty(device: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised CuPy array on GPU ``device``, ordered on its current stream."""
    with cupy.cuda.Device(device):
        made = cupy.empty(shape, dtype)
        if capturing():
            _captured.append(made)
        return made


def capturing() -> bool:
    """Whether the current stream is recording a CUDA graph."""
    return bool(cupy.cuda.get_current_stream().is_capturing())


def load_kernel(cubin_path: str, entry: str, smem_bytes: int) -> Any:
    """A ``cupy.RawKernel`` of a cubin, loaded on the current device, its shared-memory limit raised there.

    The limit is an attribute of one device's function, so the cache is per device.
    """
    key = (runtime.getDevice(), cubin_path)
    with _lock:
        kernel = _kernels.get(key)
        if kernel is None:
            if capturing():
                raise BackendError(
                    f"{entry} has not run on GPU {key[0]} before, and loading a kernel inside a graph capture is unsafe; "
                    f"make the same call, or gpulinear.warmup with its arguments, before the capture"
                )
            kernel = cupy.RawModule(path=cubin_path).get_function(entry)
            if smem_bytes > 48 * 1024:
                kernel.max_dynamic_shared_size_bytes = smem_bytes
            kernel.kernel  # noqa: B018 - loads the module now: loading inside a graph capture is unsafe
            _kernels[key] = kernel
    return kernel


class BoundPlan:
    """A plan whose kernels are loaded on one device; calling it launches all steps on the current stream."""

    def __init__(self, plan: Plan, device: int, names: Sequence[str]) -> None:
        self.device = device
        self.workspace_bytes = plan.workspace_bytes
        self.names = kernel_names(plan)
        self.launches: list[tuple[Any, tuple[int, ...], tuple[int, ...], ParamTemplate, int]] = []
        artifacts = compile_plan(plan)
        buffers = buffer_order(names)
        with cupy.cuda.Device(device):
            for step, artifact in zip(plan.steps, artifacts, strict=True):
                kernel = load_kernel(str(artifact.cubin_path), artifact.entry, step.smem_bytes)
                template = make_template(step, buffers, _maps)
                self.launches.append((kernel, (step.grid,), (step.threads,), template, step.smem_bytes))

    def __call__(self, pointers: list[int]) -> None:
        """Launch with one address per named buffer, in the order of ``names``."""
        if runtime.getDevice() != self.device:
            with cupy.cuda.Device(self.device):
                self(pointers)
            return
        if self.workspace_bytes:
            # From the pool and in stream order: freed at the end of this call, reused only by later work of the stream.
            workspace = cupy.cuda.alloc(self.workspace_bytes)
            if capturing():
                _captured.append(workspace)
            pointers = [*pointers, workspace.ptr]
        for kernel, grid, block, template, smem_bytes in self.launches:
            kernel(grid, block, (template.fill(pointers),), shared_mem=smem_bytes)
        if recorders:
            record(self.names)
