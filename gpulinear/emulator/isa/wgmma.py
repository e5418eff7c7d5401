"""Warpgroup matrix multiply-accumulate: wgmma.mma_async and its fence and groups (PTX ISA 9.7.15).

The result is computed when the instruction is issued and held back: until the wgmma.wait_group that covers it the
accumulators hold 0xFFFFFFFF, which is NaN. A further wgmma of the same shape on the same accumulators continues from
the held result. That the operands in shared memory stay as they are until then is for the race detector to judge: each
warpgroup has a channel there, whose values are the numbers of its groups.

Which registers are in flight is kept per warpgroup in the CTA's state under ``PENDING``; the machine asks it about all
other instructions. The rules of wgmma.fence are checked when the module is loaded (dataflow.py), so it does nothing.

Not modelled: FP8, integers, single bits, sparsity, and matrix base offsets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import descriptors, fragments, tensorcore
from gpulinear.emulator.descriptors import UNIT, Operand
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.isa import Form, RegisterRows, Semantics, effect
from gpulinear.emulator.isa.matrix import whole_groups
from gpulinear.emulator.lanes import Lanes

if TYPE_CHECKING:
    from gpulinear.emulator.ir import Instruction
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]

GROUP = 128
PENDING = "wgmma pending rows"
"""State of a CTA: dict[warpgroup, set[row]], the 32-bit registers that an unfinished wgmma reads or will write."""

_POISON = np.uint32(0xFFFFFFFF)


@dataclass
class Held:
    """A result that has not arrived: the accumulators' matrix, and the last group that adds to it."""

    rows: RegisterRows
    shape: str
    fragment: fragments.Fragment
    values: Array
    group: int
    instruction: Instruction


@dataclass
class Warpgroup:
    """What one warpgroup has in flight."""

    threads: slice
    channel: int
    pending: set[int]
    committed: int = 0
    held: dict[tuple[int, ...], Held] = field(default_factory=dict)
    inputs: dict[int, int] = field(default_factory=dict)
    """Registers with fragments of A that are still being read, with the last group that does."""

    def finish(self, group: int) -> None:
        """All groups up to this one are complete: results arrive in their registers."""
        for key in [key for key, held in self.held.items() if held.group <= group]:
            held = self.held.pop(key)
            held.rows.matrix[held.rows.rows, self.threads] = held.fragment.store(held.values[None], np.uint32)
        self.inputs = {row: last for row, last in self.inputs.items() if last > group}
        self.pending.clear()
        self.pending.update(self.inputs, *self.held)


def _new_warpgroup(cta: Cta, number: int) -> Warpgroup:
    channel = cta.cluster.clocks.new_channel(
        f"wgmma of warpgroup {number}", "wgmma.commit_group and wgmma.wait_group, then a barrier for other threads"
    )
    pending = cta.state(PENDING, dict[int, set[int]]).setdefault(number, set())
    return Warpgroup(slice(number * GROUP, (number + 1) * GROUP), channel, pending)


def _make_state(cta: Cta) -> dict[int, Warpgroup]:
    cta.at_exit(_report_unfinished)
    return {}


def _warpgroups(lanes: Lanes) -> list[tuple[Warpgroup, Lanes]]:
    """The warpgroups that execute, each with its lanes; none after a report."""
    cta = lanes.cta
    if cta.launch.arch != "sm_90a":
        raise NotModelledError(f"wgmma needs sm_90a, the target is {cta.launch.arch}. At {lanes.instruction.where()}")
    if not whole_groups(lanes, GROUP):
        return []
    state = cta.state("wgmma", lambda: _make_state(cta))
    found = []
    for i in range(0, len(lanes.threads), GROUP):
        threads = lanes.threads[i : i + GROUP]
        number = int(threads[0]) // GROUP
        if number not in state:
            state[number] = _new_warpgroup(cta, number)
        found.append((state[number], Lanes(cta, threads, lanes.instruction)))
    return found


def _report_unfinished(cta: Cta) -> None:
    for number, group in cta.state("wgmma", dict[int, Warpgroup]).items():
        for held in group.held.values():
            how = "not committed" if held.group > group.committed else "committed but not waited for"
            cta.launch.report.add(
                "wgmma in flight at exit",
                f"the kernel ends while a wgmma.mma_async of warpgroup {number} is {how}",
                "wgmma.commit_group, then wgmma.wait_group 0 before the end",
                held.instruction,
                cta.index,
                (group.threads.start,),
            )


# ----------------------------------------------------------------------------------------------- operands


def _uniform(lanes: Lanes, values: Array, what: str) -> int:
    different = values != values[0]
    if different.any():
        lanes.report(
            "wgmma operand",
            f"{what} is not the same in all threads of the warpgroup",
            "compute it from values that are uniform over the warpgroup",
            which=different,
        )
    return int(values[0])


def _descriptor(lanes: Lanes, values: Array, what: str, operand: Operand) -> descriptors.Descriptor:
    """The decoded descriptor; what is wrong with it is reported (PTX ISA 9.7.15.5.1.2.2)."""
    descriptor = descriptors.decode(_uniform(lanes, values, f"the descriptor of {what}"))
    if descriptor.base_offset and descriptor.mode:
        where = lanes.instruction.where()
        raise NotModelledError(f"matrix base offset {descriptor.base_offset} in the descriptor of {what}. At {where}")
    problem = descriptors.misplaced(descriptor, operand)
    if descriptor.reserved:
        problem = f"reserved bits {descriptor.reserved:#x} are set"
    elif descriptor.base_offset:
        problem = f"matrix base offset {descriptor.base_offset} without a swizzle"
    if problem:
        lanes.report("wgmma descriptor", f"{what}: {problem}", "encode the descriptor as PTX ISA 9.7.15.5.1.2.2 says")
    return descriptor


def _read(lanes: Lanes, values: Array, what: str, operand: Operand) -> tuple[Array, Array]:
    """The operand as [extent, K] bit patterns, and the offsets of the units that were read."""
    shared = lanes.cta.shared
    descriptor = _descriptor(lanes, values, what, operand)
    offsets = descriptors.units(descriptor, operand)
    inside = shared.inside(offsets, UNIT)
    if inside.all():
        data = shared.bytes.reshape(-1, UNIT).take(offsets >> 4, axis=0)
    else:
        wrong = descriptors.outside(descriptor, operand, shared)
        lanes.report(
            "out of bounds",
            f"{what} lies outside the variables in shared memory because of its {wrong} ({descriptor})",
            "check the descriptor against the tile's layout and the size of the shared memory",
            address=int(offsets[~inside][0]),
        )
        data = np.full((len(offsets), UNIT), 0xFF, np.uint8)
        data[inside] = shared.bytes.reshape(-1, UNIT)[offsets[inside] >> 4]
        offsets = offsets[inside]
    if not shared.complete:
        flags = shared.written.reshape(-1, UNIT).take(offsets >> 4, axis=0)
        if np.count_nonzero(flags) != flags.size:
            lanes.report(
                "uninitialised read",
                f"{what} has bytes in shared memory that were never written",
                "wait for the copy that fills the tile, or fill all of it",
                address=int(offsets[~flags.all(axis=1)][0]),
            )
    return descriptors.assemble(data, operand), offsets


def _fragment_a(group: Warpgroup, lanes: Lanes, a: RegisterRows, kind: str) -> Array:
    """A from registers, which stay in use until the group that is open now is complete."""
    if any(row in group.pending and row not in group.inputs for row in a.rows):
        _in_flight(lanes, "a register of A is an accumulator of a wgmma that has not been waited for")
    group.inputs.update(dict.fromkeys(a.rows, group.committed + 1))
    bits = 32 if kind == "tf32" else 16
    registers = a.matrix[a.rows, group.threads]
    matrix: Array = fragments.wgmma_a(bits).load(registers, f"u{bits // 8}")[0]
    return matrix


def _in_flight(lanes: Lanes, message: str) -> None:
    lanes.report("wgmma in flight", message, "wgmma.commit_group and wgmma.wait_group between the two")


# ------------------------------------------------------------------------------------------- instructions


class _Form(NamedTuple):
    """A wgmma.mma_async with its immediates."""

    shape: str  # accumulators may be shared in flight by instructions that agree in this
    kind: str
    dtype: type[np.floating[Any]]
    accumulators: fragments.Fragment
    a: Operand
    b: Operand
    negate: bool


@cache
def _form(shape: str, result: str, kind: str, scale_a: int, scale_b: int, trans_a: int, trans_b: int) -> _Form:
    if {scale_a, scale_b} - {1, -1} or {trans_a, trans_b} - {0, 1}:
        raise NotModelledError("wgmma takes scales of 1 or -1 and transpositions of 0 or 1 (PTX ISA 9.7.15.5.2)")
    n = int(shape[len("m64n") :].partition("k")[0])
    if n % 8 or not 8 <= n <= 256:
        raise NotModelledError(f"wgmma {shape}: N must be a multiple of 8 from 8 to 256 (PTX ISA 9.7.15.2)")
    itemsize = 4 if kind == "tf32" else 2
    return _Form(
        f"{shape}.{result}",
        kind,
        np.float16 if result == "f16" else np.float32,
        fragments.wgmma_d(n, 16 if result == "f16" else 32),
        Operand(64, itemsize, bool(trans_a)),
        Operand(n, itemsize, bool(trans_b)),
        scale_a != scale_b,
    )


def _accumulators(group: Warpgroup, lanes: Lanes, d: RegisterRows, keep: bool, form: _Form) -> Array:
    """The matrix that the products are added to; the registers are poisoned from now on."""
    held = group.held.get(tuple(d.rows))
    if held is not None and held.shape == form.shape:
        return held.values if keep else np.zeros_like(held.values)
    if not (group.pending.isdisjoint(d.rows) and group.inputs.keys().isdisjoint(d.rows)):
        _in_flight(lanes, "an accumulator is in use by a wgmma of another shape, or as a fragment of A")
    before: Array = np.zeros((form.accumulators.rows, form.accumulators.cols), form.dtype)
    if keep:
        before = form.accumulators.load(d.matrix[d.rows, group.threads], form.dtype)[0]
    d.matrix[d.rows, group.threads] = _POISON
    return before


def _issue(lanes: Lanes, d: RegisterRows, a: RegisterRows | Array, b: Array, scale_d: Array, form: _Form) -> None:
    """Operands are read and the results computed now, for all warpgroups in one call."""
    launch = lanes.cta.launch
    groups = _warpgroups(lanes)
    left, right, before = [], [], []
    for position, (group, own) in enumerate(groups):
        part = slice(position * GROUP, (position + 1) * GROUP)
        matrix_b, offsets = _read(own, b[part], "B", form.b)
        if isinstance(a, RegisterRows):
            left.append(_fragment_a(group, own, a, form.kind))
        else:
            matrix_a, more = _read(own, a[part], "A", form.a)
            left.append(matrix_a)
            offsets = np.concatenate([more, offsets])
        right.append(matrix_b.T)
        keep = bool(_uniform(own, scale_d[part], "scale-d"))
        before.append(_accumulators(group, own, d, keep, form))
        if len(offsets):
            agents, number = own.threads + lanes.cta.first_agent, group.committed + 1
            lanes.cta.races.async_read(agents, group.channel, number, offsets, UNIT, lanes.instruction, together=True)
        launch.counters.moved("shared", "read", UNIT * len(offsets))
    if not groups:
        return
    bits = np.stack(left)
    if form.negate:
        bits ^= bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))
    exact = launch.tensor == "exact"
    after = tensorcore.multiply_add(bits, np.stack(right), np.stack(before), form.kind, launch.arch, exact=exact)
    launch.counters.flops(2 * bits.size * form.b.extent)
    rows = tuple(d.rows)
    for (group, _), values in zip(groups, after, strict=True):
        number = group.committed + 1
        group.held[rows] = Held(d, form.shape, form.accumulators, values, number, lanes.instruction)
        group.pending.update(rows, group.inputs)


_SHAPES_16, _SHAPES_TF32 = r"m64n\d+k16", r"m64n\d+k8"
_FLOAT16 = (
    f"wgmma.mma_async.sync.aligned.<shape:{_SHAPES_16}>.<D:f32>.<T:bf16>.bf16",
    f"wgmma.mma_async.sync.aligned.<shape:{_SHAPES_16}>.<D:f32|f16>.<T:f16>.f16",
)
_TF32 = f"wgmma.mma_async.sync.aligned.<shape:{_SHAPES_TF32}>.<D:f32>.<T:tf32>.tf32"
_SECTION = "9.7.15.5.2"


@effect(_FLOAT16[0], "&V:b32, b64, b64, pred, imm, imm, imm, imm", _SECTION, sync="warpgroup")
@effect(_FLOAT16[1], "&V:b32, b64, b64, pred, imm, imm, imm, imm", _SECTION, sync="warpgroup")
@effect(_TF32, "&V:b32, b64, b64, pred, imm, imm", _SECTION, sync="warpgroup")
def mma_async(form: Form) -> Semantics:
    """D = A B + D (or A B), A and B from shared memory."""
    key = form["shape"], form["D"], form["T"]

    def run(
        lanes: Lanes,
        d: RegisterRows,
        a: Array,
        b: Array,
        scale_d: Array,
        scale_a: int,
        scale_b: int,
        trans_a: int = 0,
        trans_b: int = 0,
    ) -> None:
        _issue(lanes, d, a, b, scale_d, _form(*key, scale_a, scale_b, trans_a, trans_b))

    return run


@effect(_FLOAT16[0], "&V:b32, &V:b32, b64, pred, imm, imm, imm", _SECTION, sync="warpgroup")
@effect(_FLOAT16[1], "&V:b32, &V:b32, b64, pred, imm, imm, imm", _SECTION, sync="warpgroup")
@effect(_TF32, "&V:b32, &V:b32, b64, pred, imm, imm", _SECTION, sync="warpgroup")
def mma_async_registers(form: Form) -> Semantics:
    """D = A B + D (or A B), A from registers. They are taken in place: they must stay as they are until the wait."""
    key = form["shape"], form["D"], form["T"]

    def run(
        lanes: Lanes,
        d: RegisterRows,
        a: RegisterRows,
        b: Array,
        scale_d: Array,
        scale_a: int,
        scale_b: int,
        trans_b: int = 0,
    ) -> None:
        _issue(lanes, d, a, b, scale_d, _form(*key, scale_a, scale_b, 0, trans_b))

    return run


@effect("wgmma.fence.sync.aligned", "", "9.7.15.7.1", sync="warpgroup")
def wgmma_fence(form: Form) -> Semantics:
    """Orders register accesses before later wgmma.mma_async (see the module docstring)."""

    def run(lanes: Lanes) -> None:
        _warpgroups(lanes)

    return run


@effect("wgmma.commit_group.sync.aligned", "", "9.7.15.7.2", sync="warpgroup")
def commit_group(form: Form) -> Semantics:
    """Closes a group, which may be empty."""

    def run(lanes: Lanes) -> None:
        for group, _ in _warpgroups(lanes):
            group.committed += 1

    return run


@effect("wgmma.wait_group.sync.aligned", "imm", "9.7.15.7.3", sync="warpgroup")
def wait_group(form: Form) -> Semantics:
    """All groups but the last N are complete: their results arrive, and their operands may be overwritten."""

    def run(lanes: Lanes, count: int) -> None:
        for group, own in _warpgroups(lanes):
            done = group.committed - count
            if done > 0:
                group.finish(done)
                agents = own.threads + lanes.cta.first_agent
                lanes.cta.cluster.clocks.learn(agents, group.channel, done)

    return run
