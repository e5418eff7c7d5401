"""cp.async (PTX ISA 9.0, 9.7.9.25.3): what is read and written and when, groups, and what is reported."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.isa.async_copy import copy_or_zero, copy_or_zero_with_policy
from tests.emulator.fakes import Bench

CG = "cp.async.cg.shared.global"
CA = "cp.async.ca.shared.global"


class Case(Bench):
    """256 threads, 16 KiB of shared memory, and 16 KiB of global memory that holds its own offsets."""

    def __init__(self, policy: str = "late", **options: Any) -> None:
        super().__init__(**({"threads": 256, "smem": 16384} | options))
        self.cta.cluster.engine.policy = policy
        self.data = np.arange(4096, dtype=np.uint32)
        self.src = self.memory.alloc(self.data, align=256, name="src")

    def copy(
        self, threads: Any = None, size: int = 16, to: int = 0, start: int = 0, *rest: Any, name: str = ""
    ) -> None:
        """Thread t copies to ``to`` + t * size from the source's ``start`` + t * size."""
        chosen = np.arange(256) if threads is None else np.atleast_1d(threads)
        offsets = chosen.astype(np.int64) * size
        self.run(
            name or (CG if size == 16 else CA), to + offsets, self.src + start + offsets, size, *rest, threads=threads
        )

    def wait(self, recent: int = 0, threads: Any = None) -> None:
        self.run("cp.async.wait_group", recent, threads=threads)

    def commit(self, threads: Any = None) -> None:
        self.run("cp.async.commit_group", threads=threads)

    def words(self, start: int, count: int) -> Any:
        return self.cta.shared.bytes.view(np.uint32)[start // 4 : start // 4 + count]

    def leave(self) -> None:
        self.cta.live[:] = False
        self.cta.exit()


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_data_are_there_after_the_wait(size: int, policy: str) -> None:
    case = Case(policy)
    case.copy(None, size)
    case.commit()
    case.wait()
    assert (case.words(0, 64 * size) == case.data[: 64 * size]).all() and case.found == []


def test_before_the_wait_the_destination_holds_poison_or_the_data() -> None:
    late, early = Case("late"), Case("early")
    for case in (late, early):
        case.copy()
    assert (late.words(0, 1024) == 0xFFFFFFFF).all()
    assert (early.words(0, 1024) == early.data[:1024]).all()
    late.cta.cluster.engine.drain()
    assert (late.words(0, 1024) == late.data[:1024]).all()


def test_the_source_is_taken_when_the_copy_is_issued() -> None:
    case = Case("late")
    case.copy()
    case.memory.fill(case.src, np.zeros(4096, np.uint32))
    case.commit()
    case.wait()
    assert (case.words(0, 1024) == case.data[:1024]).all()


@pytest.mark.parametrize("policy", ["late", "early"])
def test_src_size_zero_fills_and_does_not_read_the_rest(policy: str) -> None:
    case = Case(policy)
    end = case.memory.alloc(np.full(24, 7, np.uint8), name="end")
    threads = np.arange(4)
    to = threads.astype(np.int64) * 16
    # 16 and 8 bytes inside, then nothing at all, of an address far outside.
    addresses = np.array([end, end + 16, 64, end + (1 << 30)], np.int64)
    case.run(CG, to, addresses, 16, np.array([16, 8, 0, 0], np.uint32), threads=threads)
    case.run("cp.async.wait_all", threads=threads)
    assert case.found == []
    got = case.cta.shared.bytes[:64]
    assert (got == [7] * 16 + [7] * 8 + [0] * 40).all()


def test_a_source_past_the_end_is_reported_and_gives_poison() -> None:
    case = Case()
    end = case.memory.alloc(np.zeros(24, np.uint8), name="end")
    case.run(CG, np.array([0], np.int64), np.array([end + 16], np.int64), 16, threads=0)
    assert case.only().kind == "out of bounds"


def test_an_uninitialised_source_is_reported() -> None:
    case = Case()
    empty = case.memory.alloc(64, initialised=False)
    case.run(CA, np.array([0], np.int64), np.array([empty], np.int64), 4, threads=0)
    assert case.only().kind == "uninitialised read"


def test_a_src_size_above_cp_size_is_reported() -> None:
    case = Case()
    case.copy(0, 8, 0, 0, np.array([9], np.uint32))
    assert case.only().kind == "invalid operand"


@pytest.mark.parametrize(("to", "start"), [(8, 0), (0, 8)])
def test_both_addresses_are_aligned_to_the_size(to: int, start: int) -> None:
    case = Case()
    case.copy(0, 16, to, start)
    assert case.only().kind == "misaligned access"


def test_a_partial_source_is_aligned_to_the_size_too() -> None:
    case = Case()
    case.copy(0, 16, 0, 8, np.array([8], np.uint32))
    assert case.only().kind == "misaligned access"


def test_a_destination_outside_is_reported_and_the_other_lanes_go_on() -> None:
    case = Case(smem=64)
    case.copy(np.arange(5))
    assert case.only().kind == "out of bounds" and case.only().threads == (4,)
    case.run("cp.async.wait_all", threads=np.arange(5))
    assert (case.words(0, 16) == case.data[:16]).all()


def test_ignored_sources_give_zeros() -> None:
    """The table cannot tell ignore-src from src-size by its shape, so the rows are called here."""
    case = Case()
    threads = np.arange(2)
    for factory, policy in ((copy_or_zero, []), (copy_or_zero_with_policy, [np.zeros(2, np.uint64)])):
        to = threads.astype(np.int64) * 16
        factory({})(case.lanes(threads), to, np.array([case.src + 16, 64]), 16, np.array([False, True]), *policy)
        case.run("cp.async.wait_all", threads=threads)
        assert case.words(0, 8).tolist() == [4, 5, 6, 7, 0, 0, 0, 0] and case.found == []


@pytest.mark.parametrize(
    "name",
    [
        f"{CG}.L2::128B",
        "cp.async.cg.shared::cta.global",
        f"{CG}.L2::cache_hint",
        f"{CG}.L2::cache_hint.L2::256B",
    ],
)
def test_hints_change_nothing(name: str) -> None:
    case = Case()
    policy = [np.zeros(256, np.uint64)] if "cache_hint" in name else []
    case.copy(None, 16, 0, 0, *policy, name=name)
    case.copy(None, 16, 4096, 4096, np.full(256, 4, np.uint32), *policy, name=name)
    case.run("cp.async.wait_all")
    assert (case.words(0, 1024) == case.data[:1024]).all() and case.found == []
    assert (case.words(4096, 1024)[::4] == case.data[1024:2048:4]).all() and not case.words(4096, 1024)[1::4].any()


def test_wait_group_leaves_the_recent_groups_pending() -> None:
    """Three groups, the middle one empty; as in the example of 9.7.9.25.3.3."""
    case = Case("late")
    case.copy(None, 16, 0, 0)
    case.commit()
    case.commit()
    case.copy(None, 16, 4096, 4096)
    case.commit()
    case.copy(None, 16, 8192, 8192)
    case.wait(3)
    assert (case.words(0, 1024) == 0xFFFFFFFF).all()
    case.wait(1)
    assert (case.words(0, 1024) == case.data[:1024]).all() and (case.words(4096, 1024) == 0xFFFFFFFF).all()
    case.wait(0)
    assert (case.words(4096, 1024) == case.data[1024:2048]).all()
    assert (case.words(8192, 1024) == 0xFFFFFFFF).all()  # never committed
    case.run("cp.async.wait_all")
    assert (case.words(8192, 1024) == case.data[2048:3072]).all()


def test_groups_belong_to_threads() -> None:
    """Threads 0..127 commit twice, the others once: wait_group 1 covers the copy of the former only."""
    case = Case("late")
    case.copy()
    case.commit()
    case.commit(np.arange(128))
    case.wait(1)
    assert (case.words(0, 512) == case.data[:512]).all() and (case.words(2048, 512) == 0xFFFFFFFF).all()
    case.wait(0, np.arange(128, 192))
    assert (case.words(2048, 256) == case.data[512:768]).all() and (case.words(3072, 256) == 0xFFFFFFFF).all()
    case.cta.cluster.engine.drain()
    assert (case.words(0, 1024) == case.data[:1024]).all()


def read(case: Case, thread: int, offset: int) -> None:
    case.run("ld.shared.u32", np.array([offset], np.int64), None, threads=thread)


@pytest.mark.parametrize("policy", ["late", "early"])
def test_only_the_copying_thread_sees_its_copy_after_the_wait(policy: str) -> None:
    case = Case(policy)
    case.copy()
    case.commit()
    read(case, 5, 5 * 16)
    assert case.only().kind == "shared race" and "cp.async.wait_group" in case.only().fix
    case = Case(policy)
    case.copy()
    case.commit()
    case.wait()
    read(case, 5, 5 * 16)
    assert case.found == []
    read(case, 6, 5 * 16)  # another lane of the warp
    assert case.only().kind == "shared race"


def test_after_a_barrier_all_threads_see_the_copies_that_were_waited_for() -> None:
    case = Case("late")
    case.copy(None, 16, 0, 0)
    case.commit()
    case.copy(None, 16, 4096, 0)
    case.commit()
    case.wait(1)
    case.barrier()
    read(case, 200, 0)
    assert case.found == []
    read(case, 200, 4096)
    assert case.only().kind == "shared race"


def test_a_barrier_without_a_wait_is_not_enough() -> None:
    case = Case("early")
    case.copy()
    case.commit()
    case.barrier()
    read(case, 200, 0)
    assert case.only().kind == "shared race"


def test_two_copies_to_one_place_need_a_wait_in_between() -> None:
    case = Case()
    case.copy(0)
    case.copy(0)
    assert case.only().kind == "shared race"


def test_the_async_proxy_sees_copies_after_a_proxy_fence_only() -> None:
    for fenced in (False, True):
        case = Case(proxies=True)
        case.copy(0)
        case.run("cp.async.wait_all", threads=0)
        if fenced:
            case.cta.cluster.clocks.fence_proxy(np.array([0]))
        to = np.array([case.memory.alloc(16)], np.int64)
        source, size = np.array([0], np.int64), np.array([16], np.uint32)
        case.run("cp.async.bulk.global.shared::cta.bulk_group", to, source, size, threads=0)
        assert case.found == ([] if fenced else ["missing proxy fence"])


def test_a_copy_over_what_others_still_read_is_a_race() -> None:
    case = Case()
    case.run("st.shared.u32", np.array([0], np.int64), [np.array([1], np.uint32)], None, threads=40)
    case.barrier()
    read(case, 40, 0)
    case.copy(0)
    assert case.only().kind == "shared race"


@pytest.mark.parametrize("policy", ["late", "early"])
def test_copies_left_at_the_end_are_reported(policy: str) -> None:
    case = Case(policy)
    case.copy(np.arange(32))
    case.commit()
    case.copy(np.arange(32, 64))
    case.wait(0, np.arange(31))
    case.leave()
    assert set(case.found) == {"copy never waited for"} and len(case.found) == 2
    clean = Case(policy)
    clean.copy()
    clean.run("cp.async.wait_all")
    clean.leave()
    assert clean.found == []


# With an mbarrier

BAR = 12288


def with_barrier(count: int, policy: str) -> Case:
    case = Case(policy)
    case.run("mbarrier.init.shared.b64", np.array([BAR], np.int64), np.array([count], np.uint32), threads=0)
    case.barrier()
    return case


def arrive_copies(case: Case, form: str = "", threads: Any = None) -> None:
    count = 256 if threads is None else np.size(threads)
    case.run(f"cp.async.mbarrier.arrive{form}.shared.b64", np.full(count, BAR, np.int64), threads=threads)


def done(case: Case, parity: int = 0, thread: int = 200) -> bool:
    name = "mbarrier.test_wait.parity.shared::cta.b64"
    return bool(case.run(name, np.array([BAR], np.int64), np.array([parity], np.uint32), threads=thread)[0])


@pytest.mark.parametrize("policy", ["late", "early"])
def test_an_mbarrier_tracks_the_copies_before(policy: str) -> None:
    case = with_barrier(256, policy)
    case.copy()
    arrive_copies(case, ".noinc")
    case.copy(None, 16, 4096, 0)  # not tracked
    case.cta.cluster.engine.step()
    case.cta.cluster.engine.step()
    case.cta.cluster.engine.drain()
    assert done(case)
    read(case, 200, 0)
    assert case.found == []
    read(case, 200, 4096)
    assert case.only().kind == "shared race"


def test_without_noinc_the_pending_count_does_not_change() -> None:
    case = with_barrier(1, "late")
    case.copy()
    arrive_copies(case)
    case.run("mbarrier.arrive.shared.b64", np.array([BAR], np.int64), threads=0)
    assert not done(case)
    case.cta.cluster.engine.drain()
    assert done(case) and (case.words(0, 1024) == case.data[:1024]).all()
    read(case, 200, 0)
    case.leave()
    assert case.found == []


def test_the_arrival_comes_after_the_copies() -> None:
    """Whatever the order in which the engine takes them."""
    case = with_barrier(256, "late")
    case.copy()
    arrive_copies(case, ".noinc")
    case.cta.cluster.engine.complete(1)  # the arrival, not the copy
    assert done(case) and (case.words(0, 1024) == case.data[:1024]).all()


@pytest.mark.parametrize("policy", ["late", "early"])
def test_the_copying_thread_learns_of_its_own_copy_from_the_mbarrier(policy: str) -> None:
    case = with_barrier(256, policy)
    case.copy()
    arrive_copies(case, ".noinc")
    read(case, 7, 7 * 16)
    assert case.only().kind == "shared race"
    case = with_barrier(256, policy)
    case.copy()
    arrive_copies(case, ".noinc")
    case.cta.cluster.engine.drain()
    assert done(case, thread=7)
    read(case, 7, 7 * 16)
    case.cta.cluster.clocks.tick(np.array([7]))
    read(case, 7, 7 * 16)
    assert case.found == []


@pytest.mark.parametrize("policy", ["late", "early"])
def test_an_mbarrier_that_nobody_waits_on_is_reported(policy: str) -> None:
    case = with_barrier(256, policy)
    case.copy()
    arrive_copies(case, ".noinc")
    case.leave()
    assert case.only().kind == "copy never waited for"


def test_too_many_arrivals_of_copies_are_reported() -> None:
    case = with_barrier(100, "early")
    case.copy()
    arrive_copies(case, ".noinc")
    assert case.only().kind == "mbarrier over-arrival"


def test_a_wide_copy_with_all_its_checks_is_quick() -> None:
    """The cost of a 256-lane copy; the limit is loose, for slow and busy machines."""
    case = Case("late")
    offsets = np.arange(256, dtype=np.int64) * 16
    times = []
    for turn in range(60):
        start = time.perf_counter()
        case.run(CG, offsets + 4096 * (turn % 3), case.src + offsets, 16)
        times.append(time.perf_counter() - start)
        if turn % 3 == 2:
            case.run("cp.async.wait_all")
            case.barrier()
    assert case.found == [] and min(times) < 1e-3
