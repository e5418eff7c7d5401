"""Plans the pass that splits a float32 operand into planes: once per call and operand, or once for all calls."""

from __future__ import annotations

from dataclasses import replace

from .builder import Builder, placed_name, readable, ref_of
from .config import SPLITS, SplitPlanesConfig, vector_bytes
from .cost import ceil_div
from .plan import Ref
from .planes import ALIGN, both_ways, pitch_of, planes_bytes
from .problem import Matrix, SplitPlanes


def split(builder: Builder, operand: Matrix, precision: str) -> Matrix:
    """The planes of an operand (mn, k), one matrix after the other in the workspace, as the first of them.

    They keep the operand's major, or lie along K where it has none or both or the precision needs that. They are dense up
    to the pitch: rows of whole sectors, the next plane ``rows * pitch`` elements on. Both gradients of a layer read dy:
    planes that keep its major serve both.
    """
    if operand.planes is not None:
        return _kept(builder, operand, operand.planes)
    along_k = SPLITS[precision].along_k or operand.row_stride != 1 or operand.col_stride == 1 or 1 in operand.shape
    source = replace(operand if along_k else operand.T, transposed=False)
    key = (precision, source)
    if key not in builder.splits:
        builder.splits[key] = _split(builder, readable(builder, source, need_unit_stride=False), precision)
    planes = builder.splits[key]
    return planes if along_k else planes.T


def _kept(builder: Builder, operand: Matrix, precision: str) -> Matrix:
    """Planes that the caller keeps: those along K where they must be, else those of the matrix as it lies."""
    matrix = replace(operand.T if operand.transposed else operand, planes=None, transposed=False)
    builder.reads.append(f"{matrix.buffer} is read as the planes that split made")
    if operand.transposed and both_ways(*matrix.shape, precision):
        behind = Ref(matrix.buffer, planes_bytes(*matrix.shape, precision))
        return _planes(placed_name(behind), *operand.shape, precision)
    planes = _planes(matrix.buffer, *matrix.shape, precision)
    return planes.T if operand.transposed else planes


def _planes(buffer: str, rows: int, cols: int, precision: str) -> Matrix:
    """The first of the planes at a place, as a matrix; ``rows * pitch`` elements from one to the next."""
    return Matrix(buffer, rows, cols, pitch_of(cols, precision), 1, SPLITS[precision].dtype, ALIGN)


def _split(builder: Builder, source: Matrix, precision: str) -> Matrix:
    planes = builder.alloc(planes_bytes(*source.shape, precision))
    write_planes(builder, source, precision, planes)
    return _planes(placed_name(planes), *source.shape, precision)


def write_planes(builder: Builder, source: Matrix, precision: str, planes: Ref) -> None:
    """Append the launch that writes the planes of a matrix of any strides."""
    dtype, count = SPLITS[precision].dtype, SPLITS[precision].planes
    pitch = pitch_of(source.cols, precision)
    transpose = source.row_stride == 1 and source.col_stride != 1 and 1 not in source.shape
    vec = vector_bytes(source, source.row_stride) if source.col_stride == 1 else 4
    config = SplitPlanesConfig(precision, vec, transpose)
    if transpose:
        grid = ceil_div(source.rows, config.tile) * ceil_div(pitch, config.tile)
    else:
        grid = ceil_div(source.rows * pitch, config.threads * config.elements_per_thread)
    name = source.buffer.partition("+")[0]
    builder.step(
        config,
        grid,
        f"split {name} {source.rows}x{source.cols} into {count} {dtype} planes for {precision}, "
        + ("transposed" if transpose else f"loads of {vec} B"),
        src=ref_of(source),
        dst=planes,
        row_stride=source.row_stride,
        col_stride=source.col_stride,
        rows=source.rows,
        cols=source.cols,
        pitch=pitch,
    )


def plan_split(builder: Builder, problem: SplitPlanes) -> None:
    """Planes for the caller to keep (planes.py)."""
    if 0 in problem.x.shape:
        return
    x = replace(readable(builder, problem.x, need_unit_stride=False), transposed=False)
    planes = ref_of(problem.out)
    assert planes is not None
    write_planes(builder, x, problem.precision, planes)
    if both_ways(*x.shape, problem.precision):
        behind = replace(planes, offset=planes.offset + planes_bytes(*x.shape, problem.precision))
        write_planes(builder, replace(x.T, transposed=False), problem.precision, behind)
