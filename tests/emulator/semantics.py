"""Calls one instruction's semantics on arrays, without the machine: ``evaluate("add.s32", a, b)``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from gpulinear.emulator.ir import Instruction, Operand, Pair, Reg, Vec
from gpulinear.emulator.isa import resolve, type_of
from gpulinear.emulator.types import DTYPES, width_of


def typed(values: Any, ptx_type: str) -> Any:
    """Numbers as an instruction sees them: integers wrap to the type, arrays of its width are taken by their bits."""
    dtype = DTYPES[ptx_type]
    if isinstance(values, (np.ndarray, np.generic)) and values.dtype.itemsize == dtype.itemsize:
        return values.view(dtype)
    if dtype.kind == "f":
        return np.array(values, dtype)
    if dtype.kind == "b":
        return np.array(values, bool)
    flat = [int(v) & ((1 << width_of(ptx_type)) - 1) for v in np.ravel(np.array(values, object)).tolist()]
    return np.array(flat, f"u{dtype.itemsize}").view(dtype).reshape(np.shape(values))


def instruction(
    name: str, sources: int, outputs: int = 1, vectors: tuple[int, ...] = (), unpack: int = 0
) -> Instruction:
    """An instruction by hand; ``vectors`` are positions of sources that are vectors of two."""
    register = Reg("%r")
    first: Operand = Pair(register, register) if outputs == 2 else register
    if unpack:
        first = Vec((register,) * unpack)
    rest = [Vec((register, register)) if i in vectors else register for i in range(sources)]
    return Instruction(0, name, (first, *rest), name, 1)


def _flat(values: Any) -> list[Any]:
    """The arrays among operands or results, vectors taken apart."""
    return [part for value in values for part in (value if isinstance(value, (list, tuple)) else [value])]


def _same(x: Any, y: Any) -> bool:
    return np.array_equal(bits_of(x), bits_of(y))


def evaluate(name: str, *operands: Any, outputs: int = 1, unpack: int = 0) -> Any:
    """The result of an instruction, or the list of its results if they are two or a vector.

    An operand is a list or an array, a number (a literal), or a tuple of two (a vector operand). The instruction is
    also run on scalars and on [instructions, lanes] with literals in a column, as the machine runs batches of
    instructions: all have to agree, and the dtypes of the results have to be those of the table.
    """
    vectors = tuple(i for i, operand in enumerate(operands) if isinstance(operand, tuple))
    rule, form = resolve(instruction(name, len(operands), outputs, vectors, unpack))
    assert rule.pure
    semantics = rule.factory(form)
    slots = [slot for pair in rule.operands for slot in pair]
    dtypes = [DTYPES[type_of(slot, form)] for slot in slots if slot.written for _ in range(max(unpack, 1))]
    types = [type_of(slot, form) for slot in slots if not slot.written]
    arrays = [
        [typed(part, kind) for part in value] if isinstance(value, tuple) else typed(value, kind)
        for value, kind in zip(operands, types, strict=True)
    ]

    def run(shape: Callable[[Any], Any]) -> list[Any]:
        with np.errstate(all="ignore"):
            got = semantics(*[[shape(p) for p in a] if isinstance(a, list) else shape(a) for a in arrays])
        results = _flat(got if outputs == 2 else [got])
        assert [r.dtype for r in results] == dtypes, name
        return results

    lanes = np.broadcast_shapes(*(np.shape(a) for a in _flat(arrays)))
    results = [np.broadcast_to(r, lanes) for r in run(lambda a: a)]
    if len(lanes) == 1 and lanes[0]:
        batch = run(lambda a: np.stack([a, a[::-1]]) if np.ndim(a) else a)
        column = run(lambda a: a[None, :] if np.ndim(a) else np.array([[a]]))
        single = run(lambda a: a[-1] if np.ndim(a) else a)
        strided = run(lambda a: np.repeat(a, 2)[::2] if np.ndim(a) else a)
        assert all(map(_same, results, (np.broadcast_to(r, lanes) for r in strided))), f"{name}: strides matter"
        for one, two, three, four in zip(results, batch, column, single, strict=True):
            assert _same(one, np.broadcast_to(two, (2, *lanes))[0]), f"{name}: a batch differs from one instruction"
            assert _same(one, np.broadcast_to(three, (1, *lanes))[0]), f"{name}: a column differs from a literal"
            assert _same(one[-1], four), f"{name}: a scalar differs from an array"
    return results[0] if outputs == 1 and not unpack else results


def bits_of(values: Any) -> Any:
    """The bits of floats, so that NaN and -0 compare as they are."""
    values = np.ascontiguousarray(values)
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


def edges(ptx_type: str) -> list[int]:
    """Integers at the ends and in the middle of a type, as Python sees them (signed types give negative ones)."""
    if ptx_type == "pred":
        return [0, 1]
    bits = width_of(ptx_type)
    top = 1 << (bits - 1)
    values = {0, 1, 2, 3, 7, bits - 1, bits, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, (2 * top - 1) // 3}
    values |= {0x1234567890ABCDEF & (2 * top - 1), 0xFEDCBA0987654321 & (2 * top - 1)}
    return sorted({signed(v, bits) for v in values} if ptx_type[0] == "s" else values)


def signed(value: int, bits: int) -> int:
    """The low bits of an integer as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def sweep(name: str, result: str, types: list[str], reference: Callable[..., int], **values: list[int]) -> None:
    """Compare an instruction with a function of Python integers on all combinations of edge cases.

    ``values`` replace the edge cases of an operand, by its position: ``at1=[0, 31, 32]``.
    """
    lists = [values.get(f"at{i}", edges(t)) for i, t in enumerate(types)]
    cases = list(product(*lists))
    got = bits_of(evaluate(name, *[list(column) for column in zip(*cases, strict=True)])).tolist()
    bits = width_of(result)
    for case, value in zip(cases, got, strict=True):
        want = int(reference(*case))
        assert int(value) & ((1 << bits) - 1) == want & ((1 << bits) - 1), (name, case, value, want)


def check_bits(
    name: str, kinds: str | list[str], cases: list[tuple[int, ...]] | list[int], want: Callable[..., int]
) -> None:
    """Compare an instruction on bit patterns with a function of them; ``kinds`` are the types of its operands."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    kinds = [kinds] * len(cases[0]) if isinstance(kinds, str) else kinds
    columns = zip(zip(*cases, strict=True), kinds, strict=True)
    arrays = [np.array(column, f"u{width_of(kind) // 8}") for column, kind in columns]
    got = bits_of(evaluate(name, *arrays)).tolist()
    for case, value in zip(cases, got, strict=True):
        expected = want(*case)
        assert value == expected, (name, [hex(bits) for bits in case], hex(value), hex(expected))
