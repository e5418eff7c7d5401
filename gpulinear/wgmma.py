"""Plans a launch of ``gemm_wgmma``: operands that TMA can address, their tensor maps, and the persistent grid."""

from __future__ import annotations

from typing import Any

from .builder import Builder, aligned_copy, readable, ref_of
from .config import GemmWgmmaConfig
from .cost import ceil_div
from .plan import MapRef, Ref
from .problem import ITEMSIZE, Gemm, Matrix
from .tensormap import TensorMapSpec, major_of, rows_of

_RASTER_GROUP = 8  # tiles of M (pairs of them in clusters) that share a strip of B in the L2
_BOX_ROWS, _BOX_BYTES = 64, 128  # of a consumer, of D (kernels/wgmma/box.cuh)


def addressable(builder: Builder, m: Matrix) -> Matrix:
    """The operand as it lies, or a copy with aligned rows where TMA cannot address it. The bits are the same."""
    if major_of(m, rows_first=True) is None:
        return aligned_copy(builder, m)
    return readable(builder, m, need_unit_stride=True)


def _map_of(m: Matrix, box: tuple[int, int], pitch: int, planes: int = 1) -> MapRef:
    """The tensor map of a row-major matrix, or of its planes, of which it is the first."""
    at = ref_of(m)
    assert at is not None
    return MapRef(at, TensorMapSpec(m.dtype, m.rows, m.cols, pitch, *box, planes))


def _operand_map(m: Matrix, box: tuple[int, int], planes: int, *, rows_first: bool) -> MapRef:
    found = major_of(m, rows_first=rows_first)
    assert found is not None
    along_rows, pitch = found
    m = m if along_rows else m.T
    if planes > 1:  # they are dense up to the pitch, also where a single row could have another one
        pitch = m.row_stride * ITEMSIZE[m.dtype]
    return _map_of(m, box, pitch, planes)


def _output_map(m: Matrix | None, config: GemmWgmmaConfig) -> MapRef | None:
    if m is None or not config.tma_store:
        return None
    pitch = rows_of(m)
    assert pitch is not None
    return _map_of(m, (_BOX_ROWS, _BOX_BYTES // ITEMSIZE[m.dtype]), pitch)


def wgmma_step(
    builder: Builder,
    gemm: Gemm,
    config: GemmWgmmaConfig,
    slabs: Ref | None,
    db_slabs: Ref | None,
    finish: dict[str, Any],
    note: str,
) -> None:
    """Append the launch. ``slabs`` and ``db_slabs`` hold the sums of all segments, where ``ordered_reduce`` will add
    them."""
    a, b = (gemm.b.T, gemm.a.T) if config.swapped else (gemm.a, gemm.b)
    m, n = a.rows, b.cols
    segments = ceil_div(gemm.k, config.segment)
    tiles_m, tiles_n = ceil_div(m, config.rows * config.cluster), ceil_div(n, config.cols)
    items = tiles_m * tiles_n * (1 if config.running_total else segments)
    if slabs is not None:
        finish = finish | {"accumulate": 0}  # D is where ordered_reduce starts; each segment's sum starts from +0
    clusters = min(items, max(1, builder.num_sms // config.cluster))
    builder.step(
        config,
        clusters * config.cluster,
        note,
        config.smem_bytes,
        map_a=_operand_map(a, config.box_a, config.planes, rows_first=True),
        map_b=_operand_map(b, config.box_b, config.planes, rows_first=False),
        map_d=_output_map(gemm.d, config),
        map_preact=_output_map(gemm.preact, config),
        slabs=slabs,
        db=ref_of(gemm.db),
        db_slabs=db_slabs,
        m=m,
        n=n,
        k=gemm.k,
        segments=segments,
        tiles_m=tiles_m,
        tiles_n=tiles_n,
        group=_RASTER_GROUP,
        **finish,
    )
