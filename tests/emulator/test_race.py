"""The race detector: hand-made cases, and random programs against a model that keeps sets of events."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from gpulinear.emulator import race
from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.ir import Instruction, Location
from gpulinear.emulator.race import SharedRaces
from gpulinear.emulator.race_access import Access, pairs
from gpulinear.emulator.report import Finding, Report

SIZE = 4096


class Bench:
    """One CTA (or several) with a detector each; every access gets an instruction of its own."""

    def __init__(self, threads: int = 64, ctas: int = 1, proxies: bool = False) -> None:
        self.clocks = Clocks(threads, ctas, proxies=proxies)
        self.report = Report("kernel")
        self.races = [SharedRaces(SIZE, self.clocks, self.report, (r, 0, 0), r) for r in range(ctas)]
        self.lines = 0

    def line(self) -> Instruction:
        self.lines += 1
        return Instruction(self.lines, "op", (), f"op{self.lines};", self.lines, Location("k.cu", self.lines))

    def found(self) -> list[tuple[str, int]]:
        return [(f.kind, f.instruction.line) for f in self.report.findings if f.instruction is not None]

    def only(self) -> Finding:
        assert len(self.report.findings) == 1, str(self.report)
        return self.report.findings[0]

    def do(self, kind: str, agents: object, offsets: object, nbytes: int = 4, rank: int = 0) -> None:
        getattr(self.races[rank], kind)(a(agents), a(offsets), nbytes, self.line())

    def go(
        self, kind: str, issuers: object, channel: int, value: int, offsets: object, nbytes: int, **more: bool
    ) -> None:
        who = issuers if isinstance(issuers, int) else a(issuers)
        getattr(self.races[0], f"async_{kind}")(who, channel, value, a(offsets), nbytes, self.line(), **more)

    def all(self) -> np.ndarray:
        return np.arange(self.clocks.threads)


def a(values: object) -> np.ndarray:
    return np.atleast_1d(np.asarray(values, np.int64))


@pytest.mark.parametrize(
    "first, second, race_found",
    [
        ("read", "read", False),
        ("read", "write", True),
        ("write", "read", True),
        ("write", "write", True),
        ("atomic", "atomic", False),
        ("atomic", "read", True),
        ("read", "atomic", True),
        ("atomic", "write", True),
        ("write", "atomic", True),
    ],
)
def test_conflicts(first: str, second: str, race_found: bool) -> None:
    bench = Bench()
    bench.do(first, 3, 16)
    bench.do(second, 40, 16)
    assert bench.found() == ([("shared race", 2)] if race_found else [])
    bench = Bench()
    bench.do(first, 3, 16)
    bench.clocks.barrier(bench.all())
    bench.do(second, 40, 16)
    assert bench.found() == []
    bench = Bench()
    bench.do(first, 3, 16)
    bench.do(second, 3, 16)
    assert bench.found() == [], "a thread is ordered after itself"


def test_bytes_are_told_apart() -> None:
    bench = Bench()
    bench.do("write", [0, 33, 34], [0, 2, 3], 1)
    bench.do("write", [1], [1], 1)
    bench.do("read", [5], [4], 4)
    assert bench.found() == []
    bench.do("read", [5], [2], 2)
    finding = bench.only()
    assert finding.address == 2 and finding.threads == (5,)
    assert "thread 5 reads" in finding.message and "thread 33 wrote at k.cu:1" in finding.message


def test_sizes_overlap() -> None:
    for small in (1, 2, 4, 8):
        for at in range(16, 32, small):
            bench = Bench()
            bench.do("write", [0], [16], 16)
            bench.do("read", [1], [at], small)
            assert bench.found() == [("shared race", 2)]
            bench = Bench()
            bench.do("read", [0], [at], small)
            bench.do("write", [1], [16], 16)
            assert bench.found() == [("shared race", 2)]
            bench.do("write", [2], [32], 16)
            assert len(bench.found()) == 1


def test_lanes_of_a_warp() -> None:
    bench = Bench()
    bench.do("write", np.arange(32), np.arange(32) * 4)
    bench.do("read", np.arange(32), np.arange(32) * 4)  # its own
    assert bench.found() == []
    bench.do("read", np.arange(32), (np.arange(32) ^ 1) * 4)
    finding = bench.only()
    assert "__syncwarp" in finding.fix and finding.count == 32
    bench = Bench()
    bench.do("write", np.arange(64), np.arange(64) * 4)
    bench.clocks.warp_sync(np.arange(64).reshape(2, 32))
    bench.do("read", np.arange(64), (np.arange(64) ^ 1) * 4)
    assert bench.found() == []
    bench.do("read", np.arange(64), (np.arange(64) ^ 32) * 4)
    assert "__syncthreads" in bench.only().fix


def test_a_mask_of_some_lanes() -> None:
    bench = Bench()
    bench.do("write", [0, 1, 2], [0, 4, 8])
    bench.clocks.warp_sync(a([0, 2, 5])[None])
    bench.do("read", [5], [0])
    bench.do("read", [5], [8])
    assert bench.found() == []
    bench.do("read", [5], [4])
    assert bench.found() == [("shared race", 4)]


def test_same_instruction_write_conflict() -> None:
    bench = Bench()
    bench.do("write", np.arange(64), np.arange(64) * 4)
    bench.do("atomic", np.arange(64), np.full(64, 512))
    assert bench.found() == []
    bench.do("write", [3, 7, 9], [1024, 1024, 1028])
    finding = bench.only()
    assert finding.kind == "same-instruction write conflict" and finding.address == 1024
    assert "thread 3" in finding.message and "thread 7" in finding.message
    bench = Bench()
    bench.do("write", [3, 4], [64, 80], 16)
    assert bench.found() == []
    channel = bench.clocks.new_channel("bulk", "wait")
    bench.go("write", 0, channel, 1, [128, 160], 48)  # rows that overlap
    assert bench.found() == [("same-instruction write conflict", 2)]


def test_partial_barrier_orders_its_members_only() -> None:
    bench = Bench()
    bench.do("write", np.arange(64), np.arange(64) * 4)
    bench.clocks.barrier(np.arange(48))
    bench.do("read", np.arange(48), np.roll(np.arange(48), 7) * 4)
    assert bench.found() == []
    bench.do("read", [50], [0])
    bench.do("read", [0], [200])
    assert bench.found() == [("shared race", 3), ("shared race", 4)]


def test_barrier_does_not_order_what_comes_after() -> None:
    bench = Bench()
    bench.clocks.barrier(bench.all())
    bench.do("write", [0], [0])
    bench.do("read", [33], [0])
    assert bench.found() == [("shared race", 2)]


def test_full_barrier_after_an_exit() -> None:
    bench = Bench()
    bench.do("write", [63, 0], [0, 4])
    bench.clocks.exit(a([63]))
    bench.clocks.barrier(np.arange(63))
    bench.do("read", [1], [4])
    assert bench.found() == []
    bench.do("read", [1], [0])
    assert bench.found() == [("shared race", 3)], "an exited thread took no part in the barrier"


def test_release_and_acquire() -> None:
    bench = Bench()
    bench.do("write", [0], [0])
    snapshot = bench.clocks.release(a(0))
    bench.do("write", [0], [4])
    bench.clocks.acquire(a([40, 41]), snapshot)
    bench.do("read", [40, 41], [0, 0])
    assert bench.found() == []
    bench.do("read", [40], [4])  # written after the release
    bench.do("read", [42], [0])  # did not acquire
    assert bench.found() == [("shared race", 4), ("shared race", 5)]
    merged = bench.clocks.merge(None, bench.clocks.release(a(40)))
    merged = bench.clocks.merge(merged, bench.clocks.release(a(0)))
    bench.clocks.acquire(a(9), merged)
    bench.do("write", [9], [0], 8)  # after both writes, and the read of 40, but not of 41
    assert bench.found()[-1] == ("shared race", 6)
    assert "thread 9 writes" in bench.report.findings[-1].message and "41 read" in bench.report.findings[-1].message


def test_cp_async_groups() -> None:
    bench = Bench()
    lanes = np.arange(64)
    channels = bench.clocks.cp_async_channels(lanes)
    for group in (1, 2):
        bench.races[0].async_write(lanes, channels, np.full(64, group), lanes * 16 + 1024 * group, 16, bench.line())
    bench.clocks.learn_copies(lanes, 1)
    bench.do("read", lanes, lanes * 16 + 1024, 16)  # its own, waited for
    assert bench.found() == []
    bench.do("read", [3], [1024 + 16 * 3 + 16], 16)  # of another thread: a barrier is missing
    assert bench.found() == [("shared race", 4)]
    assert "cp.async of thread 4" in bench.report.findings[0].message
    bench.clocks.barrier(lanes)
    bench.do("read", lanes, (lanes ^ 5) * 16 + 1024, 16)
    assert len(bench.found()) == 1
    bench.do("read", lanes, lanes * 16 + 2048, 16)  # group 2 was not waited for
    assert bench.found()[1:] == [("shared race", 6)] and "wait_group" in bench.report.findings[1].fix
    bench.clocks.learn_copies(lanes, 2)
    bench.clocks.barrier(lanes)
    bench.do("write", lanes, (lanes ^ 9) * 16 + 2048, 16)
    assert len(bench.found()) == 2


def test_cp_async_over_something_still_read() -> None:
    bench = Bench()
    bench.do("read", [40], [64], 16)
    bench.races[0].async_write(a(3), bench.clocks.cp_async_channels(a(3)), a(1), a(64), 16, bench.line())
    assert bench.found() == [("shared race", 2)] and "issue of this operation" in bench.only().fix


def ring(bench: Bench, rounds: int, *, wait_reads: bool = True, wait_full: bool = True) -> None:
    """One producer thread, a consumer warp, two stages: TMA loads, wgmma reads, mbarriers both ways."""
    clocks, consumers = bench.clocks, np.arange(32, 64)
    loads, reads = (
        clocks.new_channel("TMA loads", "wait on the mbarrier"),
        clocks.new_channel("wgmma", "wgmma.wait_group"),
    )
    empty: list[object] = [None, None]
    for n in range(1, rounds + 1):
        stage = n % 2
        if empty[stage] is not None:
            clocks.acquire(a(0), empty[stage])  # type: ignore[arg-type]
        bench.go("write", 0, loads, n, [stage * 1024], 1024)
        full = clocks.merge(clocks.release(a(0)), clocks.signal(loads, n))
        if wait_full:
            clocks.acquire(consumers, full)
        rows = stage * 1024 + np.arange(16) * 64
        bench.go("read", consumers, reads, n, rows, 48, together=True)
        if wait_reads:
            clocks.learn(consumers, reads, n)
        empty[stage] = clocks.release(consumers)


def test_ring_of_stages() -> None:
    bench = Bench()
    ring(bench, 100)
    assert bench.found() == []
    assert len(bench.races[0]._log) <= race._THIN_OUT, "the log must not grow without full barriers"
    bench = Bench()
    ring(bench, 8, wait_reads=False)
    assert ("shared race", 5) in bench.found() and "wgmma.wait_group" in bench.report.findings[0].fix
    bench = Bench()
    ring(bench, 8, wait_full=False)
    assert bench.found()[0] == ("shared race", 2) and "mbarrier" in bench.report.findings[0].fix


def test_every_issuer_of_a_joint_operation_must_wait() -> None:
    bench = Bench()
    loads = bench.clocks.new_channel("TMA", "wait")
    bench.go("write", 0, loads, 1, [0], 256)
    bench.clocks.learn(np.arange(32, 63), loads, 1)
    reads = bench.clocks.new_channel("wgmma", "wait")
    bench.go("read", np.arange(32, 63), reads, 1, [0], 256, together=True)
    assert bench.found() == []
    bench.go("read", np.arange(32, 64), reads, 2, [0], 256, together=True)
    assert bench.found() == [("shared race", 3)]


def test_async_writes_order_transitively() -> None:
    """read -> (mbarrier) -> TMA write -> (its completion alone) -> write: ordered after the read through the TMA write."""
    bench = Bench()
    loads = bench.clocks.new_channel("TMA", "wait")
    bench.do("read", [40], [0], 16)
    bench.clocks.acquire(a(0), bench.clocks.release(a(40)))
    bench.go("write", 0, loads, 1, [0], 256)
    bench.clocks.acquire(a(50), bench.clocks.signal(loads, 1))
    bench.do("write", [50], [4], 2)
    assert bench.found() == []


def test_clusters() -> None:
    bench = Bench(32, 2)
    bench.do("write", [0], [0])
    bench.clocks.barrier(np.arange(32))  # of CTA 0 alone
    bench.do("read", [1], [0])
    assert bench.found() == []
    bench.do("read", [32], [0])  # a thread of CTA 1 was not there
    assert bench.found() == [("shared race", 3)] and "cluster" in bench.report.findings[0].fix
    bench.do("read", [32], [0], rank=1)  # the other CTA's own memory
    bench.clocks.barrier(np.arange(64))
    bench.do("write", [40], [0])
    bench.do("read", [40], [0])
    assert len(bench.found()) == 1
    bench.clocks.barrier(np.arange(32))
    bench.do("read", [5], [0])  # written from outside, no barrier with the other CTA
    assert len(bench.found()) == 2
    assert "thread 8 of CTA 1 of the cluster wrote" in bench.report.findings[1].message


def test_rows_of_any_size_and_place() -> None:
    for at in range(0, 160):
        bench = Bench()
        bench.go("write", 0, bench.clocks.new_channel("bulk", "wait"), 1, [8, 104], 24)
        bench.do("read", [1], [at], 1)
        assert bench.found() == ([("shared race", 2)] if 8 <= at < 32 or 104 <= at < 128 else [])


def test_thinning_keeps_what_somebody_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_THIN_OUT", 1)
    bench = Bench()
    bench.do("write", [0, 1], [0, 4])
    bench.clocks.acquire(bench.all(), bench.clocks.release(a(0)))
    for _ in range(4):
        bench.do("read", [9], [64])
    bench.do("read", [8], [0])
    assert bench.found() == []
    bench.do("read", [8], [4])
    assert bench.found() == [("shared race", 7)]


def test_full_barriers_empty_the_log() -> None:
    bench = Bench()
    loads = bench.clocks.new_channel("TMA", "wait")
    bench.go("write", 0, loads, 1, [2048], 256)
    for _ in range(3):
        bench.do("write", np.arange(64), np.arange(64) * 4)
        bench.clocks.barrier(bench.all())
        bench.do("read", np.arange(64), (np.arange(64) ^ 40) * 4)
        assert len(bench.races[0]._log) == 2, "this read, and the load that nobody waited for"
        bench.clocks.barrier(bench.all())
    bench.do("read", [5], [2300])
    assert bench.found() == [("shared race", 8)]


def test_memory_of_the_log_is_bounded() -> None:
    bench = Bench()
    for _ in range(400):
        bench.do("write", [0], [0])
        bench.do("read", [0], [0])
        bench.do("read", [40], [64])
    assert len(bench.races[0]._log) <= race._THIN_OUT and bench.found() == []
    bench = Bench()
    for i in range(400):
        bench.do("write", np.arange(32), np.arange(32) * 4 + 128 * (i % 30))
        bench.clocks.barrier(np.arange(32))
        bench.clocks.acquire(a([40]), bench.clocks.release(a([0])))
        bench.do("read", [40], [128 * (i % 30)])
        bench.clocks.acquire(np.arange(32), bench.clocks.release(a([40])))
    assert len(bench.races[0]._log) <= race._THIN_OUT + 90 and bench.found() == []


# The async proxy


def proxy_bench() -> tuple[Bench, int]:
    bench = Bench(proxies=True)
    return bench, bench.clocks.new_channel("bulk store", "wait_group.read")


@pytest.mark.parametrize("fence", ["none", "writer", "issuer", "early", "before the barrier of the issuer"])
def test_proxy_fence(fence: str) -> None:
    bench, channel = proxy_bench()
    if fence == "early":
        bench.clocks.fence_proxy(bench.all())
    bench.do("write", np.arange(64), np.arange(64) * 4)
    if fence == "writer":
        bench.clocks.fence_proxy(bench.all())
    if fence.startswith("before"):
        bench.clocks.fence_proxy(a(0))  # only its own write
    bench.clocks.barrier(bench.all())
    if fence == "issuer":
        bench.clocks.fence_proxy(a(0))
    bench.go("read", 0, channel, 1, [0], 256)
    bad = fence not in ("writer", "issuer")
    assert bench.found() == ([("missing proxy fence", 2)] if bad else [])
    if bad:
        first = 1 if fence.startswith("before") else 0
        assert bench.only().address == 4 * first and f"thread {first} wrote" in bench.only().message


def test_proxy_fence_of_an_async_write_and_of_bytes() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [1], [6], 2)
    bench.clocks.barrier(bench.all())
    bench.do("read", [1], [32], 16)  # reads through the generic proxy need no fence
    bench.clocks.barrier(bench.all())
    bench.go("write", 0, channel, 1, [8, 32], 16)
    assert bench.found() == []
    bench.go("write", 0, channel, 1, [0], 8)
    assert bench.found() == [("missing proxy fence", 4)] and bench.only().address == 6
    bench.clocks.learn(bench.all(), channel, 1)
    bench.go("read", 0, channel, 2, [0], 32)  # overwritten by the async proxy in the meantime
    assert len(bench.found()) == 1
    bench.do("read", [5], [0], 16)  # the wait is enough for the generic proxy
    assert len(bench.found()) == 1


def test_a_race_is_no_missing_fence_too() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [40], [0])
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == [("shared race", 2)]


def test_fence_travels_with_release_and_warp_sync() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [40], [0])
    bench.clocks.fence_proxy(a(40))
    bench.do("write", [40], [16])  # after the fence
    bench.clocks.warp_sync(np.arange(32, 64)[None])
    bench.clocks.acquire(a(0), bench.clocks.release(a(63)))
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == []
    bench.go("read", 0, channel, 1, [16], 16)
    assert bench.found() == [("missing proxy fence", 4)]


def test_cp_async_is_generic() -> None:
    bench, channel = proxy_bench()
    for fenced in (False, True):
        lanes = bench.all()
        number = 1 + fenced
        copies = bench.clocks.cp_async_channels(lanes)
        bench.races[0].async_write(lanes, copies, np.full(64, number), lanes * 16, 16, bench.line(), generic=True)
        bench.clocks.learn_copies(lanes, number)
        if fenced:
            bench.clocks.fence_proxy(lanes)
        bench.clocks.barrier(lanes)
        bench.go("read", lanes, channel, number, [0], 1024, together=True)
        bench.clocks.learn(lanes, channel, number)
        bench.clocks.barrier(lanes)
    assert bench.found() == [("missing proxy fence", 2)]


def test_fence_must_follow_the_wait_for_cp_async() -> None:
    bench, channel = proxy_bench()
    copies = bench.clocks.cp_async_channels(a(5))
    bench.races[0].async_write(a(5), copies, a(1), a(0), 16, bench.line(), generic=True)
    bench.clocks.fence_proxy(a(5))
    bench.clocks.learn_copies(a(5), 1)
    bench.clocks.barrier(bench.all())
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == [("missing proxy fence", 2)]


@pytest.mark.parametrize("fence", ["none", "init", "proxy"])
def test_mbarrier_init(fence: str) -> None:
    bench, channel = proxy_bench()
    bench.races[0].mbarrier_init(a([0, 1]), a([0, 8]), bench.line())
    bench.do("write", [0], [64])
    if fence == "init":
        bench.clocks.fence_inits(a([0, 1]))
    if fence == "proxy":
        bench.clocks.fence_proxy(a([0, 1]))
    bench.clocks.barrier(bench.all())
    bench.races[0].atomic(a([3]), a([8]), 8, bench.line(), mbarrier=True)
    bench.go("atomic", 3, channel, 1, [8], 8)
    assert bench.found() == ([("missing proxy fence", 4)] if fence == "none" else [])
    if fence != "none":
        bench.go("read", 3, channel, 2, [64], 4)
        wrong = [("missing proxy fence", 5)] if fence == "init" else []
        assert bench.found() == wrong, "fence.mbarrier_init is for mbarrier.init only"


def test_mbarrier_before_its_init() -> None:
    bench, _ = proxy_bench()
    bench.races[0].mbarrier_init(a([0]), a([0]), bench.line())
    bench.races[0].atomic(a([3]), a([0]), 8, bench.line(), mbarrier=True)
    assert bench.found() == [("shared race", 2)] and "mbarrier.init by thread 0" in bench.only().message


def test_relaxed_arrive_releases_what_was_fenced() -> None:
    bench = Bench(32, 2, proxies=True)
    bench.races[0].mbarrier_init(a([0]), a([0]), bench.line())
    bench.do("write", [0], [64])
    bench.clocks.fence_inits(a([0]))
    bench.clocks.acquire(np.arange(32, 64), bench.clocks.release_relaxed(np.arange(32)))
    bench.races[0].atomic(a([40]), a([0]), 8, bench.line(), mbarrier=True)
    assert bench.found() == []
    bench.do("read", [40], [64])
    assert bench.found() == [("shared race", 4)]
    bench.clocks.fence_memory(a([0]))
    bench.do("write", [0], [68])
    bench.clocks.acquire(np.arange(32, 64), bench.clocks.release_relaxed(np.arange(32)))
    bench.do("read", [41], [64])
    assert len(bench.found()) == 1
    bench.do("read", [41], [68])
    assert len(bench.found()) == 2


# Random programs


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


def test_pairs_against_loops() -> None:
    rng = np.random.default_rng(5)
    line = Bench().line()
    for _ in range(40):
        both = []
        for _ in range(2):
            size = int(rng.choice([1, 2, 4, 8, 16, 24]))
            rows = rng.integers(0, 12, size=int(rng.integers(1, 9))) * (4 if size == 24 else size)
            both.append(Access(0, rows, size, 0, 0, rows, line))
        unit = race.common_unit(both)
        found = set(zip(*(x.tolist() for x in pairs(both[0], both[1], unit)), strict=True))
        expected = {
            (i, j, place // unit)
            for i, p in enumerate(both[0].offsets.tolist())
            for j, q in enumerate(both[1].offsets.tolist())
            for place in range(max(p, q), min(p + both[0].nbytes, q + both[1].nbytes))
        }
        assert found == expected
