"""The numeric contract D1 to D6 (docs/design.md), held against the kernels wherever arrays live: a GPU or the emulator.

Each check compares bits, never values. A row is one promise of one op in one dtype: how many results were compared, and
where the first one differed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.plan import Options
from gpulinear.views import numpy_dtype

Array = np.ndarray[Any, Any]


class Sizes(NamedTuple):
    """How large the operands are: small where an emulator runs them, large where a GPU does."""

    out: int
    inner: int
    tokens: tuple[int, ...]  # batch sizes among which a row must keep its bits
    rest: int  # elements of K beyond the last whole segment
    tiles: int | None  # of the legal tiles, the last so many, which are the smallest; None: all
    segment: int | None  # K per segment, where the family's own is too long to run; None: the family's


LARGE = Sizes(out=264, inner=520, tokens=(1, 2, 7, 16, 33, 64, 65, 129, 300), rest=77, tiles=None, segment=None)
SMALL = Sizes(out=16, inner=24, tokens=(1, 2, 17), rest=5, tiles=1, segment=64)


@dataclass
class Bits:
    """Compares results with the first of them."""

    want: bytes | None = None
    compared: int = 0
    differs: str = ""

    def add(self, result: Any, what: str) -> None:
        """Hold ``result`` against the first one; ``what`` names it if it differs."""
        got = _host(result).tobytes()
        if self.want is None:
            self.want = got
            return
        self.compared += 1
        if got != self.want and not self.differs:
            self.differs = what


@dataclass
class Contract:
    """The promises for one dtype and precision on the arrays of ``xp`` (NumPy under a host backend, or CuPy)."""

    xp: Any
    dtype: str
    precision: str | None = None
    sizes: Sizes = LARGE
    _made: dict[Any, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every promise; one that cannot be checked is an error row and costs no other."""
        for promise, op, check in self._checks():
            row = {"promise": promise, "op": op, "dtype": self.dtype, "precision": self.precision}
            try:
                with self._planned():
                    bits = check(op)
            except Exception as error:  # a call that cannot run must not cost the others
                yield {**row, "status": "error", "error": repr(error)}
                continue
            if not bits.compared:
                yield {**row, "status": "error", "error": "nothing was compared"}
            elif bits.differs:
                yield {**row, "compared": bits.compared, "status": "WRONG", "first_difference": bits.differs}
            else:
                yield {**row, "compared": bits.compared, "status": "ok"}

    def _checks(self) -> Iterator[tuple[str, str, Callable[[str], Bits]]]:
        for op in ("linear", "dgrad", "wgrad", "bgrad"):
            yield "D1", op, self.run_to_run
        for op in ("linear", "dgrad"):
            yield "D2", op, self.rows_of_a_batch
        for op in ("linear", "dgrad"):
            yield "D3", op, self.slices_of_the_weight
        for op in ("linear", "dgrad", "wgrad"):
            yield "D4", op, self.configurations
            yield "D4", op, self.alignments
        for op in ("linear", "dgrad", "wgrad"):
            yield "D5", op, self.numbers_of_sms
        for op in ("wgrad", "bgrad"):
            yield "D6", op, self.micro_batches

    def run_to_run(self, op: str) -> Bits:
        """D1: again, on another stream, and from a graph."""
        names = self._operands(op, max(self.sizes.tokens))
        bits = Bits()
        for again in range(3):
            bits.add(self._call(op, *names), f"run {again}")
        if self.xp is not np:
            self._streams(op, names, bits)
        return bits

    def _streams(self, op: str, operands: tuple[Any, ...], bits: Bits) -> None:
        cuda = self.xp.cuda
        stream = cuda.Stream(non_blocking=True)
        cuda.runtime.deviceSynchronize()
        with stream:
            result = self._call(op, *operands)
            stream.synchronize()
            bits.add(result, "another stream")
            out = self.xp.empty_like(result)
            self._call(op, *operands, out=out)  # binds the launcher that the graph records
            stream.synchronize()
            stream.begin_capture()
            self._call(op, *operands, out=out)
            graph = stream.end_capture()
            for replay in range(2):
                out.fill(float("nan"))
                graph.launch(stream)
                stream.synchronize()
                bits.add(out, f"replay {replay} of a graph")

    def rows_of_a_batch(self, op: str) -> Bits:
        """D2: a row's bits do not depend on the batch, the place in it, or the neighbours."""
        given, weight = self._operands(op, 1)
        bits = Bits()
        bits.add(self._call(op, given, weight), "alone")
        for tokens in self.sizes.tokens:
            for place in sorted({0, tokens // 2, tokens - 1}):
                for neighbour in (float("nan"), float("inf"), 3.0):
                    batch = self.xp.full((tokens, given.shape[1]), neighbour, given.dtype)
                    batch[place] = given[0]
                    got = self._call(op, batch, weight)[place : place + 1]
                    bits.add(got, f"row {place} of {tokens} tokens beside {neighbour}")
        return bits

    def slices_of_the_weight(self, op: str) -> Bits:
        """D3: slices of the weight's rows (dgrad: columns, in units of 16 bytes) slice the result."""
        given, weight = self._operands(op, self.sizes.tokens[-1])
        whole = self._call(op, given, weight)
        unit = 1 if op == "linear" else 16 // given.dtype.itemsize
        width = weight.shape[0 if op == "linear" else 1]
        last = (width - 1) // unit * unit
        bits = Bits()
        for start, stop in ((0, unit), (unit, last), (last // 2 // unit * unit, last)):
            part = weight[start:stop] if op == "linear" else weight[:, start:stop]
            one = Bits()
            one.add(whole[:, start:stop], "whole")
            one.add(self._call(op, given, part), f"slice {start}:{stop}")
            bits.compared += one.compared
            bits.differs = bits.differs or one.differs
        return bits

    def configurations(self, op: str) -> Bits:
        """D4: every legal tile, and 1, 2 and 3 splits of a K that has three segments."""
        operands = self._long(op)
        bits = Bits()
        bits.add(self._call(op, *operands), "the plan's own choice")
        tiles = [c.config.tile for c in self._explain(op, operands).choices if c.refused is None]
        for tile, splits in itertools.product(tiles[-(self.sizes.tiles or 0) :], (1, 2, 3)):
            with self._planned(tile=tile, splits=splits):
                bits.add(self._call(op, *operands), f"tile {tile}, {splits} splits")
        return bits

    def alignments(self, op: str) -> Bits:
        """D4: operands that begin off a 16-byte boundary, have padded rows, or are transposed views."""
        operands = self._operands(op, self.sizes.tokens[-1])
        bits = Bits()
        bits.add(self._call(op, *operands), "contiguous")
        for name in ("misaligned", "padded", "transposed", "columns_stepped"):
            # The weight stays: its own contiguous dimensions decide the family.
            first = testing.VIEWS[name](operands[0], self.xp)
            bits.add(self._call(op, first, operands[1]), f"{name} {op} input")
        return bits

    def numbers_of_sms(self, op: str) -> Bits:
        """D5: any number of SMs."""
        operands = self._long(op)
        bits = Bits()
        bits.add(self._call(op, *operands), "all SMs")
        for count in (1, 7, 64):
            with self._planned(num_sms=count):
                bits.add(self._call(op, *operands), f"{count} SMs")
        return bits

    def micro_batches(self, op: str) -> Bits:
        """D6: micro-batches of S tokens, in order, into a float32 (float64) buffer equal one pass over a zeroed one."""
        step = self._segment(op)
        operands = self._operands(op, 2 * step + self.sizes.rest)
        accumulator = np.dtype("float64" if self.dtype == "float64" else "float32")
        shape = {"wgrad": (self.sizes.out, self.sizes.inner), "bgrad": (self.sizes.out,)}[op]
        whole, parts = self.xp.zeros(shape, accumulator), self.xp.zeros(shape, accumulator)
        self._call(op, *operands, out=whole, accumulate=True)
        for start in range(0, operands[0].shape[0], step):
            self._call(op, *(array[start : start + step] for array in operands), out=parts, accumulate=True)
        bits = Bits()
        bits.add(whole, "one pass")
        bits.add(parts, f"micro-batches of {step}")
        return bits

    # ---- operands and calls ----------------------------------------------------------------------

    def _planned(self, **choice: Any) -> AbstractContextManager[None]:
        return gemm.planning(Options(segment=self.sizes.segment, **choice))

    def _call(self, op: str, *operands: Any, **more: Any) -> Any:
        options = {} if op == "bgrad" else {"precision": self.precision}
        # NaN and infinities among the neighbours are meant; NumPy must not warn about them.
        with np.errstate(invalid="ignore") if self.xp is np else nullcontext():
            return getattr(gl, op)(*operands, **options, **more)

    def _explain(self, op: str, operands: tuple[Any, ...]) -> Any:
        return gl.explain(op, *operands, **({} if op == "bgrad" else {"precision": self.precision}))

    def _array(self, rows: int, cols: int, seed: int) -> Any:
        key = (rows, cols, seed)
        if key not in self._made:
            self._made[key] = self.xp.asarray(testing.normal((rows, cols), numpy_dtype(self.dtype), seed))
        return self._made[key]

    def _operands(self, op: str, tokens: int, *, out: int | None = None, inner: int | None = None) -> tuple[Any, ...]:
        out, inner = out or self.sizes.out, inner or self.sizes.inner
        if op == "linear":
            return self._array(tokens, inner, 0), self._array(out, inner, 1)
        if op == "dgrad":
            return self._array(tokens, out, 2), self._array(out, inner, 1)
        if op == "wgrad":
            return self._array(tokens, out, 2), self._array(tokens, inner, 0)
        return (self._array(tokens, out, 2),)

    def _segment(self, op: str) -> int:
        """S of the family that runs the op."""
        steps = self._explain(op, self._operands(op, self.sizes.tokens[-1])).steps
        segments: list[int] = [step.config.segment for step in steps if hasattr(step.config, "segment")]
        return max(segments)

    def _long(self, op: str) -> tuple[Any, ...]:
        """Operands whose K has three segments."""
        long, tokens = 2 * self._segment(op) + self.sizes.rest, min(self.sizes.tokens[-1], 65)
        if op == "linear":
            return self._operands(op, tokens, inner=long)
        if op == "dgrad":
            return self._operands(op, tokens, out=long)
        return self._operands(op, long)


def _host(result: Any) -> Array:
    array: Array = result.get() if hasattr(result, "get") else result
    return np.ascontiguousarray(array)
