"""Waiting on mbarriers (PTX ISA 9.0, 9.7.13.15.16): what it orders, how it parks, clusters, and whole kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator import DeadlockError, GlobalMemory, run
from gpulinear.emulator.lanes import Parked
from gpulinear.emulator.mbarrier_lookup import barriers
from gpulinear.emulator.spaces import SHARED_BASE
from tests.emulator.mbarrier_bench import BAR, DATA, Case, at, u32


def test_waiting_orders_and_arriving_releases() -> None:
    case = Case(1)
    case.write(0)
    case.arrive(0)
    assert case.test(0, threads=40)
    case.read(40)
    assert case.found == []
    case.read(41)  # it did not wait
    assert case.only().kind == "shared race"


@pytest.mark.parametrize(("arrive", "wait"), [(".relaxed.cta", ""), ("", ".relaxed.cta")])
def test_relaxed_orders_nothing(arrive: str, wait: str) -> None:
    case = Case(1)
    case.write(0)
    case.arrive(0, arrive)
    assert case.test(0, threads=40, sem=wait)
    case.read(40)
    assert case.only().kind == "shared race"


def test_what_was_fenced_before_a_relaxed_arrive_is_released() -> None:
    case = Case(1)
    case.write(0)
    case.cta.cluster.clocks.fence_memory(np.array([0]))
    case.arrive(0, ".relaxed.cta")
    assert case.test(0, threads=40)
    case.read(40)
    assert case.found == []


def test_accesses_after_the_arrival_are_not_released() -> None:
    case = Case(1)
    case.arrive(0)
    case.write(0)
    assert case.test(0, threads=40)
    case.read(40)
    assert case.only().kind == "shared race"


def test_a_wait_for_the_phase_before_knows_nothing_of_this_one() -> None:
    case = Case(2)
    case.arrive([0, 1])
    assert case.test(0, threads=40)
    case.write(0)
    case.arrive(0)
    assert case.test(0, threads=41)
    case.read(41)
    assert case.only().kind == "shared race"


def try_wait(case: Case, parity: int, threads: Any = 40, *limit: Any) -> Any:
    lanes = np.size(threads)
    operands = [at(BAR, lanes), np.full(lanes, parity, np.uint32), *(u32(t) for t in limit)]
    return case.run("mbarrier.try_wait.parity.shared::cta.b64", *operands, threads=threads)


def test_try_wait_parks_until_the_phase_completes() -> None:
    case = Case(2)
    case.write(0)
    case.arrive(0)
    parked = try_wait(case, 0, [40, 41])
    assert isinstance(parked, Parked) and not parked.ready()
    case.arrive(1)
    assert parked.ready()
    case.arrive(0)
    case.arrive(1)  # the phase after it is complete too: the wait must not be lost
    assert parked.ready()
    assert parked.resume(case.lanes([40, 41])).tolist() == [True, True]
    case.read(40)
    assert case.found == ["mbarrier phase not observed"]


def test_try_wait_for_a_complete_phase_returns_at_once() -> None:
    case = Case(1)
    case.arrive(0)
    assert try_wait(case, 0).tolist() == [True] and try_wait(case, 1, 40, 1000).ready() is False


def test_the_reason_of_a_wait_is_told_with_the_state_of_the_moment() -> None:
    case = Case(3, ctas=2)
    case.run("mbarrier.expect_tx.shared::cta.b64", at(BAR), u32(4096), threads=0)
    parked = try_wait(case, 0)
    assert "3 of 3 arrivals and 4096 bytes" in parked.why and "arrived: nobody" in parked.why
    case.arrive([5, 6])
    for part in ("0x40", "of CTA (0, 0, 0)", "phase 0", "parity 0", "1 of 3 arrivals", "4096 bytes", "threads 5, 6"):
        assert part in parked.why
    case.run("mbarrier.inval.shared::cta.b64", at(BAR), threads=0)
    assert "invalidated" in parked.why


def test_try_wait_may_give_up_under_the_random_schedule() -> None:
    """The ISA lets try_wait return false at any time: a kernel that takes its result for granted has to fail."""
    case = Case(1)
    case.launch.schedule = "random"
    results = [try_wait(case, 0) for _ in range(40)]
    assert any(isinstance(r, Parked) for r in results)
    assert any(isinstance(r, np.ndarray) and not r.any() for r in results)


# Clusters


def remote(rank: int, offset: int = BAR) -> int:
    return (rank + 1) << 24 | offset


def test_threads_of_other_ctas_arrive_at_cluster_scope() -> None:
    case = Case(2, ctas=2, smem=4096)
    case.write(3, cta=1)
    case.arrive(3, ".release.cluster.shared::cluster", remote(0), cta=1)
    case.arrive(4)
    assert case.test(0, threads=40, sem=".acquire.cluster")
    case.run("ld.shared::cluster.u32", at(remote(1, DATA)), None, threads=40)
    assert case.found == []


def test_scopes_that_do_not_reach_the_other_cta_are_reported() -> None:
    case = Case(1, ctas=2)
    case.arrive(3, ".shared::cluster", remote(0), cta=1)
    assert case.only().kind == "mbarrier scope" and ".release.cluster" in case.only().fix
    case = Case(1, ctas=2)
    case.arrive(3, ".release.cluster.shared::cluster", remote(0), cta=1)
    assert case.test(0, threads=40)
    assert case.only().kind == "mbarrier scope" and ".acquire.cluster" in case.only().fix


def test_only_arrivals_and_transactions_reach_other_ctas() -> None:
    case = Case(1, ctas=2)
    case.run("mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64", at(remote(0)), u32(8), threads=0, cta=1)
    assert case.found == [] and barriers(case.ctas[0])[BAR].tx == 8
    case.run("mbarrier.test_wait.parity.b64", at(SHARED_BASE + remote(0)), u32(0), threads=0, cta=1)
    assert case.only().kind == "wrong address space"


def test_the_memory_of_an_exited_cta_is_gone() -> None:
    case = Case(1, ctas=2)
    case.leave()
    case.arrive(3, ".release.cluster.shared::cluster", remote(0), cta=1)
    assert case.only().kind == "shared memory of an exited CTA"


def test_a_rank_that_the_cluster_does_not_have() -> None:
    case = Case(1, ctas=2)
    case.arrive(3, ".release.cluster.shared::cluster", remote(2), cta=1)
    assert case.only().kind == "wrong address space"


# Whole kernels

SCHEDULES = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1)]

# Warp 0 writes a word for each thread of warp 1, round by round; two mbarriers say "full" and "empty".
HANDOVER = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out)
{
    .reg .pred %p<8>;
    .reg .b32 %r<16>;
    .reg .b64 %d<8>;
    .shared .align 4 .b8 words[128];
    .shared .align 8 .b64 full;
    .shared .align 8 .b64 empty;
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 31;
    mov.u32 %r3, words;
    mad.lo.s32 %r4, %r2, 4, %r3;
    mov.u32 %r9, 0;
    mov.u32 %r10, 0;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [full], 32;
    mbarrier.init.shared::cta.b64 [empty], 32;
READY:
    bar.sync 0;
    setp.ge.u32 %p2, %r1, 32;
    @%p2 bra READER;
WRITER:
    and.b32 %r5, %r9, 1;
    xor.b32 %r6, %r5, 1;
W:  mbarrier.try_wait.parity.shared::cta.b64 %p3, [empty], %r6;
    @!%p3 bra W;
    mad.lo.s32 %r7, %r9, 100, %r2;
    st.shared.u32 [%r4], %r7;
    mbarrier.arrive.shared::cta.b64 _, [full];
    add.u32 %r9, %r9, 1;
    setp.lt.u32 %p4, %r9, 5;
    @%p4 bra WRITER;
    ret;
READER:
    and.b32 %r5, %r9, 1;
R:  mbarrier.try_wait.parity.shared::cta.b64 %p3, [full], %r5;
    @!%p3 bra R;
    ld.shared.u32 %r7, [%r4];
    add.u32 %r10, %r10, %r7;
    mbarrier.arrive.shared::cta.b64 _, [empty];
    add.u32 %r9, %r9, 1;
    setp.lt.u32 %p4, %r9, 5;
    @%p4 bra READER;
    ld.param.u64 %d1, [out];
    mul.wide.u32 %d2, %r2, 4;
    add.s64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r10;
    ret;
}
"""


def hand_over(text: str, schedule: str, seed: int) -> tuple[Any, set[str]]:
    memory = GlobalMemory()
    out = memory.alloc(128, initialised=False)
    result = run(text, None, 1, 64, 0, [out], memory=memory, schedule=schedule, seed=seed)
    return memory.view(out, 128).view(np.uint32), {finding.kind for finding in result.report.findings}


def kinds_of(text: str, schedule: str, seed: int) -> set[str]:
    """What is found, also if the kernel then gets stuck."""
    try:
        return hand_over(text, schedule, seed)[1]
    except DeadlockError as error:
        return {finding.kind for finding in error.findings}


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_two_warps_hand_over_through_mbarriers(schedule: str, seed: int) -> None:
    got, kinds = hand_over(HANDOVER, schedule, seed)
    assert got.tolist() == [1000 + 5 * lane for lane in range(32)] and kinds == set()


def test_a_wait_whose_result_is_not_looked_at_is_found_by_the_random_schedule() -> None:
    careless = HANDOVER.replace("@!%p3 bra R;", "")
    assert any("shared race" in kinds_of(careless, "random", seed) for seed in range(3))


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_deadlock_names_the_mbarrier_and_who_arrived(schedule: str, seed: int) -> None:
    text = HANDOVER.replace("mbarrier.init.shared::cta.b64 [full], 32;", "mbarrier.init.shared::cta.b64 [full], 33;")
    with pytest.raises(
        DeadlockError, match=r"phase 0 \(parity 0\): it needs 1 of 33 arrivals .* arrived: threads 0, 1"
    ):
        hand_over(text, schedule, seed)


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_missing_wait_for_the_empty_slot_is_found(schedule: str, seed: int) -> None:
    text = HANDOVER.replace("@!%p3 bra W;", "").replace(
        "W:  mbarrier.try_wait.parity.shared::cta.b64 %p3, [empty], %r6;", "W:"
    )
    assert kinds_of(text, schedule, seed) & {"shared race", "mbarrier phase not observed", "mbarrier over-arrival"}
