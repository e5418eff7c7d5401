"""mbarrier instructions (PTX ISA 9.0, 9.7.13.15); the objects are in gpulinear/emulator/mbarrier.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Snapshot, agents_of
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes, Parked
from gpulinear.emulator.mbarrier import LIMIT, MBarrier, Phase, PhaseWait
from gpulinear.emulator.mbarrier_lookup import barriers, find, place

Array = npt.NDArray[Any]

_LOCAL = "[.<space:shared|shared::cta>].b64"
_ANY = "[.<space:shared|shared::cta|shared::cluster>].b64"
_ARRIVE = "[.<sem:release|relaxed>][.<scope:cta|cluster>]"
_WAIT = "[.<sem:acquire|relaxed>][.<scope:cta|cluster>]"


def _note(part: Lanes, barrier: MBarrier) -> Array:
    """Tells the race detector of an operation on the object; returns the agents."""
    agents = agents_of(part)
    offsets = np.full(len(agents), barrier.offset)
    barrier.owner.races.atomic(agents, offsets, 8, part.instruction, mbarrier=True)
    return agents


def _in_range(lanes: Lanes, counts: Array, least: int, what: str) -> Array:
    """The counts as int64; those out of range are reported and clamped."""
    wide = counts.astype(np.int64)
    wrong = (wide < least) | (wide > LIMIT)
    if wrong.any():
        lanes.report(
            "mbarrier count",
            f"{what} must be {least} to 2^20 - 1, got {int(wide[wrong][0])}",
            "compute the count from the number of participants (or of copied bytes)",
            which=wrong,
        )
    return np.asarray(np.clip(wide, least, LIMIT))


@effect(f"mbarrier.init{_LOCAL}", "addr, u32", "9.7.13.15.9")
def init(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array, counts: Array) -> None:
        counts = _in_range(lanes, counts, 1, "the count of mbarrier.init")
        table = barriers(lanes.cta)
        for i, address in enumerate(addresses.tolist()):
            one = Lanes(lanes.cta, lanes.threads[i : i + 1], lanes.instruction)
            placed = place(one, form["space"], address, 8)
            if placed is None:
                continue
            offset = placed[1]
            if not lanes.cta.shared.within(offset, offset + 8):
                one.report("out of bounds", "mbarrier.init", "declare 8 bytes for each mbarrier", address=address)
                continue
            if offset in table:
                one.report(
                    "mbarrier reinitialised",
                    f"{table[offset].name} is still valid",
                    "mbarrier.inval it first, with barriers before and after",
                    address=address,
                )
                table[offset].valid = False
            lanes.cta.races.mbarrier_init(agents_of(one), np.array([offset]), lanes.instruction)
            table[offset] = MBarrier(lanes.cta, offset, int(counts[i]))

    return run


@effect(f"mbarrier.inval{_LOCAL}", "addr", "9.7.13.15.10")
def inval(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array) -> None:
        for _, part, barrier in find(lanes, form["space"], addresses):
            offsets = np.full(len(part.threads), barrier.offset)
            lanes.cta.races.write(agents_of(part), offsets, 8, lanes.instruction)
            barrier.report_unseen("mbarrier.inval")
            barrier.valid = False
            del barriers(lanes.cta)[barrier.offset]

    return run


@effect(f"mbarrier.expect_tx[.<sem:relaxed>][.<scope:cta|cluster>]{_ANY}", "addr, u32", "9.7.13.15.11")
def expect_tx(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array, nbytes: Array) -> None:
        nbytes = _in_range(lanes, nbytes, 0, "the bytes to expect")
        for which, part, barrier in find(lanes, form["space"], addresses, remote=form["space"] not in _OWN):
            _note(part, barrier)
            barrier.expect(part, int(nbytes[which].sum()))

    return run


@effect(f"mbarrier.complete_tx[.<sem:relaxed>][.<scope:cta|cluster>]{_ANY}", "addr, u32", "9.7.13.15.12")
def complete_tx(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array, nbytes: Array) -> None:
        nbytes = _in_range(lanes, nbytes, 0, "the bytes to complete")
        for which, part, barrier in find(lanes, form["space"], addresses, remote=form["space"] not in _OWN):
            _note(part, barrier)
            barrier.complete_tx(part, int(nbytes[which].sum()))

    return run


_OWN = ("shared", "shared::cta")


def _arrival(form: Form, drop: bool, expects: bool, no_complete: bool) -> Semantics:
    """All forms of arrive: .expect_tx comes first, then the arrival with its count (9.7.13.15.13, 9.7.13.15.14)."""
    relaxed = form.get("sem") == "relaxed"
    cluster = form.get("scope") == "cluster"
    remote = not no_complete and form["space"] not in _OWN

    def run(lanes: Lanes, addresses: Array, operand: Array | None = None) -> Array:
        clocks = lanes.cta.cluster.clocks
        states = np.zeros(len(addresses), np.uint64)
        counts = np.ones(len(addresses), np.int64)
        nbytes = counts
        if operand is not None and expects:
            nbytes = _in_range(lanes, operand, 0, "the bytes to expect")
        elif operand is not None:
            counts = _in_range(lanes, operand, 1, "the count of arrivals")
            _check_count_form(lanes, no_complete)
        for which, part, barrier in find(lanes, form["space"], addresses, remote=remote):
            agents = _note(part, barrier)
            if barrier.owner is not lanes.cta and not (cluster or relaxed):
                _too_narrow(part, barrier)
            if expects:
                barrier.expect(part, int(nbytes[which].sum()))
            released: Snapshot = clocks.release_relaxed(agents) if relaxed else clocks.release(agents)
            states[which] = barrier.arrive(part, counts[which], released, drop=drop, no_complete=no_complete)
        return states

    return run


def _check_count_form(lanes: Lanes, no_complete: bool) -> None:
    if not no_complete and lanes.cta.launch.capability < 90:
        lanes.report(
            "unsupported instruction",
            "a count of arrivals without .noComplete needs sm_90",
            "arrive once from each thread, or use .noComplete with a count that does not complete the phase",
        )


def _too_narrow(part: Lanes, barrier: MBarrier) -> None:
    part.report(
        "mbarrier scope",
        f"this arrive on {barrier.name} releases at .cta scope, but its waiters are in another CTA",
        "arrive with .release.cluster",
        address=barrier.offset,
    )


@effect(f"mbarrier.arrive{_ARRIVE}{_ANY}", "=b64, addr, u32?", "9.7.13.15.13")
def arrive(form: Form) -> Semantics:
    return _arrival(form, False, False, False)


@effect(f"mbarrier.arrive.expect_tx{_ARRIVE}{_ANY}", "=b64, addr, u32", "9.7.13.15.13")
def arrive_expect_tx(form: Form) -> Semantics:
    return _arrival(form, False, True, False)


@effect(f"mbarrier.arrive.noComplete[.<sem:release>][.<scope:cta>]{_LOCAL}", "=b64, addr, u32", "9.7.13.15.13")
def arrive_no_complete(form: Form) -> Semantics:
    return _arrival(form, False, False, True)


@effect(f"mbarrier.arrive_drop{_ARRIVE}{_ANY}", "=b64, addr, u32?", "9.7.13.15.14")
def arrive_drop(form: Form) -> Semantics:
    return _arrival(form, True, False, False)


@effect(f"mbarrier.arrive_drop.expect_tx{_ARRIVE}{_ANY}", "=b64, addr, u32", "9.7.13.15.14")
def arrive_drop_expect_tx(form: Form) -> Semantics:
    return _arrival(form, True, True, False)


@effect(f"mbarrier.arrive_drop.noComplete[.<sem:release>][.<scope:cta>]{_LOCAL}", "=b64, addr, u32", "9.7.13.15.14")
def arrive_drop_no_complete(form: Form) -> Semantics:
    return _arrival(form, True, False, True)


def _named_phase(part: Lanes, barrier: MBarrier, operand: int, by_parity: bool) -> Phase | None:
    if not by_parity:
        return barrier.phase_of_state(part, operand)
    if operand > 1:
        part.report(
            "mbarrier parity",
            f"a phase parity must be 0 or 1, got {operand}",
            "keep the phase's number & 1",
            address=barrier.offset,
        )
    return barrier.phase_of_parity(operand & 1)


def _test(form: Form, by_parity: bool) -> Semantics:
    def run(lanes: Lanes, addresses: Array, operands: Array) -> Array:
        done = np.ones(len(addresses), np.bool_)  # also where there is no object: a loop around it has to end
        for which, _, barrier in find(lanes, form["space"], addresses):
            values = operands[which]
            numbers = np.arange(len(addresses))[which]
            for value in dict.fromkeys(values.tolist()):
                mine = numbers[values == value]
                some = Lanes(lanes.cta, lanes.threads[mine], lanes.instruction)
                _note(some, barrier)
                phase = _named_phase(some, barrier, value, by_parity)
                done[mine] = phase is None or phase.complete
                if done[mine[0]]:
                    barrier.observe(some, phase, form["sem"], form["scope"])
        return done

    return run


@effect(f"mbarrier.test_wait{_WAIT}{_LOCAL}", "=pred, addr, b64", "9.7.13.15.16")
def test_wait(form: Form) -> Semantics:
    return _test(form, False)


@effect(f"mbarrier.test_wait.parity{_WAIT}{_LOCAL}", "=pred, addr, u32", "9.7.13.15.16")
def test_wait_parity(form: Form) -> Semantics:
    return _test(form, True)


def _try(form: Form, by_parity: bool) -> Semantics:
    """Waits until the phase is complete; under the random schedule it may give up before, as the ISA allows."""

    def run(lanes: Lanes, addresses: Array, operands: Array, time_limit: Array | None = None) -> Array | Parked:
        for _, part, barrier in find(lanes, form["space"], addresses):
            _note(part, barrier)
            phase = _named_phase(part, barrier, int(operands[0]), by_parity)

            def finish(lanes: Lanes, barrier: MBarrier = barrier, phase: Phase | None = phase) -> Array:
                barrier.observe(lanes, phase, form["sem"], form["scope"])
                return np.ones(len(lanes.threads), np.bool_)

            if phase is None or phase.complete:
                return finish(part)
            launch = lanes.cta.launch
            if launch.schedule == "random" and launch.rng.random() < 0.25:
                return np.zeros(len(addresses), np.bool_)
            return PhaseWait(barrier, phase, finish)
        return np.ones(len(addresses), np.bool_)

    return run


@effect(f"mbarrier.try_wait{_WAIT}{_LOCAL}", "=pred, addr, b64, u32?", "9.7.13.15.16", blocks=True, uniform=True)
def try_wait(form: Form) -> Semantics:
    return _try(form, False)


@effect(f"mbarrier.try_wait.parity{_WAIT}{_LOCAL}", "=pred, addr, u32, u32?", "9.7.13.15.16", blocks=True, uniform=True)
def try_wait_parity(form: Form) -> Semantics:
    return _try(form, True)


@effect("mbarrier.pending_count.b64", "=u32, b64", "9.7.13.15.17")
def pending_count(form: Form) -> Semantics:
    def run(lanes: Lanes, states: Array) -> Array:
        wrong = (states >> np.uint64(59)) != np.uint64(0xB << 1 | 1)
        if wrong.any():
            lanes.report(
                "mbarrier state",
                "mbarrier.pending_count of something that no arrive(_drop).noComplete returned",
                "query the state that mbarrier.arrive.noComplete gave",
                which=wrong,
            )
        return np.asarray((states & np.uint64(LIMIT)).astype(np.uint32))

    return run
