"""The race detector on random programs, against a model that keeps happens-before as plain sets of events."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from gpulinear.emulator import race
from gpulinear.emulator.report import Report
from tests.emulator.race_bench import Bench, a


@dataclass
class Model:
    """Happens-before as plain sets of events; what was done to each byte as lists."""

    threads: int
    known: list[set[int]] = field(default_factory=list)
    fenced: list[set[int]] = field(default_factory=list)
    history: dict[tuple[int, int], list[tuple[str, int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = [set() for _ in range(self.threads)]
        self.fenced = [set() for _ in range(self.threads)]

    def join(self, agents: list[int]) -> tuple[set[int], set[int]]:
        return set().union(*(self.known[t] for t in agents)), set().union(*(self.fenced[t] for t in agents))

    def learn(self, agents: list[int], what: tuple[set[int], set[int]]) -> None:
        for t in agents:
            self.known[t] |= what[0]
            self.fenced[t] |= what[1]

    def access(self, kind: str, rank: int, agent: int, event: int, places: range, is_async: bool) -> tuple[bool, ...]:
        """(certainly a race, possibly a race, missing fence); the certain ones are those with the newest accesses."""
        certain = possible = fence = False
        for place in places:
            past = self.history.setdefault((rank, place), [])
            newest = True
            generic_write = None
            for old, number, was_async in reversed(past):
                clash = not (kind == old == "read" or kind == old == "atomic") and number not in self.known[agent]
                possible |= clash
                certain |= clash and newest
                if generic_write is None and old != "read":
                    generic_write = False if was_async else number
                newest = newest and old != "write"
            if is_async and generic_write and generic_write in self.known[agent]:
                fence |= generic_write not in self.fenced[agent]
            past.append((kind, event, is_async))
        return certain, possible, fence


@pytest.mark.parametrize("ctas", [1, 2])
def test_random_programs(ctas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_THIN_OUT", 6)
    totals = np.zeros(3, int)
    for seed in range(24):
        totals += one_program(np.random.default_rng(seed), ctas)
    assert (totals > 20).all(), totals


def one_program(rng: np.random.Generator, ctas: int) -> list[int]:
    width = 36  # threads of a CTA: one warp, and four threads of a second one
    bench = Bench(width, ctas, proxies=True)
    clocks, count = bench.clocks, width * ctas
    model = Model(count)
    channels = [clocks.new_channel(f"channel {c}", "wait") for c in range(2)]
    issued: list[list[int]] = [[0], [0]]  # the event of each value of a channel; value 0 is no event
    live = list(range(count))
    clean = quiet = races = 0
    event = 0

    def some(pool: list[int]) -> list[int]:
        return sorted(rng.choice(pool, size=int(rng.integers(1, min(5, len(pool)) + 1)), replace=False).tolist())

    for _ in range(60):
        action = rng.choice(
            ["thread"] * 8 + ["async"] * 3 + ["all", "part", "warp", "message", "wait", "fence", "exit"]
        )
        if action == "exit" and len(live) > count - 3:
            gone = some(live)[0]
            live.remove(gone)
            clocks.exit(a(gone))
        elif action == "all":
            members = [t for t in live if t // width == 0 or rng.random() < 0.5 or ctas == 1]
            members = members if rng.random() < 0.7 else live
            model.learn(members, model.join(members))
            clocks.barrier(a(members))
        elif action == "part":
            members = some(live)
            model.learn(members, model.join(members))
            clocks.barrier(a(members))
        elif action == "warp":
            members = [t for t in live if t % width < 32 and t < width]
            members = members if rng.random() < 0.5 else members[::2]
            model.learn(members, model.join(members))
            clocks.warp_sync(a(members)[None])
        elif action == "message":
            senders, receivers = some(live), some(live)
            what = model.join(senders)
            snapshot = clocks.release(a(senders))
            model.learn(receivers, what)
            clocks.acquire(a(receivers), snapshot)
        elif action == "wait":
            channel = int(rng.integers(2))
            value = int(rng.integers(len(issued[channel])))
            members = some(live)
            model.learn(members, (set(issued[channel][1 : value + 1]), set()))
            if rng.random() < 0.5:
                clocks.learn(a(members), channels[channel], value)
            else:
                clocks.acquire(a(members), clocks.signal(channels[channel], value))
        elif action == "fence":
            for t in (members := some(live) if rng.random() < 0.5 else live):
                model.fenced[t] |= model.known[t]
            clocks.fence_proxy(a(members))
        elif action in ("thread", "async"):
            kind = str(rng.choice(["read", "write", "atomic"], p=[0.5, 0.4, 0.1]))
            rank = int(rng.integers(ctas)) if rng.random() < 0.3 else 0
            bench.report = fresh = Report("kernel")
            for detector in bench.races:
                detector.report = fresh
                assert detector._proxy is not None
                detector._proxy._report = fresh
            expected = np.zeros(3, bool)
            if action == "thread":
                cta = int(rng.integers(ctas))
                members = some([t for t in live if t // width == cta])
                size = int(rng.choice([1, 2, 4, 8, 16]))
                starts = (rng.choice(96 // size, size=len(members), replace=False) * size).tolist()
                for t, start in zip(members, starts, strict=True):
                    event += 1
                    expected |= model.access(kind, rank, t, event, range(start, start + size), False)
                    # Lanes are taken one after the other by the model: their bytes differ.
                    model.known[t].add(event)
                bench.do(kind, members, starts, size, rank)
            else:
                issuer, channel = some(live)[0], int(rng.integers(2))
                start, size = int(rng.integers(40)), int(rng.integers(1, 50))
                event += 1
                expected |= model.access(kind, rank, issuer, event, range(start, start + size), True)
                issued[channel].append(event)
                call = getattr(bench.races[rank], f"async_{kind}")
                call(issuer, channels[channel], len(issued[channel]) - 1, a(start), size, bench.line())
            kinds = {f.kind for f in fresh.findings}
            certain, possible, fence = (bool(x) for x in expected)
            if certain:
                assert "shared race" in kinds
            if not possible:
                assert "shared race" not in kinds, str(fresh)
            assert ("missing proxy fence" in kinds) == fence, str(fresh)
            races += certain
            quiet += fence
            clean += not possible
    return [races, quiet, clean]
