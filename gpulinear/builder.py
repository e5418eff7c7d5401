"""Collects the steps of a plan and hands out workspace; plans the copies that operands or outputs need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .config import Config, StridedCopyConfig
from .cost import ceil_div
from .device import DeviceSpec
from .errors import BackendError
from .params import PARAM_BLOCKS
from .plan import WORKSPACE, Choice, Joint, Options, Ref, Step, Value
from .problem import ITEMSIZE, Matrix, Vector
from .views import MAX_COPY_DIMS, contiguous_strides

_WORKSPACE_ALIGN = 256
_MAX_GRID = 2**31 - 1
_COPY_ITEMS_PER_THREAD = 4


@dataclass
class Builder:
    """Collects steps and hands out workspace."""

    spec: DeviceSpec
    options: Options
    steps: list[Step] = field(default_factory=list)
    top: int = 0
    reads: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    joint: Joint | None = None
    splits: dict[tuple[str, Matrix], Matrix] = field(
        default_factory=dict
    )  # planes by precision and operand (splits.py)

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


def ref_of(where: Matrix | Vector | None) -> Ref | None:
    return None if where is None else Ref(*_split(where.buffer))


def _split(buffer: str) -> tuple[str, int]:
    """A buffer name may carry a workspace offset, as in ``workspace+512``."""
    name, _, offset = buffer.partition("+")
    return name, int(offset or 0)


def placed_name(ref: Ref) -> str:
    return f"{ref.buffer}+{ref.offset}"


# ---- copies ------------------------------------------------------------------------------------


def _copy(
    builder: Builder,
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


def _compact(builder: Builder, m: Matrix) -> Matrix:
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
    _copy(builder, note, m.dtype, shape, ref_of(m) or dst, strides, dst, contiguous_strides(shape, item))
    return replace(m, buffer=placed_name(dst), row_stride=layout[0], col_stride=layout[1], align=128, scatter=None)


def aligned_copy(builder: Builder, m: Matrix) -> Matrix:
    """A copy in the workspace whose rows (columns, where only those are contiguous) start at multiples of 16 bytes."""
    if m.scatter is not None or not (m.row_major or m.col_major):
        m = _compact(builder, m)
    if not m.row_major:
        return aligned_copy(builder, m.T).T
    item = ITEMSIZE[m.dtype]
    pitch = ceil_div(m.cols * item, 16) * 16
    dst = builder.alloc(m.rows * pitch)
    builder.reads.append(
        f"{m.buffer.partition('+')[0]} is copied once: TMA needs a base and rows at multiples of 16 bytes"
    )
    note = f"copy {m.buffer} {m.rows}x{m.cols}, {m.row_stride * item} bytes from row to row, into rows of {pitch} bytes"
    strides = (m.row_stride * item, m.col_stride * item)
    _copy(builder, note, m.dtype, (m.rows, m.cols), ref_of(m) or dst, strides, dst, (pitch, item))
    return replace(m, buffer=placed_name(dst), row_stride=pitch // item, col_stride=1, align=128)


def readable(builder: Builder, m: Matrix, *, need_unit_stride: bool) -> Matrix:
    """The matrix as a kernel can read it: in place, or copied where its strides do not allow that."""
    name = m.buffer.partition("+")[0]
    if m.scatter is None and (m.row_major or m.col_major or not need_unit_stride):
        if name != WORKSPACE:
            builder.reads.append(f"{name} is read in place ({m.rows}x{m.cols}, strides {m.row_stride}, {m.col_stride})")
        return m
    builder.reads.append(f"{name} is copied once: its strides leave no dimension contiguous")
    return _compact(builder, m)


def writable(builder: Builder, m: Matrix, *, read: bool = False) -> tuple[Matrix, Matrix | None]:
    """Where to write, and the final place when the rows of an output have no single stride.

    ``read``: it is added to, so what it holds is copied first.
    """
    if m.scatter is None:
        return m, None
    builder.reads.append(f"{m.buffer} is written through a copy: its leading dimensions have no single stride")
    if read:
        return _compact(builder, m), m
    dst = builder.alloc(m.rows * m.cols * ITEMSIZE[m.dtype])
    return replace(m, buffer=placed_name(dst), scatter=None), m


def scatter(builder: Builder, staged: Matrix, final: Matrix | None) -> None:
    if final is None or final.scatter is None:
        return
    shape, strides = final.scatter
    item = ITEMSIZE[final.dtype]
    note = f"copy rows into {final.buffer} {shape}, byte strides {strides}"
    src = Ref(*_split(staged.buffer))
    _copy(builder, note, final.dtype, shape, src, contiguous_strides(shape, item), Ref(final.buffer), strides)
