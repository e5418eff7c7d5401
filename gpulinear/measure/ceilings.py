"""What the device reaches at best in this run: large matrix products, copy bandwidth, the cost of a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .case import Case
from .device import Device, DeviceLost, is_lost
from .providers.base import Provider
from .stopwatch import Outcome, Rules, measure
from .trial import Trial, describe, try_case

COPY_BYTES = 2**29  # far beyond any L2
SIZES = (2048, 4096, 8192)
MOST_MATMUL_US = 60_000.0  # a device that would need longer for a size is measured at the smaller ones


@dataclass(frozen=True)
class Ceiling:
    """A ceiling: its name, value and unit ("TFLOP/s", "GB/s" or "us"), and the device's state meanwhile."""

    name: str
    value: float
    unit: str
    outcome: Outcome


@dataclass(frozen=True)
class Missing:
    """A ceiling that could not be measured, and why."""

    name: str
    reason: str


def ceilings(
    kinds: Iterable[tuple[str, str | None]],
    providers: Sequence[Provider],
    device: Device,
    rules: Rules,
    warm: Rules | None = None,
) -> Iterator[Ceiling | Missing]:
    """All ceilings, one after the other.

    kinds: (dtype, precision) of the matrix products, precision "tf32" or None.  providers: who multiplies.
    warm: rules of the first product instead of `rules`, for a device that comes from idling.

    Raises:
        DeviceLost: the device stopped answering.
    """
    first = warm or rules
    for dtype, precision in kinds:
        yield _matmul(dtype, precision, providers, device, first, rules)
        first = rules
    for name, part in (("copy", _copy), ("launch", _launch)):
        try:
            yield from part(device, rules)
        except Exception as error:
            if is_lost(device):
                raise DeviceLost(f"the device stopped answering while the ceiling {name} was measured") from error
            yield Missing(name, describe(error))
        device.release()


def _matmul(
    dtype: str, precision: str | None, providers: Sequence[Provider], device: Device, first: Rules, rules: Rules
) -> Ceiling | Missing:
    """The best rate that a right provider reaches on a square product."""
    name = f"matmul {precision or dtype}"
    best: Ceiling | None = None
    reasons: list[str] = []
    for size in SIZES:
        case = Case("linear", dtype, size, size, size, precision=precision, group="ceiling")
        trial = try_case(case, providers, device, first)
        if trial.lost is not None:
            raise DeviceLost(trial.lost)
        first = rules
        us = _fastest_us(trial)
        if us is None:  # what does not work here, or does not fit, will not at a larger size
            reasons = [f"{result.provider.name}: {result.reason}" for result in trial.results]
            break
        rate = case.flops / us * 1e-6
        if best is None or rate > best.value:
            best = Ceiling(name, rate, "TFLOP/s", trial.outcome)
        if 8 * us > MOST_MATMUL_US:
            break
    return best or Missing(name, "; ".join(reasons) or "no provider")


def _fastest_us(trial: Trial) -> float | None:
    return min((result.timing.us_p50 for result in trial.results if result.timing is not None), default=None)


def _copy(device: Device, rules: Rules) -> Iterator[Ceiling]:
    """Bytes read plus bytes written, per second, of one large array copied to another."""
    xp = device.xp
    words = min(COPY_BYTES, device.free_bytes() // 4) // 4
    source, target = xp.arange(words, dtype="u4"), xp.empty(words, dtype="u4")
    outcome = measure({"copy": lambda index: xp.copyto(target, source)}, 1, device, rules)
    for name, timing in outcome.timings.items():
        yield Ceiling(name, 2 * 4 * words / timing.us_p50 * 1e-3, "GB/s", outcome)


def _launch(device: Device, rules: Rules) -> Iterator[Ceiling]:
    """What the stopwatch shows for an empty kernel, and for nothing at all between two events."""
    calls: dict[str, Callable[[int], None]] = {
        "empty launch": lambda index: device.nothing(),
        "event pair": lambda index: None,
    }
    outcome = measure(calls, 1, device, rules)
    for name, timing in outcome.timings.items():
        if timing.us_p50 > 0.0:  # events may lie closer together than they resolve
            yield Ceiling(name, timing.us_p50, "us", outcome)


def warm_rules(rules: Rules, warm_s: float) -> Rules:
    """`rules` with a warm-up of up to `warm_s` seconds in which the clock must stand still for one."""
    return replace(rules, budget_s=rules.budget_s + warm_s, warm_s=warm_s, clock_over_s=min(1.0, warm_s))
