"""A GPU as the stopwatch needs it: CuPy's events, graphs and memory, a spinning kernel, and NVML's readings."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..compile import compile_kernel
from ..device import live_spec, why_no_gpu
from ..errors import BackendError

_SOURCE = '#include "backlog.cuh"\n'
_L2_FACTOR = 2


class CudaDevice:
    """GPU `index`, made the current one, through CuPy's current stream. See `device.Device`.

    Raises:
        BackendError: there is no usable GPU, or NVRTC cannot compile for it.
    """

    def __init__(self, index: int = 0) -> None:
        reason = why_no_gpu()
        if reason is not None:
            raise BackendError(f"measuring needs a GPU: {reason}")
        import cupy

        self.xp: Any = cupy
        self._cuda = cupy.cuda
        self._device = cupy.cuda.Device(index)
        self._device.use()
        spec = live_spec(index)
        self.arch = spec.arch
        self.l2_bytes = spec.l2_bytes
        artifact = compile_kernel(_SOURCE, entry="gpulinear_spin", arch=spec.arch)
        module = cupy.RawModule(path=str(artifact.cubin_path))
        self._spin = module.get_function("gpulinear_spin")
        self._nothing = module.get_function("gpulinear_nothing")
        self._board = _Board(self._device.pci_bus_id)
        self._flush: Any = None

    def free_bytes(self) -> int:
        """Free memory of the GPU, and what CuPy's pool holds unused."""
        return int(self._device.mem_info[0]) + int(self.xp.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        """Workspace of captured graphs, the flushed buffer and the pool's unused memory go back to the driver."""
        from ..backends.cuda import release_captured

        self._flush = None
        release_captured()
        self.xp.get_default_memory_pool().free_all_blocks()

    def now(self) -> float:
        """Host seconds, monotonic."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait for all streams of the GPU."""
        self._device.synchronize()

    def spin(self, microseconds: float) -> Any:
        """Enqueue a kernel that spins on the GPU's timer; returns an event recorded after it."""
        self._spin((1,), (1,), (np.uint64(microseconds * 1e3),), shared_mem=0)
        return self.record()

    def nothing(self) -> None:
        """Enqueue an empty kernel."""
        self._nothing((1,), (1,), (), shared_mem=0)

    def flush_l2(self) -> None:
        """Enqueue setting twice the L2's size to zero."""
        if self._flush is None:
            self._flush = self.xp.empty(_L2_FACTOR * self.l2_bytes, np.uint8)
        self._flush.fill(0)

    def record(self) -> Any:
        """A new event, recorded on the current stream."""
        event = self._cuda.Event()
        event.record()
        return event

    def done(self, event: Any) -> bool:
        """Whether the event has been reached."""
        return bool(event.done)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Microseconds between two events; CUDA counts in milliseconds."""
        return float(self._cuda.get_elapsed_time(start, end)) * 1e3

    def clock_mhz(self) -> float | None:
        """The SM clock."""
        return self._board.clock_mhz()

    def power_w(self) -> float | None:
        """The board's power draw."""
        return self._board.power_w()

    def temperature_c(self) -> float | None:
        """The chip's temperature."""
        return self._board.temperature_c()

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """What `enqueue` launches on CuPy's current stream, as a CUDA graph.

        None where it raises, as CuPy's own cuBLAS calls do inside a capture (NotImplementedError).
        """
        self.synchronize()
        stream = self._cuda.Stream(non_blocking=True)
        graph: Any = None
        with stream:
            stream.begin_capture()
            try:
                enqueue()
                captured = True
            except Exception:
                captured = False
            finally:
                # Also after a failure: a stream that is still capturing could not be used or destroyed.
                try:
                    graph = stream.end_capture()
                except Exception:
                    captured = False
        if not captured:
            return None

        def replay() -> None:
            graph.launch()

        return replay


class _Board:
    """What NVML says of the board; None where nvidia-ml-py is not installed or does not answer."""

    def __init__(self, pci_bus_id: str) -> None:
        self._nvml: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except Exception:  # not installed, no library, no permission, a MIG slice: all mean that nothing is known
            self._nvml = None

    def _read(self, read: Callable[[Any], float]) -> float | None:
        if self._nvml is None:
            return None
        try:
            return float(read(self._nvml))
        except self._nvml.NVMLError:  # this board does not have this sensor
            return None

    def clock_mhz(self) -> float | None:
        return self._read(lambda nvml: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM))

    def power_w(self) -> float | None:
        return self._read(lambda nvml: nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3)

    def temperature_c(self) -> float | None:
        return self._read(lambda nvml: nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU))
