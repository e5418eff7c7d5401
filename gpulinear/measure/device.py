"""What measuring needs of a GPU; tests put a fake with a fake clock in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class DeviceLost(Exception):
    """The device has stopped answering; nothing more can be measured in this process."""


class Device(Protocol):
    """One GPU and its current stream. What is enqueued runs in order.

    xp: the array module of its memory (cupy).  arch: an sm_XX name, which fixes the error bounds.
    l2_bytes: the cache that operand sets have to exceed.
    """

    xp: Any
    arch: str
    l2_bytes: int

    def free_bytes(self) -> int:
        """Device memory that can be allocated now."""

    def release(self) -> None:
        """Give memory that nothing uses back to the driver. Graphs from `capture` may not be replayed afterwards."""

    def now(self) -> float:
        """Host seconds, monotonic."""

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""

    def spin(self, microseconds: float) -> Any:
        """Enqueue a kernel that keeps the stream busy for that long; returns an event recorded after it."""

    def nothing(self) -> None:
        """Enqueue a kernel that does nothing."""

    def flush_l2(self) -> None:
        """Enqueue writing more memory than the L2 holds."""

    def record(self) -> Any:
        """Enqueue a timing event and return it."""

    def done(self, event: Any) -> bool:
        """Whether the stream has passed the event."""

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Microseconds between two events that are done."""

    def clock_mhz(self) -> float | None:
        """The SM clock now; None where it cannot be read."""

    def power_w(self) -> float | None:
        """The board's power draw now; None where it cannot be read."""

    def temperature_c(self) -> float | None:
        """The chip's temperature now; None where it cannot be read."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Record what `enqueue` launches as a CUDA graph; returns what replays it, or None where that is impossible."""


def is_lost(device: Device) -> bool:
    """Whether the device fails to answer. A fault of an earlier launch shows here, and does not go away."""
    try:
        device.record()
        device.synchronize()
    except Exception:
        return True
    return False
