"""Warp-level matrix instructions: ldmatrix, stmatrix, movmatrix and mma (PTX ISA 9.7.14.5).

8x8 matrices of 16-bit elements; mma of f16, bf16, tf32 and f64. All warps that are there are computed in one call.
Not modelled: 8, 6 and 4-bit elements, integers, sparsity, block scaling, and m8n8k4 of f16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import fragments, memory, tensorcore
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.spaces import SHARED_BASE

Array = npt.NDArray[Any]

_ROW = 16  # bytes of a row of eight 16-bit elements
_POISON = 0xFF


def whole_groups(lanes: Lanes, size: int) -> bool:
    """Whether the lanes are whole warps (size 32) or warpgroups (128); if not, it is reported."""
    threads = lanes.threads
    if len(threads) % size == 0:
        first = threads[::size]
        if not (first % size).any() and (threads[size - 1 :: size] - first == size - 1).all():
            return True
    lanes.report(
        "incomplete collective",
        f"only some threads of a {'warp' if size == 32 else 'warpgroup'} execute this .aligned instruction",
        "let all threads take the same path, none may have exited, and launch whole "
        f"{'warps' if size == 32 else 'warpgroups'} ({size} threads)",
    )
    return False


def _poison(count: int, lanes: Lanes, dtype: npt.DTypeLike) -> list[Array]:
    width = np.dtype(dtype).itemsize
    value = np.full(len(lanes.threads) * width, _POISON, np.uint8).view(dtype)
    return [value] * count


def require(lanes: Lanes, capability: int) -> None:
    """Refuse an instruction that the module's target does not have."""
    if lanes.cta.launch.capability < capability:
        instruction = lanes.instruction
        raise NotModelledError(f"{instruction.name} needs sm_{capability} or higher. At {instruction.where()}")


# ------------------------------------------------------------------------------ ldmatrix, stmatrix, movmatrix


def _row_addresses(lanes: Lanes, count: int, space: str, address: Array) -> tuple[Lanes, Array] | None:
    """The lanes that give the address of a row, and these addresses in the shared window; None after a report.

    Lanes 0 to 7 give the rows of the first matrix, 8 to 15 of the second; the rest is not looked at. On sm_75 all
    lanes must hold valid addresses (9.7.14.5.15), so all are accessed there.
    """
    if not whole_groups(lanes, 32):
        return None
    if count < 4 and lanes.cta.launch.capability > 75:
        given = lanes.threads % 32 < 8 * count
        lanes, address = Lanes(lanes.cta, lanes.threads[given], lanes.instruction), address[given]
    if not space:
        address = address - SHARED_BASE
        outside = (address < 0) | (address > 0xFFFFFFFF)
        if outside.any():
            lanes.report(
                "wrong state space",
                "a generic address that is not in shared memory",
                "pass an address of a __shared__ variable",
                which=outside,
                address=int(address[outside][0]) + SHARED_BASE,
            )
            return None
    return lanes, address


@effect(
    "ldmatrix.sync.aligned.m8n8.<num:x1|x2|x4>[.trans][.<space:shared::cta|shared>].b16",
    "=V1:b32, addr",
    "9.7.14.5.15",
    sync="warp",
)
def ldmatrix(form: Form) -> Semantics:
    """Rows of 16 bytes, each from the address that its lane gives, dealt out to the warp."""
    count, transposed = int(form["num"][1:]), bool(form["trans"])

    def run(lanes: Lanes, address: Array) -> list[Array]:
        require(lanes, 75)
        rows = _row_addresses(lanes, count, form["space"], address)
        if rows is None:
            return _poison(count, lanes, np.uint32)
        data = memory.read_bytes(rows[0], "shared", rows[1], _ROW)
        data = data.reshape(len(lanes.threads) // 32, -1, _ROW)[:, : 8 * count]
        matrices = np.ascontiguousarray(data).view(np.uint16).reshape(-1, count, 8, 8)
        return list(fragments.from_rows(matrices, transposed))

    return run


@effect(
    "stmatrix.sync.aligned.m8n8.<num:x1|x2|x4>[.trans][.<space:shared::cta|shared>].b16",
    "addr, V1:b32",
    "9.7.14.5.16",
    sync="warp",
)
def stmatrix(form: Form) -> Semantics:
    """The inverse of ldmatrix."""
    count, transposed = int(form["num"][1:]), bool(form["trans"])

    def run(lanes: Lanes, address: Array, registers: list[Array]) -> None:
        require(lanes, 90)
        rows = _row_addresses(lanes, count, form["space"], address)
        if rows is not None:
            matrices = np.ascontiguousarray(fragments.to_rows(np.stack(registers), transposed))
            memory.write_bytes(rows[0], "shared", rows[1], matrices.view(np.uint8).reshape(-1, _ROW))

    return run


@effect("movmatrix.sync.aligned.m8n8.trans.b16", "=b32, b32", "9.7.14.5.17", sync="warp")
def movmatrix(form: Form) -> Semantics:
    """Transposes an 8x8 matrix in registers."""

    def run(lanes: Lanes, a: Array) -> Array:
        require(lanes, 75)
        if not whole_groups(lanes, 32):
            return _poison(1, lanes, np.uint32)[0]
        d: Array = fragments.from_rows(fragments.to_rows(a[None], False), True)[0]
        return d

    return run


# ----------------------------------------------------------------------------------------------------- mma

_ELEMENTS = {"f16": np.uint16, "bf16": np.uint16, "tf32": np.uint32, "f64": np.float64}
_ACCUMULATORS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
_FIRST = {("f16", "m16n8k8"): 75, ("f64", "m16n8k4"): 90, ("f64", "m16n8k8"): 90, ("f64", "m16n8k16"): 90}
"""The first architecture that has a form; sm_80 for the rest."""


@effect(
    "mma.sync.aligned.<shape:m16n8k8|m16n8k16>.row.col.<D:f32>.<T:f16|bf16>.<B:f16|bf16>.f32",
    "=V:f32, V1:b32, V1:b32, V:f32",
    "9.7.14.5.14",
    sync="warp",
)
@effect(
    "mma.sync.aligned.<shape:m16n8k4|m16n8k8>.row.col.<D:f32>.<T:tf32>.<B:tf32>.f32",
    "=V:f32, V1:b32, V1:b32, V:f32",
    "9.7.14.5.14",
    sync="warp",
)
@effect(
    "mma.sync.aligned.<shape:m16n8k8|m16n8k16>.row.col.<D:f16>.<T:f16>.<B:f16>.f16",
    "=V:b32, V1:b32, V1:b32, V:b32",
    "9.7.14.5.14",
    sync="warp",
)
@effect(
    "mma.sync.aligned.<shape:m8n8k4|m16n8k4|m16n8k8|m16n8k16>.row.col.<D:f64>.<T:f64>.<B:f64>.f64",
    "=V:f64, V1:f64, V1:f64, V:f64",
    "9.7.14.5.14",
    sync="warp",
)
def mma(form: Form) -> Semantics:
    """D = A B + C, a matrix for each warp; the arithmetic is that of tensorcore.py."""
    kind, result = form["T"], form["D"]
    if form["B"] != kind:
        raise NotModelledError(f"mma of {kind} with {form['B']}: both must have one type (PTX ISA 9.7.14.5.14)")
    m, n, k = (int(part) for part in form["shape"][1:].replace("n", " ").replace("k", " ").split())
    shape = fragments.mma(m, n, k, np.dtype(_ELEMENTS[kind]).itemsize * 8, np.dtype(_ACCUMULATORS[result]).itemsize * 8)
    registers = np.uint32 if result == "f16" else _ACCUMULATORS[result]
    first = _FIRST.get((kind, form["shape"]), 80)

    def run(lanes: Lanes, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
        require(lanes, first)
        if not whole_groups(lanes, 32):
            return _poison(shape.c.registers, lanes, registers)
        launch = lanes.cta.launch
        left = shape.a.load(np.stack(a), _ELEMENTS[kind])
        right = shape.b.load(np.stack(b), _ELEMENTS[kind])
        addend = shape.c.load(np.stack(c), _ACCUMULATORS[result])
        if kind == "f64":
            total = tensorcore.multiply_add_f64(left, right, addend)
        else:
            exact = launch.tensor == "exact"
            total = tensorcore.multiply_add(left, right, addend, kind, launch.arch, exact=exact)
        launch.counters.flops(2 * m * n * k * len(total))
        return list(shape.c.store(total, registers))

    return run
