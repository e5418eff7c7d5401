"""The parameter block of each kernel family, field by field: the Python twin of kernels/common/params.cuh.

A kernel takes one struct by value. The generated source asserts that both sides agree on every offset.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

_WHICH = ("first", "second")  # problem of a joint launch
_FORMAT = {"map": "128s", "ptr": "Q", "i64": "q", "i32": "i"}


@dataclass(frozen=True)
class ParamBlock:
    """An ordered list of (field, kind, count); kinds are map (128 bytes, aligned to 64), ptr (8 bytes), i64 and i32.

    Maps come first and pointers next: a warm call packs only those. Everything is naturally aligned.
    """

    struct_name: str
    fields: tuple[tuple[str, str, int], ...]

    @cached_property
    def packer(self) -> struct.Struct:
        """Packs one value per element, in field order, with the alignment of C."""
        code = "".join(f"{count}{_FORMAT[kind]}" if kind != "map" else _FORMAT[kind] for _, kind, count in self.fields)
        length = struct.calcsize("@" + code + "0q")
        padding = -length % 64 if self.map_count else 0
        return struct.Struct(f"@{code}0q{padding}x")

    @property
    def size(self) -> int:
        """Bytes, rounded up to 8, or to 64 where there are maps, as the compiler does."""
        return self.packer.size

    @property
    def parts(self) -> tuple[ParamBlock, ...]:
        """The blocks that it consists of: itself."""
        return (self,)

    @cached_property
    def offsets(self) -> tuple[tuple[str, int], ...]:
        """(field, byte offset) in order."""
        out: list[tuple[str, int]] = []
        code = "@"
        for name, kind, count in self.fields:
            # The offset of a field is where an empty array of its kind would be placed.
            out.append((name, struct.calcsize(code + ("" if kind == "map" else "0" + _FORMAT[kind]))))
            code += _FORMAT[kind] if kind == "map" else f"{count}{_FORMAT[kind]}"
        return tuple(out)

    @cached_property
    def map_count(self) -> int:
        """How many tensor maps lead the block."""
        return self._leading("map", 0)

    @cached_property
    def pointer_count(self) -> int:
        """How many pointers follow the maps."""
        return self._leading("ptr", self.map_count)

    def _leading(self, kind: str, first: int) -> int:
        """The number of fields of a kind, all of which must stand together from field ``first`` on."""
        count = sum(found == kind for _, found, _ in self.fields)
        assert all(found == kind for _, found, _ in self.fields[first : first + count]), self.struct_name
        return count


@dataclass(frozen=True)
class JointBlock:
    """The block of a launch for two problems: ``part`` twice, one after the other (``JointParams`` in params.cuh)."""

    part: ParamBlock

    @property
    def parts(self) -> tuple[ParamBlock, ...]:
        """The block of each problem."""
        return (self.part, self.part)

    @property
    def struct_name(self) -> str:
        """Its C++ type."""
        return f"JointParams<{self.part.struct_name}>"

    @cached_property
    def fields(self) -> tuple[tuple[str, str, int], ...]:
        """(field, kind, count) in order, as in ``second.ldd``."""
        return tuple((f"{which}.{name}", kind, count) for which in _WHICH for name, kind, count in self.part.fields)

    @cached_property
    def packer(self) -> struct.Struct:
        """Packs one value per element, in field order."""
        return struct.Struct("@" + 2 * self.part.packer.format.removeprefix("@"))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.packer.size

    @cached_property
    def offsets(self) -> tuple[tuple[str, int], ...]:
        """(field, byte offset) in order."""
        starts = zip(_WHICH, (0, self.part.size), strict=True)
        return tuple(
            (f"{which}.{name}", start + offset) for which, start in starts for name, offset in self.part.offsets
        )


def _block(struct_name: str, **groups: str) -> ParamBlock:
    fields: list[tuple[str, str, int]] = []
    for kind, names in groups.items():
        for word in names.split():
            name, _, count = word.partition(":")
            fields.append((name, kind, int(count or 1)))
    return ParamBlock(struct_name, tuple(fields))


_GEMM = _block(
    "GemmParams",
    ptr="a b d bias preact total db db_slabs",
    i64="lda ldb ldd ldp bias_stride",
    i32="m n k activation accumulate splits segments_per_split tiles_m tiles_n group",
)

_SINGLE: dict[str, ParamBlock] = {
    "gemm_simt": _GEMM,
    "gemm_mma": _GEMM,
    "gemm_wgmma": _block(
        "GemmWgmmaParams",
        map="map_a map_b map_d map_preact",
        ptr="d bias preact slabs db db_slabs",
        i64="ldd ldp bias_stride",
        i32="m n k activation accumulate segments tiles_m tiles_n group",
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
    "split_planes": _block(
        "SplitPlanesParams",
        ptr="src dst",
        i64="row_stride col_stride pitch",
        i32="rows cols",
    ),
    "strided_copy": _block(
        "StridedCopyParams",
        ptr="src dst",
        i64="shape:16 src_stride:16 dst_stride:16",
        i32="ndim reserved",
    ),
}

# By family. Of a matrix product also the block of two of them in one launch.
PARAM_BLOCKS: dict[str, ParamBlock | JointBlock] = {
    **_SINGLE,
    **{f"joint_{family}": JointBlock(block) for family, block in _SINGLE.items() if family.startswith("gemm_")},
}
