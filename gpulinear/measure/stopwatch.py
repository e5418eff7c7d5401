"""Times providers launch by launch in one interleaved sequence, behind a backlog that hides the host.

One batch is: wait, enqueue a spinning kernel, then, while it spins, several rounds of (event, launch, event) for every
provider. The device reaches the first launch only after the host has enqueued the last one, so no gap of the host is
timed. Where the spin was over too early the batch is thrown away and repeated behind a longer one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from .device import Device, DeviceLost, is_lost
from .quantiles import is_settled, percentiles

Call = Callable[[int], None]

# The driver holds about a thousand pending operations per stream and blocks the host beyond; one launch is two events
# and up to three kernels.
MOST_LAUNCHES = 128
BATCH_US = 20_000.0  # device time of a batch, if its launches are short
SPARE_US = 100.0
LONGEST_SPIN_US = 500_000.0
LEAST_BATCHES = 3  # before a median may count as settled: one batch is too short a time to see drift
MOST_LATE = 8  # batches in a row; each doubles the backlog, and from the second on halves the batch
SHORTEST_US = 0.1  # an event pair around nothing may show no time at all
SHORT_US = 100.0  # up to here a graph replay is timed as well
GRAPH_US = 1_000.0
MOST_GRAPH_CALLS = 50
HOST_LIMIT_US = 1_000.0  # up to here the host time of a call matters to anybody
HOST_US = 2_000.0
MOST_HOST_CALLS = 50
REPEATS = 5  # of host times and of graph replays


@dataclass(frozen=True)
class Rules:
    """When to stop.

    budget_s: host seconds for one case, warm-up included.  warm_s: the most of them that go into warming up.
    least_samples: per provider, whatever the budget says.  most_samples: per provider.
    settled: width of the median's 95 % interval, relative to the median, at which a provider needs no more samples.
    clock_moves: relative movement of the SM clock at which it counts as settled, seen over `clock_over_s` seconds.
    """

    budget_s: float = 1.0
    warm_s: float = 0.25
    least_samples: int = 5
    most_samples: int = 1000
    settled: float = 0.01
    clock_moves: float = 0.02
    clock_over_s: float = 0.1


@dataclass(frozen=True)
class Timing:
    """One provider on one case. Microseconds of the device per call, unless the name says host.

    late_batches: batches of the case that were repeated because their backlog ended before the last enqueue.
    host_us: of a call that nobody waits for; None for long calls.
    graph_us: one call in a replayed CUDA graph; None for long calls and where no graph can be captured.
    """

    us_p20: float
    us_p50: float
    us_p80: float
    samples: int
    late_batches: int
    host_us: float | None
    graph_us: float | None


@dataclass
class Outcome:
    """What `measure` found. A provider is in exactly one of `timings` and `errors`.

    clock_settled: None where the clock cannot be read. The readings are medians of those taken under load.
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    clock_settled: bool | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None


class Waits(Exception):
    """A provider waits for the device inside its call, so it cannot be timed behind a backlog."""


class _Failed(Exception):
    """A provider's call raised."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


def measure(
    calls: Mapping[str, Call],
    sets: int,
    device: Device,
    rules: Rules = Rules(),
    replays: Callable[[str, Callable[[], None]], bool] = lambda name, replay: True,
) -> Outcome:
    """Time `calls` by name; each takes the index of an operand set, 0 to sets - 1, and enqueues its work.

    A provider that raises is dropped with its error, and the others go on.
    `replays(name, replay)` says whether a captured graph really does the provider's work: one that launches on another
    stream than the current one would leave the graph empty, and an empty graph is fast.

    Raises:
        DeviceLost: the device stopped answering.
    """
    watch = _Stopwatch(calls, sets, device)
    try:
        watch.run(rules, replays)
    except Exception as error:
        if not isinstance(error, DeviceLost) and is_lost(device):
            raise DeviceLost(f"the device stopped answering while timing: {error}") from error
        raise
    return watch.outcome


class _Stopwatch:
    def __init__(self, calls: Mapping[str, Call], sets: int, device: Device) -> None:
        self.calls = dict(calls)
        self.sets = sets
        self.device = device
        self.outcome = Outcome()
        self.round = 0
        self.launch = 0
        self.late = 0
        self.enqueue_us = SPARE_US  # host time of one timed launch, as last seen
        self.round_us = 0.0  # device time of one round, as last seen
        self.most_rounds = MOST_LAUNCHES  # of a batch; less where the driver holds fewer operations than it should
        self.readings: dict[str, list[float]] = {}

    # ---- the whole ----

    def run(self, rules: Rules, replays: Callable[[str, Callable[[], None]], bool]) -> None:
        end = self.device.now() + rules.budget_s
        self.outcome.clock_settled = self._warm_up(rules)
        self.late = 0
        self.readings.clear()
        samples: dict[str, list[float]] = {name: [] for name in self.calls}
        batches = 0
        while self.calls and not self._enough(samples, rules, end, batches):
            for name, us in self._batch(self._rounds()):
                samples[name].append(us)
            batches += 1
        typical = {name: max(percentiles(samples[name])[1], SHORTEST_US) for name in self.calls}
        host = self._host({name: us for name, us in typical.items() if us <= HOST_LIMIT_US})
        graph = self._graphs({name: us for name, us in typical.items() if us <= SHORT_US}, replays)
        for name in self.calls:
            self.outcome.timings[name] = Timing(
                *percentiles(samples[name]), len(samples[name]), self.late, host.get(name), graph.get(name)
            )
        self.outcome.sm_clock_mhz, self.outcome.power_w, self.outcome.temperature_c = (
            median(self.readings[key]) if self.readings.get(key) else None for key in ("clock", "power", "temperature")
        )

    def _warm_up(self, rules: Rules) -> bool | None:
        """Run batches until the SM clock has moved less than `clock_moves` for `clock_over_s`, or for `warm_s`.

        Returns whether it settled; None where the clock cannot be read: then all of `warm_s` is used.
        """
        begin = self.device.now()
        seen: list[tuple[float, float]] = []
        while self.calls:
            self._batch(self._rounds())
            now = self.device.now()
            if self.readings.get("clock"):
                seen.append((now, self.readings["clock"][-1]))
                # Those of the last seconds, and the one before, so that they span the time.
                recent = [clock for when, clock in seen if when > now - rules.clock_over_s]
                before = len(seen) - len(recent)
                if before:
                    recent.append(seen[before - 1][1])
                    if max(recent) - min(recent) <= rules.clock_moves * max(recent):
                        return True
            if now - begin >= rules.warm_s:
                break
        return False if seen else None

    def _enough(self, samples: dict[str, list[float]], rules: Rules, end: float, batches: int) -> bool:
        live = [samples[name] for name in self.calls]
        if any(len(found) < rules.least_samples for found in live):
            return False
        if self.device.now() >= end or any(len(found) >= rules.most_samples for found in live):
            return True
        return batches >= LEAST_BATCHES and all(is_settled(found, rules.settled) for found in live)

    # ---- batches ----

    def _rounds(self) -> int:
        """Rounds of the next batch: as many as fill it, fewer if launches are long."""
        most = max(min(MOST_LAUNCHES // len(self.calls), self.most_rounds), 1)
        return most if self.round_us == 0.0 else max(min(most, int(BATCH_US / self.round_us)), 1)

    def _order(self) -> list[str]:
        """The order of the next round: rotated by one each time, and by one more after as many rounds as there are
        sets, so that every provider meets every place and every set."""
        names = list(self.calls)
        shift = (self.round + self.round // self.sets) % len(names)
        self.round += 1
        return names[shift:] + names[:shift]

    def _next_set(self) -> int:
        self.launch += 1
        return (self.launch - 1) % self.sets

    def _call(self, name: str, index: int) -> None:
        try:
            self.calls[name](index)
        except Exception as error:
            raise _Failed(name, error) from error

    def _drop(self, name: str, error: Exception) -> None:
        """Go on without a provider."""
        self.outcome.errors[name] = error
        del self.calls[name]

    def _batch(self, rounds: int) -> list[tuple[str, float]]:
        """(provider, microseconds) of `rounds` rounds, of the providers that did not fail; empty if none is left."""
        in_a_row = 0
        while self.calls:
            margin = 2.0 ** (1 + in_a_row)
            backlog = min(margin * rounds * len(self.calls) * self.enqueue_us + SPARE_US, LONGEST_SPIN_US)
            try:
                found = self._attempt(rounds, backlog)
            except _Failed as failure:
                self._drop(failure.name, failure.error)
                continue
            if found is not None:
                return found
            self.late += 1
            in_a_row += 1
            if in_a_row > 1 and rounds > 1:
                rounds = self.most_rounds = rounds // 2
            if in_a_row == MOST_LATE:
                self._drop_the_waiting()
                in_a_row = 0
        return []

    def _attempt(self, rounds: int, backlog_us: float) -> list[tuple[str, float]] | None:
        """One batch; None if the backlog was over before the last launch was enqueued."""
        device = self.device
        device.synchronize()
        marks: list[tuple[str, Any, Any]] = []
        begin = device.now()
        spun = device.spin(backlog_us)
        for _ in range(rounds):
            for name in self._order():
                start = device.record()
                self._call(name, self._next_set())
                marks.append((name, start, device.record()))
        late = device.done(spun)
        enqueued_us = (device.now() - begin) * 1e6
        # Under load, and after the last enqueue: a reading may take longer than the backlog.
        for key, read in (
            ("clock", device.clock_mhz),
            ("power", device.power_w),
            ("temperature", device.temperature_c),
        ):
            value = read()
            if value is not None:
                self.readings.setdefault(key, []).append(value)
        device.synchronize()
        if late:  # the times hold gaps, and the host may have been waiting for the device
            return None
        self.enqueue_us = enqueued_us / len(marks)
        found = [(name, device.elapsed_us(start, end)) for name, start, end in marks]
        self.round_us = sum(us for _, us in found) / rounds
        return found

    def _drop_the_waiting(self) -> None:
        """Drop the providers of which not even one launch fits behind the longest backlog; all if none stands out."""
        everybody, waiting = self.calls, []
        for name in everybody:
            self.calls = {name: everybody[name]}
            try:
                if self._attempt(1, LONGEST_SPIN_US) is None:
                    waiting.append(name)
            except _Failed:
                pass  # it will fail again where its error is kept
        self.calls = everybody
        for name in waiting or list(everybody):
            self._drop(name, Waits("enqueueing lasts longer than any backlog: the call waits for the device"))

    # ---- host time and graphs ----

    def _host(self, device_us: Mapping[str, float]) -> dict[str, float]:
        """Host microseconds per call, of calls made one after the other with no wait between them."""
        found: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for name in self._order() if self.calls else []:
                if name not in device_us:
                    continue
                count = max(min(MOST_HOST_CALLS, int(HOST_US / device_us[name])), 1)
                self.device.synchronize()
                begin = self.device.now()
                try:
                    for _ in range(count):
                        self._call(name, self._next_set())
                except _Failed as failure:
                    self._drop(name, failure.error)
                    continue
                found.setdefault(name, []).append((self.device.now() - begin) * 1e6 / count)
        self.device.synchronize()
        return {name: median(times) for name, times in found.items()}

    def _graphs(
        self, device_us: Mapping[str, float], replays: Callable[[str, Callable[[], None]], bool]
    ) -> dict[str, float]:
        """Microseconds of the device per call inside a replayed graph of many calls; no entry where there is none.

        The L2 is flushed before each replay, so operands are as cold as in the other timings.
        """
        graphs: dict[str, tuple[Callable[[], None], int]] = {}
        for name in [name for name in self.calls if name in device_us]:
            count = max(min(MOST_GRAPH_CALLS, int(GRAPH_US / device_us[name])), 1)
            replay = self.device.capture(partial(self._enqueue, name, count))
            try:
                if replay is not None and replays(name, replay):
                    graphs[name] = (replay, count)
            except Exception as error:
                self._drop(name, error)
        found: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for name in self._order() if self.calls else []:
                if name not in graphs:
                    continue
                replay, count = graphs[name]
                self.device.synchronize()
                spun = self.device.spin(GRAPH_US)
                self.device.flush_l2()
                start = self.device.record()
                try:
                    replay()
                except Exception as error:
                    self._drop(name, error)
                    continue
                end = self.device.record()
                late = self.device.done(spun)
                self.device.synchronize()
                if not late:
                    found.setdefault(name, []).append(self.device.elapsed_us(start, end) / count)
        return {name: median(times) for name, times in found.items()}

    def _enqueue(self, name: str, count: int) -> None:
        for index in range(count):
            self.calls[name](index % self.sets)
