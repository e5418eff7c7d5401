"""The race detector: who races with whom, by byte and by thread, and what orders them."""

from __future__ import annotations

import numpy as np
import pytest

from gpulinear.emulator import race
from gpulinear.emulator.race_access import Access, pairs
from tests.emulator.race_bench import Bench, a


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
