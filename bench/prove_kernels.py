"""The kernels on the device against float64, against themselves in other tiles, and against the emulator."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpulinear as gl
from gpulinear import check, device, gemm, ledger, testing
from gpulinear.config import SEGMENT, segment_of
from gpulinear.launch import compile_plan
from gpulinear.plan import Options, Plan
from gpulinear.problem import PRECISIONS as PRECISIONS_OF_FLOAT32
from gpulinear.views import numpy_dtype

from .budget import Clock

Array = np.ndarray[Any, Any]

# (tokens, out, in): tile edges, ragged sizes, and K of several segments for the running total and for split-K.
SHAPES = (
    (1, 1, 1),
    (129, 127, 65),
    (300, 257, 2 * SEGMENT["gemm_simt"] + 13),
    (70, 66, 2 * SEGMENT["gemm_mma"] + 13),
)
LAYER_SHAPE = (65, 66, 67)
TILE_SHAPE = (35, 36, 72)
PRECISIONS = tuple(name for name in PRECISIONS_OF_FLOAT32 if name != "ieee")
OPERANDS = {"linear": ("x", "weight"), "dgrad": ("dy", "weight"), "wgrad": ("dy", "x")}


class Case(NamedTuple):
    """One call on small integers, of which the emulator and float64 give the same bits unless the activation is inexact."""

    op: str
    view: str = "contiguous"
    shape: tuple[int, int, int] = LAYER_SHAPE
    activation: str | None = "relu"
    options: Options = Options()
    precision: str | None = None


def _operands(shape: tuple[int, int, int], dtype: str, exact: bool) -> dict[str, Array]:
    tokens, out, inner = shape
    make = testing.integers if exact else testing.normal
    name = numpy_dtype(dtype)
    return {
        "x": make((tokens, inner), name, 0),
        "weight": make((out, inner), name, 1),
        "dy": make((tokens, out), name, 2),
    }


def _call(op: str, arrays: dict[str, Any], precision: str | None) -> Any:
    return getattr(gl, op)(*(arrays[name] for name in OPERANDS[op]), precision=precision)


def factors(op: str, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """The matrices whose product an op is."""
    return {
        "linear": (arrays["x"], arrays["weight"].T),
        "dgrad": (arrays["dy"], arrays["weight"]),
        "wgrad": (arrays["dy"].T, arrays["x"]),
    }[op]


def case_operands(case: Case, dtype: str) -> dict[str, Array]:
    host = _operands(case.shape, dtype, case.activation != "silu")
    tokens, out, _ = case.shape
    host["preact"] = testing.normal((tokens, out), numpy_dtype(dtype), 3)  # never 0, where relu has a corner
    host["bias"] = testing.integers((out,), numpy_dtype(dtype), 4)
    return host


def arguments_of(case: Case, host: Mapping[str, Array], xp: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments where ``xp`` keeps its arrays; matrices in the case's layout."""
    at = {n: testing.VIEWS[case.view](xp.asarray(a), xp) if a.ndim == 2 else xp.asarray(a) for n, a in host.items()}
    names = {
        "linear": ("x", "weight", "bias"),
        "dgrad": ("dy", "weight"),
        "wgrad": ("dy", "x"),
        "bgrad": ("dy",),
        "linear_backward": ("dy", "x", "weight"),
    }[case.op]
    options: dict[str, Any] = {"activation": case.activation} if case.op.startswith("linear") else {}
    if case.op == "linear_backward" and case.activation is not None:
        options["preact"] = at["preact"]
    if case.precision is not None:
        options["precision"] = case.precision
    return tuple(at[name] for name in names), options


def results_of(case: Case, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Array]:
    """What the call gives, in host memory."""
    given = getattr(gl, case.op)(*arguments[0], **arguments[1])
    given = [given.dx, given.dw, given.db] if case.op == "linear_backward" else [given]
    return [_on_host(array) for array in given]


def _on_host(array: Any) -> Array:
    host: Array = array.get() if hasattr(array, "get") else array
    return host


def _exact(case: Case, host: Mapping[str, Array]) -> list[Array]:
    """What a call with relu, or with none, gives in float64: exact for small integers."""
    x, weight, dy, preact, bias = (host[n].astype(np.float64) for n in ("x", "weight", "dy", "preact", "bias"))
    dz = dy if case.activation is None else np.where(preact > 0, dy, 0.0)
    if case.op == "linear":
        return [np.maximum(x @ weight.T + bias, 0.0)]
    if case.op == "dgrad":
        return [dy @ weight]
    if case.op == "wgrad":
        return [dy.T @ x]
    if case.op == "bgrad":
        return [dy.sum(axis=0)]
    return [dz @ weight, dz.T @ x, dz.sum(axis=0)]


class Kernels:
    """Which compiled kernels have run, and whether all that they gave was right."""

    def __init__(self, path: Path | None = None) -> None:
        """``path``: where an earlier process has left what it saw (``save``)."""
        self.path = path
        self.seen: dict[str, tuple[str, str, bool]] = {}
        if path is not None and path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self.seen = {str(sha): (str(name), str(arch), good is True) for sha, (name, arch, good) in held.items()}

    def save(self) -> None:
        """Leave what was seen for the next process."""
        if self.path is not None:
            self.path.write_text(json.dumps(self.seen, indent=0), encoding="utf-8")

    def note(self, plan: Plan, good: bool) -> None:
        """Take in the outcome of a call."""
        for step, artifact in zip(plan.steps, compile_plan(plan), strict=True):
            sha = ledger.digest(artifact)
            before = self.seen.get(sha, ("", "", True))[2]
            self.seen[sha] = (step.family, plan.arch, before and good)

    def _run(self, plan: Plan, call: Callable[[], Any]) -> Any:
        """A call whose kernels have not passed if it raises."""
        try:
            return call()
        except Exception:
            self.note(plan, False)
            raise

    def correctness(self, clock: Clock) -> Iterator[dict[str, Any]]:
        """Every layout through every family, exact; then every legal tile and several splits, all ops and dtypes."""
        import cupy

        for dtype, case in layout_cases():
            row = {
                "op": case.op, "dtype": dtype, "view": case.view, "precision": case.precision,
                "joint": case.options.joint,
            }  # fmt: skip
            try:
                yield {**row, "status": "ok" if self._layout(case, dtype, cupy) else "WRONG"}
            except Exception as error:  # one call that cannot run must not cost the others
                yield {**row, "status": "error", "error": repr(error)}
        yield from self._tiles()

    def _layout(self, case: Case, dtype: str, cupy: Any) -> bool:
        host = case_operands(case, dtype)
        arguments = arguments_of(case, host, cupy)
        with gemm.planning(case.options):
            plan = gl.explain(case.op, *arguments[0], **arguments[1])
            pairs = zip(self._run(plan, lambda: results_of(case, arguments)), _exact(case, host), strict=True)
        right = all(bool((g == w.astype(g.dtype)).all()) for g, w in pairs)
        self.note(plan, right)
        return right

    def _tiles(self) -> Iterator[dict[str, Any]]:
        import cupy

        kinds: list[tuple[str, str | None, tuple[int, int, int], str]]
        kinds = [(dtype, None, shape, op) for dtype in check.DTYPES for shape in SHAPES for op in OPERANDS]
        kinds += [("float32", precision, shape, "linear") for precision in PRECISIONS for shape in SHAPES[-1:]]
        for dtype, precision, shape, op in kinds:
            for exact in (True, False):
                host = _operands(shape, dtype, exact)
                on = {name: cupy.asarray(array) for name, array in host.items()}
                a, b = factors(op, host)
                want = a.astype(np.float64) @ b.astype(np.float64)
                how = check.summation(dtype, device.live_spec(0), precision)
                off = testing.REPRESENTATION[precision or "ieee"]
                bound = testing.gemm_bound(a, b, how, out_dtype=numpy_dtype(dtype), representation=off)
                names = OPERANDS[op]
                first: bytes | None = None
                for choice in gl.explain(op, *(on[n] for n in names), precision=precision).choices:
                    if choice.refused is not None:
                        continue
                    for splits in (1, 2, 3):
                        with gemm.planning(Options(tile=choice.config.tile, splits=splits)):
                            plan = gl.explain(op, *(on[n] for n in names), precision=precision)
                            got = self._run(plan, lambda: _on_host(_call(op, on, precision)))  # noqa: B023
                        first = got.tobytes() if first is None else first
                        ratio = testing.error_ratio(got, want, bound)
                        same = got.tobytes() == first
                        right = ratio <= 1.0 and same and (not exact or bool((got == want.astype(got.dtype)).all()))
                        self.note(plan, right)
                        yield {
                            "op": op, "dtype": dtype, "precision": precision, "shape": shape, "exact": exact,
                            "tile": choice.config.tile, "splits": splits, "error_ratio": ratio, "same_bits": same,
                            "status": "ok" if right else "WRONG",
                        }  # fmt: skip

    def emulator(self, clock: Clock) -> Iterator[dict[str, Any]]:
        """The same compiled kernels on the same operands on the device and in the emulator: the same bits.

        The kernels hold no approximate instruction (tests/test_kernels_compile.py), so nothing may differ.
        """
        import cupy

        arch = device.live_spec(0).arch
        for dtype in check.DTYPES:
            for case in emulator_cases(dtype, arch):
                row = {
                    "op": case.op, "dtype": dtype, "view": case.view, "shape": case.shape, "tile": case.options.tile,
                    "splits": case.options.splits, "activation": case.activation, "precision": case.precision,
                    "joint": case.options.joint,
                }  # fmt: skip
                try:
                    yield {**row, **self._both(case, dtype, arch, cupy)}
                except Exception as error:  # one call that cannot run must not cost the others
                    yield {**row, "status": "error", "error": repr(error)}

    def _both(self, case: Case, dtype: str, arch: str, cupy: Any) -> dict[str, Any]:
        host = case_operands(case, dtype)
        plans, results = [], []
        places: list[tuple[Any, AbstractContextManager[None]]] = [
            (cupy, nullcontext()),
            (np, gl.host_backend("emulator", arch)),
        ]
        for xp, where in places:
            with where, gemm.planning(case.options):
                arguments = arguments_of(case, host, xp)
                plans.append(gl.explain(case.op, *arguments[0], **arguments[1]))
                results.append(self._run(plans[0], lambda: results_of(case, arguments)))  # noqa: B023 - called at once
        hashes = [[ledger.digest(artifact) for artifact in compile_plan(plan)] for plan in plans]
        same = all(g.tobytes() == w.tobytes() for g, w in zip(*results, strict=True))
        right = hashes[0] == hashes[1] and same
        self.note(plans[0], right)
        return {"same_bits": same, "same_kernels": hashes[0] == hashes[1], "status": "ok" if right else "WRONG"}

    def entries(self, where: Mapping[str, Any]) -> list[ledger.Entry]:
        """Ledger entries of the kernels that passed."""
        rest = (where["gpu"], where["driver"], where["nvrtc"], where["time"][:10], where["commit"])
        return [ledger.Entry(name, sha, arch, *rest) for sha, (name, arch, good) in self.seen.items() if good]


def layout_cases() -> Iterator[tuple[str, Case]]:
    """Every op through every layout, in every dtype and precision; both gradients and db in one launch and in several."""
    for dtype, op, view in itertools.product(check.DTYPES, (*OPERANDS, "linear_backward", "bgrad"), testing.VIEWS):
        yield dtype, Case(op, view)
    for name, op in itertools.product(PRECISIONS, (*OPERANDS, "linear_backward")):
        yield "float32", Case(op, precision=name)
    kinds: list[tuple[str, str | None]] = [(dtype, None) for dtype in check.DTYPES] + [
        ("float32", precision) for precision in PRECISIONS
    ]
    for (dtype, precision), joint in itertools.product(kinds, (True, False)):
        yield dtype, Case("linear_backward", activation=None, options=Options(joint=joint), precision=precision)


def families_of(dtype: str, arch: str) -> list[str]:
    """The GEMM families of a dtype: of weights of any width, and of those whose rows are multiples of 16 bytes."""
    squares = [gl.ShapeDtype((size, size), dtype) for size in (1, 16)]
    plans = [gl.explain("linear", square, square, arch=arch) for square in squares]
    return list(dict.fromkeys(plan.choices[0].config.family for plan in plans))


def legal_tiles(dtype: str, arch: str, family: str) -> dict[str, list[str]]:
    """By op, the tiles that the planner may take for operands with ragged edges."""
    tokens, out, inner = TILE_SHAPE
    at = {
        "x": gl.ShapeDtype((tokens, inner), dtype),
        "weight": gl.ShapeDtype((out, inner), dtype),
        "dy": gl.ShapeDtype((tokens, out), dtype),
    }
    with gemm.planning(Options(family=family)):
        plans = {op: gl.explain(op, *(at[name] for name in names), arch=arch) for op, names in OPERANDS.items()}
    return {op: [c.config.tile for c in plan.choices if c.refused is None] for op, plan in plans.items()}


def emulator_cases(dtype: str, arch: str) -> list[Case]:
    """Every family and layout on shapes that the emulator runs in a second, then every tile; then the precisions."""
    cases = [case for family in families_of(dtype, arch) for case in _cases_of(dtype, arch, family)]
    for precision in PRECISIONS if dtype == "float32" else ():
        cases += [Case(op, shape=TILE_SHAPE, precision=precision) for op in OPERANDS]
    return cases


def _cases_of(dtype: str, arch: str, family: str) -> Iterator[Case]:
    tiles = legal_tiles(dtype, arch, family)
    smallest = [tile for tile in tiles["linear"] if tile in tiles["dgrad"] and tile in tiles["wgrad"]][-1]
    one = Options(family=family, tile=smallest, splits=1)
    small, long = (33, 31, 17), (3, 4, 2 * segment_of(family, dtype) + 5)
    for op in ("linear", "dgrad", "wgrad", "bgrad"):
        yield Case(op, "contiguous", small, options=one)
    for view in ("transposed", "columns_stepped"):
        yield Case("linear_backward", view, small, options=one)
    yield Case("linear_backward", "contiguous", small, "silu", one)
    yield Case("linear", "misaligned", small, None, one)
    yield Case("linear_backward", "contiguous", small, None, replace(one, joint=True))
    yield Case("linear", "contiguous", long, options=replace(one, splits=2))
    able = {tile: op for op in OPERANDS for tile in tiles[op]}  # by tile, an op that it can do
    for tile, op in able.items():
        yield Case(op, "contiguous", TILE_SHAPE, options=replace(one, tile=tile))
