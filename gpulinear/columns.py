"""Plans column sums (the bias gradient) and activation gradients."""

from __future__ import annotations

from .builder import Builder, readable, ref_of
from .config import SEGMENT, ActGradConfig, ColumnSumConfig, OrderedReduceConfig
from .cost import ceil_div
from .plan import Ref
from .problem import ACTIVATION_CODES, ITEMSIZE, ActGrad, ColumnSum, Vector, accumulator_dtype

_ROWS_PER_BLOCK = 64  # act_grad without a bias gradient: no chain, so rows are cut finely
_COLUMNS_PER_BLOCK = 32  # column_sum and act_grad


def finish_columns(builder: Builder, dtype: str, out: Vector, slabs: Ref, segments: int, accumulate: bool) -> None:
    """Add the segments' sums of the columns."""
    config = OrderedReduceConfig(accumulator_dtype(dtype), out.dtype, out.dtype)
    builder.step(
        config,
        ceil_div(out.size, config.threads),
        f"add {segments} segment sums of the columns in ascending order",
        slabs=slabs,
        d=ref_of(out),
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


def _column_segment(builder: Builder) -> int:
    """Rows of a segment of a column sum: the option's, for tests, else the contract's."""
    return builder.options.segment or SEGMENT["column_sum"]


def column_slabs(builder: Builder, dtype: str, segments: int, cols: int) -> Ref | None:
    """Room for one partial sum per segment and column; a single segment writes its result directly."""
    if segments <= 1:
        return None
    return builder.alloc(segments * cols * ITEMSIZE[accumulator_dtype(dtype)])


def plan_column_sum(builder: Builder, problem: ColumnSum, remark: str = "") -> None:
    """The steps of a column sum; its note ends in ``remark``."""
    out = problem.out
    if out.size == 0 or (problem.x.rows == 0 and problem.accumulate):
        return
    x = readable(builder, problem.x, need_unit_stride=False)
    config = ColumnSumConfig(x.dtype, out.dtype, _column_segment(builder))
    segments = max(1, ceil_div(x.rows, config.segment))
    slabs = column_slabs(builder, x.dtype, segments, x.cols)
    builder.step(
        config,
        ceil_div(x.cols, _COLUMNS_PER_BLOCK) * segments,
        f"column sums of {x.rows}x{x.cols} {x.dtype}, S={config.segment}{remark}",
        x=ref_of(x),
        out=ref_of(out),
        slabs=slabs,
        row_stride=x.row_stride,
        col_stride=x.col_stride,
        rows=x.rows,
        cols=x.cols,
        accumulate=int(problem.accumulate),
        segments=segments,
    )
    if slabs is not None:
        finish_columns(builder, x.dtype, out, slabs, segments, problem.accumulate)


def plan_act_grad(builder: Builder, problem: ActGrad) -> None:
    """The steps of an activation's gradient, and of db where it is asked for."""
    rows, cols = problem.dz.rows, problem.dz.cols
    db = problem.db
    if cols == 0 or (rows == 0 and (db is None or problem.accumulate)):
        return
    dy = readable(builder, problem.dy, need_unit_stride=False)
    preact = readable(builder, problem.preact, need_unit_stride=False)
    config = ActGradConfig(dy.dtype, preact.dtype, db.dtype if db else dy.dtype, _column_segment(builder))
    rows_per_block = config.segment if db else _ROWS_PER_BLOCK
    row_blocks = max(1, ceil_div(rows, rows_per_block))
    slabs = column_slabs(builder, dy.dtype, row_blocks, cols) if db else None
    builder.step(
        config,
        ceil_div(cols, _COLUMNS_PER_BLOCK) * row_blocks,
        f"dz = dy * {problem.activation}'(preact) on {rows}x{cols} {dy.dtype}" + (", and db" if db else ""),
        dy=ref_of(dy),
        preact=ref_of(preact),
        dz=ref_of(problem.dz),
        db=ref_of(db),
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
        finish_columns(builder, dy.dtype, db, slabs, row_blocks, problem.accumulate)
