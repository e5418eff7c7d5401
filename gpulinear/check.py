"""Checks every op, layout, dtype and precision of a backend against an independent float64 product, in units of the bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import gemm, testing
from .config import SEGMENT, family_of, segment_of
from .device import DeviceSpec, live_spec
from .linear import bgrad, dgrad, linear, wgrad
from .problem import PRECISIONS, Gemm, Matrix
from .views import numpy_dtype

DTYPES = ("float64", "float32", "float16", "bfloat16")
SHAPES = ((1, 7, 5), (33, 31, 65), (130, 129, 127))  # (tokens, out, in): around the edges of the tiles
EMULATED_SHAPES = ((1, 7, 5), (33, 31, 17))  # the emulator is slow; these reach the same edges
LAYOUTS = ("contiguous", "transposed", "column-sliced")


@dataclass(frozen=True)
class Row:
    """One check: the largest error in units of the a-priori bound; right when it is at most 1.

    ``dtype`` names the precision too where it is not the default.
    """

    op: str
    dtype: str
    layout: str
    shape: tuple[int, int, int]
    ratio: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.ratio <= 1.0


def _laid_out(array: np.ndarray[Any, Any], layout: str, xp: Any) -> Any:
    """The same values in another layout, where ``xp`` keeps its arrays."""
    if layout == "transposed":
        return xp.asarray(np.ascontiguousarray(array.T)).T
    if layout == "column-sliced":
        wide = np.zeros((array.shape[0], array.shape[1] + 3), array.dtype)
        wide[:, 2:-1] = array
        return xp.asarray(wide)[:, 2:-1]
    return xp.asarray(array)


def _ratio(got: Any, exact: np.ndarray[Any, Any], bound: np.ndarray[Any, Any]) -> float:
    host = got.get() if hasattr(got, "get") else got
    return testing.error_ratio(host, exact, bound)


@dataclass
class Traffic:
    """The worst launch of a kernel, as a multiple of what its requests cost at best; None without such requests.

    ``banks``: wavefronts of shared memory (1: no bank conflict). ``sectors``: 32-byte sectors of global memory.
    """

    banks: float | None = None
    sectors: float | None = None


def _add_last(traffic: dict[str, Traffic]) -> None:
    """Take in the counters of the emulator's last call."""
    from .backends import emulator

    for kernel, result in emulator.last_results():
        known = traffic.setdefault(kernel, Traffic())
        for name, total in (("banks", result.counters.total("shared")), ("sectors", result.counters.total("global"))):
            if total.requests:
                setattr(known, name, max(total.ratio, getattr(known, name) or 0.0))


def total(backend: str, arch: str | None = None) -> int:
    """How many rows ``run`` gives."""
    ops = sum(4 if precision is None else 3 for _, precision in _kinds(_spec(backend, arch)))
    return ops * len(_shapes(backend)) * len(LAYOUTS)


def _spec(backend: str, arch: str | None) -> DeviceSpec:
    return live_spec(0) if backend == "cuda" else DeviceSpec.preset(arch or gemm.DEFAULT_ARCH)


def _kinds(spec: DeviceSpec) -> list[tuple[str, str | None]]:
    """What is checked: every dtype, and float32 in every precision that the device has."""
    lower = [p for p in PRECISIONS if p != "ieee" and spec.compute_capability >= (8, 0)]
    return [(dtype, None) for dtype in DTYPES] + [("float32", precision) for precision in lower]


def _shapes(backend: str) -> tuple[tuple[int, int, int], ...]:
    return EMULATED_SHAPES if backend == "emulator" else SHAPES


def run(backend: str, arch: str | None = None, traffic: dict[str, Traffic] | None = None) -> Iterator[Row]:
    """All checks on "reference", "emulator" or "cuda", one row at a time.

    ``arch`` chooses whose kernels the emulator runs; ``traffic`` receives what it counted, by kernel.
    """
    xp: Any = np
    if backend == "cuda":
        import cupy as xp  # type: ignore[no-redef]
    spec = _spec(backend, arch)
    with nullcontext() if backend == "cuda" else gemm.host_backend(backend, spec.arch):
        for dtype, precision in _kinds(spec):
            for seed, shape in enumerate(_shapes(backend)):
                for layout in LAYOUTS:
                    for row in _check_shape(dtype, precision, shape, layout, seed, xp, spec):
                        if backend == "emulator" and traffic is not None:
                            _add_last(traffic)
                        yield row


def summation(dtype: str, spec: DeviceSpec, precision: str | None = None) -> testing.Summation:
    """How the GEMMs of a dtype add up on a device; ``precision`` None is the default one."""
    operand = Matrix("", 1, 1, 1, 1, dtype)
    asked = precision or ("ieee" if dtype == "float32" else None)
    family = family_of(Gemm("linear", operand, operand, operand, asked), spec)
    if family == "gemm_simt" or dtype == "float64":
        return testing.fma(dtype, segment_of(family, dtype))
    return testing.tensor_core(spec.arch, precision, segment=SEGMENT[family])


def _check_shape(
    dtype: str,
    precision: str | None,
    shape: tuple[int, int, int],
    layout: str,
    seed: int,
    xp: Any,
    spec: DeviceSpec,
) -> Iterator[Row]:
    tokens, out, inner = shape
    name = numpy_dtype(dtype)
    x = testing.normal((tokens, inner), name, seed)
    weight = testing.normal((out, inner), name, seed + 1)
    dy = testing.normal((tokens, out), name, seed + 2)
    wide_x, wide_w, wide_dy = (a.astype(np.float64) for a in (x, weight, dy))
    how = summation(dtype, spec, precision)
    asked: dict[str, Any] = {} if precision is None else {"precision": precision}
    kind = dtype if precision is None else f"{dtype} {precision}"
    on = {key: _laid_out(a, layout, xp) for key, a in (("x", x), ("weight", weight), ("dy", dy))}
    for op, function, operands, a, b, exact in (
        ("linear", linear, ("x", "weight"), x, weight.T, wide_x @ wide_w.T),
        ("dgrad", dgrad, ("dy", "weight"), dy, weight, wide_dy @ wide_w),
        ("wgrad", wgrad, ("dy", "x"), dy.T, x, wide_dy.T @ wide_x),
    ):
        off = testing.REPRESENTATION[precision or "ieee"]
        bound = testing.gemm_bound(a, b, how, out_dtype=name, representation=off)
        got = function(*(on[operand] for operand in operands), **asked)
        yield Row(op, kind, layout, shape, _ratio(got, exact, bound))
    if precision is not None:
        return
    sums = testing.fma(dtype, SEGMENT["column_sum"])
    bound = testing.column_sum_bound(dy, sums, out_dtype=name)
    yield Row("bgrad", dtype, layout, shape, _ratio(bgrad(on["dy"]), wide_dy.sum(axis=0), bound))
