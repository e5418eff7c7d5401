"""The parameter block of each kernel family, field by field: the Python twin of kernels/common/params.cuh.

A kernel takes one struct by value. The generated source asserts that both sides agree on every offset.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

_FORMAT = {"ptr": "Q", "i64": "q", "i32": "i"}


@dataclass(frozen=True)
class ParamBlock:
    """An ordered list of (field, kind, count); kinds are ptr (8 bytes), i64 and i32, naturally aligned."""

    struct_name: str
    fields: tuple[tuple[str, str, int], ...]

    @cached_property
    def packer(self) -> struct.Struct:
        """Packs one value per element, in field order, with the alignment of C."""
        code = "".join(f"{count}{_FORMAT[kind]}" for _, kind, count in self.fields)
        return struct.Struct("@" + code + "0q")

    @property
    def size(self) -> int:
        """Bytes, rounded up to 8 as the compiler does."""
        return self.packer.size

    @cached_property
    def offsets(self) -> tuple[tuple[str, int], ...]:
        """(field, byte offset) in order."""
        out: list[tuple[str, int]] = []
        code = "@"
        for name, kind, count in self.fields:
            # The offset of a field is where an empty array of its kind would be placed.
            out.append((name, struct.calcsize(code + "0" + _FORMAT[kind])))
            code += f"{count}{_FORMAT[kind]}"
        return tuple(out)

    @cached_property
    def pointer_count(self) -> int:
        """How many pointers lead the block; all pointers come first, so a warm call packs only those."""
        count = sum(kind == "ptr" for _, kind, _ in self.fields)
        assert all(kind == "ptr" for _, kind, _ in self.fields[:count]), self.struct_name
        return count


def _block(struct_name: str, **groups: str) -> ParamBlock:
    fields: list[tuple[str, str, int]] = []
    for kind, names in groups.items():
        for word in names.split():
            name, _, count = word.partition(":")
            fields.append((name, kind, int(count or 1)))
    return ParamBlock(struct_name, tuple(fields))


PARAM_BLOCKS: dict[str, ParamBlock] = {
    "gemm_simt": _block(
        "GemmParams",
        ptr="a b d bias preact total",
        i64="lda ldb ldd ldp bias_stride",
        i32="m n k activation accumulate splits segments_per_split tiles_m tiles_n group",
    ),
    "column_sum": _block(
        "ColumnSumParams",
        ptr="x out slabs",
        i64="row_stride col_stride",
        i32="rows cols accumulate segments",
    ),
    "act_grad": _block(
        "ActGradParams",
        ptr="dy preact dz db slabs",
        i64="dy_row dy_col z_row z_col dz_row dz_col",
        i32="rows cols activation accumulate segments want_db rows_per_block reserved",
    ),
    "ordered_reduce": _block(
        "OrderedReduceParams",
        ptr="slabs d bias preact",
        i64="slab_stride ldd ldp bias_stride",
        i32="m n count activation accumulate reserved",
    ),
    "strided_copy": _block(
        "StridedCopyParams",
        ptr="src dst",
    "split_planes": _block(
        "SplitPlanesParams",
        ptr="src dst",
        i64="row_stride col_stride pitch",
        i32="rows cols",
    ),
        i64="shape:16 src_stride:16 dst_stride:16",
        i32="ndim reserved",
    ),
}
