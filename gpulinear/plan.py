"""Turns problems into a plan: which kernels run, with which config, grid and parameters, over which buffers.

Planning is pure: it needs no device, touches no memory, and equal problems give equal plans. A plan prints well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .config import (
    SEGMENT,
    ActGradConfig,
    ColumnSumConfig,
    Config,
    GemmSimtConfig,
    OrderedReduceConfig,
    StridedCopyConfig,
    candidates,
)
from .cost import Cost, ceil_div, predict
from .device import DeviceSpec
from .errors import BackendError
from .params import PARAM_BLOCKS
from .problem import (
    ACTIVATION_CODES,
    ITEMSIZE,
    ActGrad,
    ColumnSum,
    Gemm,
    Matrix,
    Problem,
    Vector,
    accumulator_dtype,
)
from .views import MAX_COPY_DIMS, contiguous_strides

WORKSPACE = "workspace"
_WORKSPACE_ALIGN = 256
_MAX_GRID = 2**31 - 1
_COPY_ITEMS_PER_THREAD = 4
_ROWS_PER_BLOCK = 64  # act_grad without a bias gradient: no chain, so rows are cut finely
_COLUMNS_PER_BLOCK = 32  # column_sum and act_grad
_RASTER_GROUP = 8  # tiles of M that share a strip of B in the L2


@dataclass(frozen=True)
class Options:
    """What a caller may limit. ``num_sms`` None means all; ``workspace_limit`` in bytes bounds split-K slabs.

    ``tile`` and ``splits`` force the planner's choice, for tests and benches; a result bit never depends on them.
    """

    num_sms: int | None = None
    workspace_limit: int = 1 << 28
    tile: str | None = None
    splits: int | None = None


@dataclass(frozen=True)
class Ref:
    """An address: ``offset`` bytes into a named buffer."""

    buffer: str
    offset: int = 0


Value = int | Ref | None


@dataclass(frozen=True)
class Step:
    """One kernel launch. ``values`` follow the fields of the family's parameter block."""

    config: Config
    grid: int
    smem_bytes: int
    values: tuple[Value, ...]
    note: str

    @property
    def family(self) -> str:
        """The kernel family, which names its header, entry point and parameter block."""
        return self.config.family

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.config.threads


@dataclass(frozen=True)
class Choice:
    """A variant the planner looked at: its predicted cost, or why it was refused."""

    config: GemmSimtConfig
    splits: int
    cost: Cost | None
    refused: str | None


@dataclass(frozen=True)
class Plan:
    """Steps over named buffers, in stream order, and the reasons for them."""

    op: str
    arch: str
    steps: tuple[Step, ...]
    workspace_bytes: int
    reads: tuple[str, ...]  # one sentence per operand: read in place or copied
    choices: tuple[Choice, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.arch}: {len(self.steps)} kernel launch(es), {self.workspace_bytes} B workspace"]
        for step in self.steps:
            lines.append(f"  {step.family:<15} grid {step.grid} x {step.threads} threads, {step.smem_bytes} B smem")
            lines.append(f"    {step.note}")
        if not self.steps:
            lines.append("  nothing to launch: the result is empty")
        lines += [f"  {sentence}" for sentence in self.reads]
        if self.choices:
            lines.append("  candidates (predicted, not measured):")
        for choice in self.choices:
            verdict = choice.refused or (f"{choice.cost.seconds * 1e6:.1f} us" if choice.cost else "")
            lines.append(f"    {choice.config.tile:<18} splits {choice.splits:<3} {verdict}")
        return "\n".join(lines)


@dataclass
class _Builder:
    """Collects steps and hands out workspace."""

    spec: DeviceSpec
    options: Options
    steps: list[Step] = field(default_factory=list)
    top: int = 0
    reads: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def alloc(self, nbytes: int) -> Ref:
        """Workspace at a 256-byte boundary."""
        offset = self.top
        self.top += ceil_div(nbytes, _WORKSPACE_ALIGN) * _WORKSPACE_ALIGN
        return Ref(WORKSPACE, offset)

    def step(
        self, config: Config, grid: int, note: str, smem_bytes: int = 0, **values: Value | tuple[int, ...]
    ) -> None:
        """Append a launch; every field of the parameter block must be given."""
        if grid > _MAX_GRID:
            raise BackendError(
                f"{config.family} would need a grid of {grid} blocks, at most {_MAX_GRID}; split the call"
            )
        block = PARAM_BLOCKS[config.family]
        flat: list[Value] = []
        for name, _, count in block.fields:
            value = values.pop(name)
            flat.extend(value if isinstance(value, tuple) else (value,) * count)
        assert not values, f"{config.family} has no fields {sorted(values)}"
        self.steps.append(Step(config, grid, smem_bytes, tuple(flat), note))

    @property
    def num_sms(self) -> int:
        """The SMs to plan for."""
        return min(self.options.num_sms or self.spec.sm_count, self.spec.sm_count)


def _ref(where: Matrix | Vector | None) -> Ref | None:
    return None if where is None else Ref(*_split(where.buffer))


def _split(buffer: str) -> tuple[str, int]:
    """A buffer name may carry a workspace offset, as in ``workspace+512``."""
    name, _, offset = buffer.partition("+")
    return name, int(offset or 0)


def _placed(ref: Ref) -> str:
    return f"{ref.buffer}+{ref.offset}"


# ---- copies ------------------------------------------------------------------------------------


def _copy(
    builder: _Builder,
    what: str,
    dtype: str,
    shape: Sequence[int],
    src: Ref,
    src_strides: Sequence[int],
    dst: Ref,
    dst_strides: Sequence[int],
) -> None:
    """Copy elements between two strided byte layouts of one shape."""
    unit = ITEMSIZE[dtype]
    bits = unit
    for stride in (*src_strides, *dst_strides):
        bits |= abs(stride)
    unit = min(unit, bits & -bits)  # odd strides: move the element in smaller pieces
    shape, src_strides, dst_strides = list(shape), list(src_strides), list(dst_strides)
    if unit < ITEMSIZE[dtype]:
        shape.append(ITEMSIZE[dtype] // unit)
        src_strides.append(unit)
        dst_strides.append(unit)
    pad = MAX_COPY_DIMS - len(shape)
    items = math.prod(shape)
    config = StridedCopyConfig(unit)
    builder.step(
        config,
        ceil_div(items, config.threads * _COPY_ITEMS_PER_THREAD),
        what,
        src=src,
        dst=dst,
        shape=(*shape, *(1,) * pad),
        src_stride=(*src_strides, *(0,) * pad),
        dst_stride=(*dst_strides, *(0,) * pad),
        ndim=len(shape),
        reserved=0,
    )


def _compact(builder: _Builder, m: Matrix) -> Matrix:
    """A contiguous copy of a matrix in the workspace."""
    item = ITEMSIZE[m.dtype]
    dst = builder.alloc(m.rows * m.cols * item)
    if m.scatter is not None:
        shape, strides = m.scatter
        layout = (m.row_stride, m.col_stride)
    else:
        shape, strides = (m.rows, m.cols), (m.row_stride * item, m.col_stride * item)
        layout = (m.cols, 1)
    note = f"copy {m.buffer} {shape}, byte strides {strides}, into rows"
    _copy(builder, note, m.dtype, shape, _ref(m) or dst, strides, dst, contiguous_strides(shape, item))
    return replace(m, buffer=_placed(dst), row_stride=layout[0], col_stride=layout[1], align=128, scatter=None)


def _readable(builder: _Builder, m: Matrix, *, need_unit_stride: bool) -> Matrix:
    """The matrix as a kernel can read it: in place, or copied where its strides do not allow that."""
    name = m.buffer.partition("+")[0]
    if m.scatter is None and (m.row_major or m.col_major or not need_unit_stride):
        if name != WORKSPACE:
            builder.reads.append(f"{name} is read in place ({m.rows}x{m.cols}, strides {m.row_stride}, {m.col_stride})")
        return m
    builder.reads.append(f"{name} is copied once: its strides leave no dimension contiguous")
    return _compact(builder, m)


def _writable(builder: _Builder, m: Matrix) -> tuple[Matrix, Matrix | None]:
    """Where to write, and the final place when the rows of an output have no single stride."""
    if m.scatter is None:
        return m, None
    dst = builder.alloc(m.rows * m.cols * ITEMSIZE[m.dtype])
    builder.reads.append(f"{m.buffer} is written through a copy: its leading dimensions have no single stride")
    return replace(m, buffer=_placed(dst), scatter=None), m


def _scatter(builder: _Builder, staged: Matrix, final: Matrix | None) -> None:
    if final is None or final.scatter is None:
        return
    shape, strides = final.scatter
    item = ITEMSIZE[final.dtype]
    note = f"copy rows into {final.buffer} {shape}, byte strides {strides}"
    src = Ref(*_split(staged.buffer))
    _copy(builder, note, final.dtype, shape, src, contiguous_strides(shape, item), Ref(final.buffer), strides)


# ---- GEMM --------------------------------------------------------------------------------------


def _choose(builder: _Builder, gemm: Gemm) -> tuple[GemmSimtConfig, int]:
    """The variant and the number of K splits with the least predicted time. Neither may change a bit."""
    spec = builder.spec
    segments = ceil_div(gemm.k, SEGMENT["gemm_simt"])
    slab = gemm.m * gemm.n * ITEMSIZE[accumulator_dtype(gemm.dtype)]
    best: Choice | None = None
    for config, refused in candidates(gemm, spec):
        if builder.options.tile not in (None, config.tile):
            refused = f"only {builder.options.tile} was asked for"
        if refused:
            builder.choices.append(Choice(config, 1, None, refused))
            continue
        options = {1}
        if segments > 1 and segments * slab <= builder.options.workspace_limit:
            options |= {
                ceil_div(segments, ceil_div(segments, s)) for s in (2, 3, 4, 8, 16, 32, 64, segments) if s <= segments
            }
        if builder.options.splits is not None:
            options = {ceil_div(segments, ceil_div(segments, min(builder.options.splits, segments)))}
        local: Choice | None = None
        for splits in sorted(options):
            cost = predict(gemm, config, splits, spec, builder.num_sms)
            if local is None or local.cost is None or cost.seconds < local.cost.seconds:
                local = Choice(config, splits, cost, None)
        assert local is not None and local.cost is not None
        builder.choices.append(local)
        if best is None or best.cost is None or local.cost.seconds < best.cost.seconds:
            best = local
    if best is None:
        reasons = "; ".join(sorted({c.refused for c in builder.choices if c.refused}))
        raise BackendError(f"no kernel can run this {gemm.op} on {spec.arch}: {reasons}")
    return best.config, best.splits


def _finish_values(gemm: Gemm, d: Matrix, preact: Matrix | None) -> dict[str, Any]:
    """The epilogue's fields, shared by gemm_simt and ordered_reduce."""
    return {
        "d": _ref(d),
        "bias": _ref(gemm.bias),
        "preact": _ref(preact),
        "ldd": d.row_stride,
        "ldp": preact.row_stride if preact else 0,
        "bias_stride": gemm.bias.stride if gemm.bias else 0,
        "activation": ACTIVATION_CODES[gemm.activation],
        "accumulate": int(gemm.accumulate),
    }


def _reduce(builder: _Builder, gemm: Gemm, finish: dict[str, Any], slabs: Ref | None, count: int, note: str) -> None:
    config = OrderedReduceConfig(
        accumulator_dtype(gemm.dtype), gemm.d.dtype, gemm.bias.dtype if gemm.bias else gemm.d.dtype
    )
    builder.step(
        config,
        ceil_div(gemm.m * gemm.n, config.threads),
        note,
        slabs=slabs,
        slab_stride=gemm.m * gemm.n,
        m=gemm.m,
        n=gemm.n,
        count=count,
        reserved=0,
        **finish,
    )


def _plan_gemm(builder: _Builder, gemm: Gemm) -> None:
    if gemm.m == 0 or gemm.n == 0 or (gemm.k == 0 and gemm.accumulate):
        return
    d, d_final = _writable(builder, gemm.d)
    preact, preact_final = _writable(builder, gemm.preact) if gemm.preact else (None, None)
    finish = _finish_values(gemm, d, preact)
    if gemm.k == 0:
        _reduce(builder, gemm, finish, None, 0, "nothing to sum: zeros, or the activated bias")
    else:
        a = _readable(builder, gemm.a, need_unit_stride=True)
        b = _readable(builder, gemm.b, need_unit_stride=True)
        ready = replace(gemm, a=a, b=b, d=d, preact=preact)
        config, splits = _choose(builder, ready)
        acc = accumulator_dtype(gemm.dtype)
        segments = ceil_div(gemm.k, config.segment)
        total: Ref | None = None
        if splits > 1:
            total = builder.alloc(segments * gemm.m * gemm.n * ITEMSIZE[acc])
        elif segments > 1:
            total = builder.alloc(gemm.m * gemm.n * ITEMSIZE[acc])
        tiles_m, tiles_n = ceil_div(gemm.m, config.block_m), ceil_div(gemm.n, config.block_n)
        layout = ("T" if not a.row_major else "N") + ("T" if not b.row_major else "N")
        builder.step(
            config,
            tiles_m * tiles_n * splits,
            f"{gemm.op} {gemm.m}x{gemm.n}x{gemm.k} {gemm.dtype} {layout}, tile {config.tile}, {config.stages} stages, "
            f"S={config.segment}, {splits} split(s) of K, loads of {config.vec_a} and {config.vec_b} B",
            config.smem_bytes,
            a=_ref(a),
            b=_ref(b),
            total=total,
            lda=a.row_stride if a.row_major else a.col_stride,
            ldb=b.col_stride if b.col_major else b.row_stride,
            m=gemm.m,
            n=gemm.n,
            k=gemm.k,
            splits=splits,
            segments_per_split=ceil_div(segments, splits),
            tiles_m=tiles_m,
            tiles_n=tiles_n,
            group=_RASTER_GROUP,
            **finish,
        )
        if splits > 1:
            note = f"add {segments} segment sums in ascending order, then the epilogue"
            _reduce(builder, ready, finish, total, segments, note)
    _scatter(builder, d, d_final)
    if preact is not None:
        _scatter(builder, preact, preact_final)


# ---- column sums and activation gradients ------------------------------------------------------


def _finish_columns(builder: _Builder, dtype: str, out: Vector, slabs: Ref, segments: int, accumulate: bool) -> None:
    config = OrderedReduceConfig(accumulator_dtype(dtype), out.dtype, out.dtype)
    builder.step(
        config,
        ceil_div(out.size, config.threads),
        f"add {segments} segment sums of the columns in ascending order",
        slabs=slabs,
        d=_ref(out),
        bias=None,
        preact=None,
        slab_stride=out.size,
        ldd=out.size,
        ldp=0,
        bias_stride=0,
        m=1,
        n=out.size,
        count=segments,
        activation=0,
        accumulate=int(accumulate),
        reserved=0,
    )


def _slabs(builder: _Builder, dtype: str, segments: int, cols: int) -> Ref | None:
    """Room for one partial sum per segment and column; a single segment writes its result directly."""
    if segments <= 1:
        return None
    return builder.alloc(segments * cols * ITEMSIZE[accumulator_dtype(dtype)])


def _plan_column_sum(builder: _Builder, problem: ColumnSum) -> None:
    out = problem.out
    if out.size == 0 or (problem.x.rows == 0 and problem.accumulate):
        return
    x = _readable(builder, problem.x, need_unit_stride=False)
    config = ColumnSumConfig(x.dtype, out.dtype)
    segments = max(1, ceil_div(x.rows, config.segment))
    slabs = _slabs(builder, x.dtype, segments, x.cols)
    builder.step(
        config,
        ceil_div(x.cols, _COLUMNS_PER_BLOCK) * segments,
        f"column sums of {x.rows}x{x.cols} {x.dtype}, S={config.segment}",
        x=_ref(x),
        out=_ref(out),
        slabs=slabs,
        row_stride=x.row_stride,
        col_stride=x.col_stride,
        rows=x.rows,
        cols=x.cols,
        accumulate=int(problem.accumulate),
        segments=segments,
    )
    if slabs is not None:
        _finish_columns(builder, x.dtype, out, slabs, segments, problem.accumulate)


def _plan_act_grad(builder: _Builder, problem: ActGrad) -> None:
    rows, cols = problem.dz.rows, problem.dz.cols
    db = problem.db
    if cols == 0 or (rows == 0 and (db is None or problem.accumulate)):
        return
    dy = _readable(builder, problem.dy, need_unit_stride=False)
    preact = _readable(builder, problem.preact, need_unit_stride=False)
    config = ActGradConfig(dy.dtype, preact.dtype, db.dtype if db else dy.dtype)
    rows_per_block = config.segment if db else _ROWS_PER_BLOCK
    row_blocks = max(1, ceil_div(rows, rows_per_block))
    slabs = _slabs(builder, dy.dtype, row_blocks, cols) if db else None
    builder.step(
        config,
        ceil_div(cols, _COLUMNS_PER_BLOCK) * row_blocks,
        f"dz = dy * {problem.activation}'(preact) on {rows}x{cols} {dy.dtype}" + (", and db" if db else ""),
        dy=_ref(dy),
        preact=_ref(preact),
        dz=_ref(problem.dz),
        db=_ref(db),
        slabs=slabs,
        dy_row=dy.row_stride,
        dy_col=dy.col_stride,
        z_row=preact.row_stride,
        z_col=preact.col_stride,
        dz_row=problem.dz.row_stride,
        dz_col=problem.dz.col_stride,
        rows=rows,
        cols=cols,
        activation=ACTIVATION_CODES[problem.activation],
        accumulate=int(problem.accumulate),
        segments=row_blocks,
        want_db=int(db is not None),
        rows_per_block=rows_per_block,
        reserved=0,
    )
    if slabs is not None and db is not None:
        _finish_columns(builder, dy.dtype, db, slabs, row_blocks, problem.accumulate)


@lru_cache(maxsize=4096)
def make_plan(
    op: str,
    problems: tuple[Problem, ...],
    temporaries: tuple[tuple[str, int], ...],
    spec: DeviceSpec,
    options: Options,
) -> Plan:
    """Plan all problems of one call, in order.

    ``temporaries`` are (name, bytes) of buffers that live only inside the call; they are placed in the workspace.
    Raises BackendError when no kernel can do the work on ``spec``.
    """
    builder = _Builder(spec, options)
    placed = {name: _placed(builder.alloc(nbytes)) for name, nbytes in temporaries}
    for problem in problems:
        problem = _place(problem, placed)
        if isinstance(problem, Gemm):
            _plan_gemm(builder, problem)
        elif isinstance(problem, ColumnSum):
            _plan_column_sum(builder, problem)
        else:
            _plan_act_grad(builder, problem)
    reads = tuple(dict.fromkeys(builder.reads))
    return Plan(op, spec.arch, tuple(builder.steps), builder.top, reads, tuple(builder.choices))


def _place(problem: Problem, placed: dict[str, str]) -> Problem:
    """Point operands that lie in temporaries at the workspace."""
    changes: dict[str, Any] = {
        name: replace(value, buffer=placed[value.buffer])
        for name, value in vars(problem).items()
        if isinstance(value, (Matrix, Vector)) and value.buffer in placed
    }
    return replace(problem, **changes)
