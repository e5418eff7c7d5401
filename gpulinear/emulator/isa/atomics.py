"""Atomic operations: atom (PTX ISA 9.7.13.5) and red (9.7.13.6), on global and shared memory.

Lanes that hit one address are applied one after the other in lane order. To add an operation, say in _INTEGER what it
does to the old values ``a`` with the operands ``b`` (and ``c``), and add the types that have it to the list at the end.

Refused: .b128, and the vector forms of 16-bit types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats, memory
from gpulinear.emulator.block import Step
from gpulinear.emulator.conversions import narrow, to_float
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.isa.memory import check_policy, how_of, space_of
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.packed import pairwise
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]
Operation = Callable[..., Array]

_SPACES = "global|shared|shared::cta|shared::cluster"
_SCOPE = "<scope:cta|cluster|gpu|sys>"


def _wrapping_inc(a: Array, b: Array) -> Array:
    return np.asarray(np.where(a >= b, np.uint32(0), a + np.uint32(1)))


def _wrapping_dec(a: Array, b: Array) -> Array:
    return np.asarray(np.where((a == 0) | (a > b), b, a - np.uint32(1)))


def _compare_and_swap(a: Array, b: Array, c: Array) -> Array:
    return np.asarray(np.where(a == b, c, a))


def _add_half(kind: str) -> Operation:
    return lambda a, b: narrow(to_float(a, kind) + to_float(b, kind), kind)


_INTEGER: dict[str, Operation] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "exch": lambda a, b: b,
    "cas": _compare_and_swap,
    "add": lambda a, b: a + b,
    "inc": _wrapping_inc,
    "dec": _wrapping_dec,
    "min": np.minimum,
    "max": np.maximum,
}
"""What becomes of the old value ``a``."""

_HALVES: dict[str, Operation] = {
    "f16": _add_half("f16"),
    "bf16": _add_half("bf16"),
    "f16x2": pairwise(_add_half("f16")),
    "bf16x2": pairwise(_add_half("bf16")),
}
"""``add.noftz``: subnormals are kept; the halves of a packed type are updated separately."""


def _semantics(form: Form, operation: Operation, flushed: Operation | None = None) -> Semantics:
    """The run-time function of an operation; on global memory ``flushed`` takes its place if there is one."""
    kind = DTYPES[form["T"]]
    space = space_of(form)
    how = replace(how_of(form, "relaxed"), reads="red" not in form)
    vector = bool(form.get("vec"))
    hopper = vector or form["T"].startswith("bf16")

    def run(lanes: Lanes, address: Array, *operands: Any) -> list[Array] | Array:
        check_policy(form, operands[-1])
        if hopper and lanes.cta.launch.capability < 90:
            raise NotModelledError(f"{lanes.instruction.name} needs sm_90, this is {lanes.cta.launch.arch}")
        values = [np.stack(o if vector else [o], axis=1) for o in operands[:-1]]

        def step_in(window: str) -> Step:
            chosen = flushed if flushed is not None and window == "global" else operation
            return lambda old, lanes_now: chosen(old, *[v[lanes_now] for v in values])

        seen = memory.update(lanes, space, address, kind, values[0].shape[1], step_in, how)
        return seen if vector else seen[0]

    return run


def _register(
    operation: str, tail: str, operands: str, make: Callable[[Form], Semantics], spaces: str = _SPACES, red: bool = True
) -> None:
    """Adds atom (and red) of an operation, with the qualifiers before it or, as libcu++ writes them, behind it."""
    for opcode in ("atom", "red") if red else ("atom",):
        sem = "<sem:relaxed|acquire|release|acq_rel>" if opcode == "atom" else "<sem:relaxed|release>"
        space = f"<space:{spaces}>"
        listed, section, factory = f"={operands.split(', ')[0]}, addr, {operands}, b64?", "9.7.13.5", make
        if opcode == "red":
            listed, section, factory = f"addr, {operands}, b64?", "9.7.13.6", _without_result(make)
        for front in (
            f"[.{sem}][.{_SCOPE}][.{space}].{operation}",
            f".{space}[.{sem}][.{_SCOPE}].{operation}",
            f".{operation}.{sem}.{_SCOPE}[.{space}]",
        ):
            effect(f"{opcode}{front}[.L2::cache_hint]{tail}", listed, section)(factory)


def _without_result(make: Callable[[Form], Semantics]) -> Callable[[Form], Semantics]:
    def factory(form: Form) -> Semantics:
        run = make(form | {"red": "red"})

        def update(*operands: Any) -> None:
            run(*operands)

        return update

    return factory


def _integer(form: Form) -> Semantics:
    return _semantics(form, _INTEGER[form["op"]])


def _float_add(form: Form) -> Semantics:
    """add.f32 flushes subnormals on global memory, and only there; add.f64 never does."""
    if form["T"] == "f64":
        return _semantics(form, floats.add)
    return _semantics(form, floats.add, lambda a, b: floats.add(a, b, ftz=True))


def _half_add(form: Form) -> Semantics:
    return _semantics(form, _HALVES[form["T"]])


_register("<op:and|or|xor>", ".<T:b32|b64>", "T", _integer)
_register("<op:exch>", ".<T:b32|b64>", "T", _integer, red=False)
_register("<op:cas>", ".<T:b16|b32|b64>", "T, T", _integer, red=False)
_register("<op:add>", ".<T:u32|s32|u64>", "T", _integer)
_register("<op:inc|dec>", ".<T:u32>", "T", _integer)
_register("<op:min|max>", ".<T:u32|s32|u64|s64>", "T", _integer)
_register("add", ".<T:f32|f64>", "T", _float_add)
_register("add", ".<vec:v2|v4>.<T:f32>", "V:T", _float_add, spaces="global")
_register("add.noftz", f".<T:{'|'.join(_HALVES)}>", "T", _half_add)
