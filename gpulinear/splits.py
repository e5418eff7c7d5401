"""Plans the pass that splits a float32 operand into planes, once per call and operand."""

from __future__ import annotations

from dataclasses import replace

from .builder import Builder, placed_name, readable, ref_of
from .config import SPLITS, SplitPlanesConfig, vector_bytes
from .cost import ceil_div
from .problem import ITEMSIZE, Matrix

# Rows of a plane start at whole sectors of global memory, so that a k-tile never reads a part of one.
_SECTOR = 32


def split(builder: Builder, operand: Matrix, precision: str) -> Matrix:
    """The planes of an operand (mn, k), one matrix after the other in the workspace, as the first of them.

    They keep the operand's major, or lie along K where it has none or both or the precision needs that. They are dense up
    to the pitch: rows of whole sectors, the next plane ``rows * pitch`` elements on. Both gradients of a layer read dy:
    planes that keep its major serve both.
    """
    along_k = SPLITS[precision].along_k or operand.row_stride != 1 or operand.col_stride == 1 or 1 in operand.shape
    source = replace(operand if along_k else operand.T, transposed=False)
    key = (precision, source)
    if key not in builder.splits:
        builder.splits[key] = _split(builder, readable(builder, source, need_unit_stride=False), precision)
    planes = builder.splits[key]
    return planes if along_k else planes.T


def _split(builder: Builder, source: Matrix, precision: str) -> Matrix:
    dtype, count = SPLITS[precision].dtype, SPLITS[precision].planes
    per_sector = _SECTOR // ITEMSIZE[dtype]
    pitch = ceil_div(source.cols, per_sector) * per_sector
    planes = builder.alloc(count * source.rows * pitch * ITEMSIZE[dtype])
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
    return Matrix(placed_name(planes), source.rows, source.cols, pitch, 1, dtype)
