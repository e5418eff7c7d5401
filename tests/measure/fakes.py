"""A GPU with a clock of its own, for the tests of measuring: every time here is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpulinear.measure.case import Case
from gpulinear.measure.gauge import factors
from gpulinear.measure.operands import OperandSet


class Gone(RuntimeError):
    """What the fake raises once it has disappeared."""


@dataclass
class FakeDevice:
    """Host and stream as two clocks, in microseconds. Work begins when the stream is free and the host has enqueued it.

    enqueue_us: host time of an event or a spin.  clocks: what the SM clock shows, a function of the host's seconds.
    gone_after: operations after which every call raises.
    depth: operations that may be pending before the host has to wait.
    """

    enqueue_us: float = 2.0
    clocks: Callable[[float], float | None] = lambda seconds: 1000.0
    gone_after: int | None = None
    depth: int = 1000
    host: float = 0.0
    free: float = 0.0  # when the stream will be free
    operations: int = 0
    pending: list[float] = field(default_factory=list)  # when each operation on the stream will be done
    effects: list[Callable[[], None]] = field(default_factory=list)  # of what is enqueued; seen after a wait
    spins: list[float] = field(default_factory=list)
    log: list[tuple[Any, ...]] = field(default_factory=list)  # what was enqueued, in order
    capturing: list[tuple[float, Callable[[], None] | None]] | None = None
    can_capture: bool = True
    released: int = 0
    xp: Any = np
    arch: str = "sm_90a"
    l2_bytes: int = 1024

    def _operation(self) -> None:
        self.operations += 1
        if self.gone_after is not None and self.operations > self.gone_after:
            raise Gone("the fake device has disappeared")

    def work(self, host_us: float, device_us: float, effect: Callable[[], None] | None = None) -> None:
        """What a provider enqueues: time of the host, time of the stream, and what it does to memory."""
        self._operation()
        self.host += host_us
        if self.capturing is not None:
            self.capturing.append((device_us, effect))
            return
        if effect is not None:
            self.effects.append(effect)
        self._enqueue(device_us)

    def _enqueue(self, device_us: float) -> None:
        self.pending = [done for done in self.pending[-self.depth :] if done > self.host]
        if len(self.pending) == self.depth:
            self.host = self.pending[0]
        self.free = max(self.free, self.host) + device_us
        self.pending.append(self.free)

    def wait(self) -> None:
        """What a provider does that synchronises inside its call."""
        self.host = max(self.host, self.free)

    # ---- gpulinear.measure.device.Device ----

    def free_bytes(self) -> int:
        return 1 << 30

    def release(self) -> None:
        self.released += 1

    def now(self) -> float:
        return self.host * 1e-6

    def synchronize(self) -> None:
        self._operation()
        self.log.append(("synchronize",))
        self.host = max(self.host, self.free) + 1.0
        while self.effects:
            self.effects.pop(0)()

    def spin(self, microseconds: float) -> Any:
        self.spins.append(microseconds)
        self.log.append(("spin", microseconds))
        self.work(self.enqueue_us, microseconds)
        return self.free

    def nothing(self) -> None:
        self.work(self.enqueue_us, 2.0)

    def flush_l2(self) -> None:
        self.log.append(("flush",))
        self.work(self.enqueue_us, 100.0)

    def record(self) -> Any:
        self._operation()
        self.host += self.enqueue_us
        self._enqueue(0.0)
        return self.free

    def done(self, event: Any) -> bool:
        return bool(event <= self.host)

    def elapsed_us(self, start: Any, end: Any) -> float:
        self._operation()
        assert max(start, end) <= self.host, "an event was read before it was done"
        return float(end - start)

    def clock_mhz(self) -> float | None:
        return self.clocks(self.now())

    def power_w(self) -> float | None:
        return 300.0

    def temperature_c(self) -> float | None:
        return None

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        if not self.can_capture:
            return None
        self.capturing = []
        try:
            enqueue()
        except Exception:
            return None
        finally:
            captured, self.capturing = self.capturing, None

        def replay() -> None:
            for device_us, effect in captured:
                self.work(0.0, device_us, effect)

        return replay


@dataclass
class FakeCall:
    """A provider's call: so long on the host, so long on the device, then an error from some call on."""

    device: FakeDevice
    name: str = "fake"
    host_us: float = 3.0
    device_us: float = 10.0
    fails_at: int | None = None
    waits: bool = False
    calls: list[int] = field(default_factory=list)

    def __call__(self, index: int) -> None:
        self.calls.append(index)
        self.device.log.append((self.name, index))
        if self.fails_at is not None and len(self.calls) >= self.fails_at:
            raise ValueError(f"{self.name} fails at call {self.fails_at}")
        self.device.work(self.host_us, self.device_us)
        if self.waits:
            self.device.wait()


@dataclass
class FakeProvider:
    """Multiplies with NumPy on a fake device.

    fault: what is wrong with it; see `_Work`, and "why_not", "why_not raises", "prepare raises" and "kernel raises".
    at: from which call on a fault of that kind shows.  refuses: a reason why it cannot do a case.
    """

    device: FakeDevice
    name: str = "fake"
    ours: bool = False
    device_us: float = 10.0
    fault: str = ""
    at: int = 1
    prepared: list[str] = field(default_factory=list)

    def why_not(self, case: Case) -> str | None:
        if self.fault == "why_not raises":
            raise KeyError("no such case")
        return "it does not do that" if self.fault == "why_not" else None

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        self.prepared.append(case.name)
        if self.fault == "prepare raises":
            raise MemoryError("no memory for a workspace")
        return _Work(self, case, sets)

    def kernel(self, case: Case) -> str:
        if self.fault == "kernel raises":
            raise ValueError("no kernel")
        return f"kernel of {self.name}"

    def close(self) -> None:
        raise AssertionError("whoever made it closes it")


class _Work:
    """One prepared case. Beside the faults named here, "raises" raises, and "device" makes the device disappear."""

    def __init__(self, provider: FakeProvider, case: Case, sets: Sequence[OperandSet]) -> None:
        self.provider, self.case, self.sets, self.calls = provider, case, sets, 0

    def __call__(self, index: int) -> None:
        self.calls += 1
        provider = self.provider
        fault = provider.fault if self.calls >= provider.at else ""
        provider.device.log.append((provider.name, index))
        if fault == "raises":
            raise ValueError(f"call {self.calls} fails")
        if fault == "device":
            provider.device.gone_after = provider.device.operations
        if fault == "stays on its set":
            index = 0
        if fault == "ignores the capture" and provider.device.capturing is not None:
            self._compute(index, "")  # at once, so that the graph has nothing to do
            return
        provider.device.work(3.0, provider.device_us, lambda: self._compute(index, fault))

    def _compute(self, index: int, fault: str) -> None:
        for name, (a, b) in factors(self.case, self.sets[index]).items():
            out = self.sets[index].outputs[name]
            product = a.astype(np.float64) @ b.astype(np.float64)
            if self.case.accumulate and name == "dw":
                product += out
            out[...] = product
            if fault == "wrong":
                out[-1, -1] += 1.0
            if fault == "nan":
                out[0, 0] = np.nan
            if fault == "last bit":
                out.view(np.int32)[0, 0] ^= 1
