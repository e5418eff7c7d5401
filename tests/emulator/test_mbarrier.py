"""mbarrier objects (PTX ISA 9.0, 9.7.13.15): phases against a model, states, and what is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.spaces import PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench
from tests.emulator.mbarrier_bench import BAR, Case, at, u32


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
