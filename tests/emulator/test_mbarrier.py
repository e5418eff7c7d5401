"""mbarrier objects and instructions (PTX ISA 9.0, 9.7.13.15): phases against a model, misuse, and what waits order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.lanes import Parked
from gpulinear.emulator.mbarrier_lookup import barriers
from gpulinear.emulator.spaces import PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench

BAR = 64
DATA = 256


def at(address: int, lanes: int = 1) -> Any:
    return np.full(lanes, address, np.int64)


def u32(*values: int) -> Any:
    return np.array(values, np.uint32)


class Case(Bench):
    """A bench with an mbarrier at BAR, initialised by thread 0 and known to all."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.run("mbarrier.init.shared::cta.b64", at(BAR), u32(count), threads=0)
        self.everyone()

    def everyone(self) -> None:
        clocks = self.cta.cluster.clocks
        clocks.barrier(np.arange(clocks.agents))

    def arrive(self, threads: Any = 0, form: str = "", address: int = BAR, cta: int = 0) -> Any:
        space = "" if "shared" in form else ".shared::cta"
        lanes = np.size(threads)
        return self.run(f"mbarrier.arrive{form}{space}.b64", at(address, lanes), threads=threads, cta=cta)

    def test(self, parity: int, threads: Any = 0, sem: str = "", cta: int = 0) -> bool:
        lanes = np.size(threads)
        name = f"mbarrier.test_wait.parity{sem}.shared::cta.b64"
        got = self.run(name, at(BAR, lanes), np.full(lanes, parity, np.uint32), threads=threads, cta=cta)
        assert got.dtype == np.bool_ and (got == got[0]).all()
        return bool(got[0])

    def write(self, thread: int, offset: int = DATA, cta: int = 0) -> None:
        self.run("st.shared.u32", at(offset), [u32(1)], None, threads=thread, cta=cta)

    def read(self, thread: int, offset: int = DATA, cta: int = 0) -> None:
        self.run("ld.shared.u32", at(offset), None, threads=thread, cta=cta)

    def leave(self, cta: int = 0) -> None:
        self.ctas[cta].live[:] = False
        self.ctas[cta].exit()


def test_phases_follow_the_counts() -> None:
    """Random legal sequences against pending arrivals, tx-count and phase kept as Python ints."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        count = int(rng.integers(1, 9))
        case = Case(count)
        pending, tx, phase = count, 0, 0
        for _ in range(60):
            choice = int(rng.integers(4))
            if choice == 0 and pending:
                amount = int(rng.integers(1, pending + 1))
                case.run("mbarrier.arrive.shared::cta.b64", at(BAR), u32(amount), threads=3)
                pending -= amount
            elif choice == 1:
                amount = int(rng.integers(0, 5000))
                case.run("mbarrier.expect_tx.shared::cta.b64", at(BAR), u32(amount), threads=3)
                tx += amount
            elif choice == 2:
                amount = tx if rng.random() < 0.6 and tx > 0 else int(rng.integers(0, 3000))
                case.run("mbarrier.complete_tx.shared::cta.b64", at(BAR), u32(amount), threads=3)
                tx -= amount
            elif pending:
                amount = int(rng.integers(0, 300))
                case.run("mbarrier.arrive.expect_tx.shared::cta.b64", at(BAR), u32(amount), threads=3)
                tx, pending = tx + amount, pending - 1
            if pending == 0 and tx == 0:
                phase, pending = phase + 1, count
            assert case.test(phase & 1) is False
            assert case.test(1 - (phase & 1)) is True
        assert case.found == []


def test_many_lanes_arrive_at_once() -> None:
    case = Case(64)
    case.arrive(np.arange(63))
    assert not case.test(0)
    case.arrive(63)
    assert case.test(0) and not case.test(1) and case.found == []


def test_lanes_may_name_different_objects() -> None:
    case = Case(1)
    case.run("mbarrier.init.shared::cta.b64", np.array([128, 136]), u32(2, 1), threads=[4, 5])
    case.everyone()
    case.run("mbarrier.arrive.shared::cta.b64", np.array([128, 136, 128]), threads=[1, 2, 3])
    done = case.run(
        "mbarrier.test_wait.parity.shared::cta.b64", np.array([128, 136, 128]), u32(0, 0, 1), threads=[1, 2, 3]
    )
    assert done.tolist() == [True, True, False] and case.found == []


@pytest.mark.parametrize(("count", "fine"), [(0, False), (1, True), (2**20 - 1, True), (2**20, False)])
def test_the_count_of_init_has_a_range(count: int, fine: bool) -> None:
    bench = Bench()
    bench.run("mbarrier.init.shared::cta.b64", at(BAR), u32(count), threads=0)
    assert bench.found == ([] if fine else ["mbarrier count"])


def test_arrivals_beyond_the_pending_ones_are_reported() -> None:
    case = Case(2)
    case.run("mbarrier.expect_tx.shared::cta.b64", at(BAR), u32(16), threads=0)
    case.arrive([0, 1])
    case.arrive(2)
    finding = case.only()
    assert finding.kind == "mbarrier over-arrival" and "16 bytes of transactions" in finding.message


def test_an_arrival_needs_a_wait_for_the_phase_before() -> None:
    """9.7.13.15.4; a count that is too small shows up like this."""
    case = Case(1)
    case.arrive(0)
    case.arrive(1)
    assert case.only().kind == "mbarrier phase not observed"
    case = Case(1)
    case.arrive([0, 1])
    assert case.only().kind == "mbarrier phase not observed"
    case = Case(1)
    for phase in range(4):
        case.arrive(0)
        assert case.test(phase & 1, threads=7)
    assert case.found == []


def test_the_tx_count_has_a_range_and_may_be_negative() -> None:
    case = Case(1)
    case.run("mbarrier.complete_tx.shared::cta.b64", at(BAR), u32(2**20 - 1), threads=0)
    assert case.found == []
    case.run("mbarrier.complete_tx.shared::cta.b64", at(BAR), u32(1), threads=0)
    assert case.only().kind == "mbarrier tx-count"
    case = Case(1)
    case.run("mbarrier.expect_tx.shared::cta.b64", at(BAR, 2), u32(2**19, 2**19), threads=[0, 1])
    assert case.only().kind == "mbarrier tx-count"


def test_expect_comes_before_the_arrival() -> None:
    case = Case(1)
    case.run("mbarrier.arrive.expect_tx.shared::cta.b64", at(BAR), u32(32), threads=0)
    assert not case.test(0)
    case.run("mbarrier.complete_tx.shared::cta.b64", at(BAR), u32(32), threads=0)
    assert case.test(0)


def test_arrive_drop_lowers_the_count_of_later_phases() -> None:
    case = Case(3)
    case.arrive([0, 1])
    case.run("mbarrier.arrive_drop.shared::cta.b64", at(BAR), threads=2)
    assert case.test(0)
    case.arrive([0, 1])
    assert case.test(1) and case.found == []
    case.run("mbarrier.arrive_drop.shared::cta.b64", at(BAR), u32(2), threads=2)
    assert case.only().kind == "mbarrier count"


def test_no_complete_must_not_complete() -> None:
    case = Case(5)
    states = case.run("mbarrier.arrive.noComplete.shared::cta.b64", at(BAR, 2), u32(1, 3), threads=[0, 1])
    counts = case.run("mbarrier.pending_count.b64", states, threads=[0, 1])
    assert counts.tolist() == [5, 4] and case.found == []
    case.run("mbarrier.arrive.noComplete.shared::cta.b64", at(BAR), u32(1), threads=0)
    assert case.only().kind == "mbarrier completed"


def test_pending_count_needs_a_state_of_no_complete() -> None:
    case = Case(2)
    case.run("mbarrier.pending_count.b64", case.arrive(0), threads=0)
    assert case.only().kind == "mbarrier state"


def wait_state(case: Case, state: Any, thread: int = 0) -> bool:
    return bool(case.run("mbarrier.test_wait.shared::cta.b64", at(BAR), state, threads=thread)[0])


def test_states_name_their_phase() -> None:
    case = Case(2)
    state = case.arrive(0)
    assert not wait_state(case, state)
    second = case.arrive(1)
    assert (state >> np.uint64(20) == second >> np.uint64(20)).all()
    assert wait_state(case, state) and wait_state(case, second)
    case.arrive(0)
    assert wait_state(case, state) and case.found == []
    case.arrive(1)
    wait_state(case, state)
    assert case.only().kind == "mbarrier state" and "phase 0" in case.only().message


def test_a_state_of_another_object_is_reported() -> None:
    case = Case(1)
    case.run("mbarrier.init.shared::cta.b64", at(128), u32(1), threads=0)
    wait_state(case, case.arrive(0, address=128))
    untagged = case.arrive(0) & np.uint64((1 << 60) - 1)
    wait_state(case, untagged)
    assert set(case.found) == {"mbarrier state"} and len(case.found) == 2


def test_a_parity_is_0_or_1() -> None:
    case = Case(1)
    case.test(2)
    assert case.only().kind == "mbarrier parity"


def test_a_fresh_object_has_completed_the_odd_phase() -> None:
    """Producers wait for parity 1 before the first phase: it is the one before phase 0."""
    case = Case(1)
    assert case.test(1) and not case.test(0)


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


def test_use_before_the_initialisation_is_ordered_is_a_race() -> None:
    bench = Bench()
    bench.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=0)
    bench.run("mbarrier.arrive.shared::cta.b64", at(BAR), threads=0)
    assert bench.found == []
    bench.run("mbarrier.test_wait.parity.shared::cta.b64", at(BAR), u32(0), threads=33)
    assert bench.only().kind == "shared race" and "mbarrier.init" in bench.only().message


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("mbarrier.arrive.shared::cta.b64", []),
        ("mbarrier.inval.shared::cta.b64", []),
        ("mbarrier.expect_tx.shared::cta.b64", [u32(1)]),
        ("mbarrier.test_wait.parity.shared::cta.b64", [u32(0)]),
        ("mbarrier.try_wait.parity.shared::cta.b64", [u32(0)]),
        ("cp.async.mbarrier.arrive.shared::cta.b64", []),
    ],
)
def test_there_has_to_be_an_object(name: str, operands: list[Any]) -> None:
    bench = Bench()
    result = bench.run(name, at(BAR), *operands, threads=0)
    assert bench.only().kind == "mbarrier not initialised"
    if "wait" in name:
        assert result.all()  # a loop around it ends


def test_an_object_is_initialised_again_only_after_inval() -> None:
    case = Case(1)
    case.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=0)
    assert case.only().kind == "mbarrier reinitialised"
    case = Case(1)
    case.run("mbarrier.inval.shared::cta.b64", at(BAR), threads=0)
    case.write(0, BAR)
    case.read(0, BAR)
    case.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=0)
    assert case.found == []


def test_what_the_bytes_held_before_does_not_matter() -> None:
    case = Case(1)
    case.write(0, 128)
    case.write(0, 132)
    case.run("mbarrier.init.shared::cta.b64", at(128), u32(1), threads=0)
    case.arrive(0, address=128)
    assert case.found == []


def test_inval_is_ordered_after_all_other_uses() -> None:
    case = Case(1)
    case.arrive(5)
    case.run("mbarrier.inval.shared::cta.b64", at(BAR), threads=0)
    assert case.only().kind == "shared race"


def test_ordinary_accesses_to_a_live_object_are_reported() -> None:
    case = Case(1)
    case.read(0, BAR + 4)
    assert case.only().kind == "uninitialised read"
    case = Case(1)
    case.write(0, BAR + 4)
    case.arrive(0)
    assert case.only().kind == "mbarrier overwritten"


def test_addresses_are_checked() -> None:
    case = Case(1)
    case.arrive(0, address=BAR + 4)
    assert case.only().kind == "misaligned address"
    case = Case(1)
    case.run("mbarrier.arrive.b64", at(SHARED_BASE + BAR), threads=0)
    assert case.found == [] and case.test(0)
    case.run("mbarrier.arrive.b64", at(PARAM_BASE + BAR), threads=0)
    assert case.only().kind == "wrong address space"
    bench = Bench(smem=128)
    bench.run("mbarrier.init.shared::cta.b64", at(128), u32(1), threads=0)
    assert bench.only().kind == "out of bounds"


def test_counts_without_no_complete_need_sm_90() -> None:
    case = Case(4)
    case.launch.capability = 80
    case.run("mbarrier.arrive.shared::cta.b64", at(BAR), u32(2), threads=0)
    assert case.only().kind == "unsupported instruction"


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
