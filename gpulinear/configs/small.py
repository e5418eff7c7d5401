"""The variants of the small kernels: column sums, activation gradients, ordered reductions and copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..problem import accumulator_dtype
from .base import CPP_TYPE, SEGMENT


@dataclass(frozen=True)
class ColumnSumConfig:
    """One variant of ``column_sum``."""

    family: ClassVar[str] = "column_sum"
    dtype: str
    out_dtype: str
    segment: int = SEGMENT["column_sum"]
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.out_dtype],
            "kSegment": str(self.segment),
        }


@dataclass(frozen=True)
class ActGradConfig:
    """One variant of ``act_grad``."""

    family: ClassVar[str] = "act_grad"
    dtype: str
    preact_dtype: str
    db_dtype: str
    segment: int = SEGMENT["column_sum"]
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Preact": CPP_TYPE[self.preact_dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.db_dtype],
            "kSegment": str(self.segment),
        }


@dataclass(frozen=True)
class OrderedReduceConfig:
    """One variant of ``ordered_reduce``."""

    family: ClassVar[str] = "ordered_reduce"
    acc_dtype: str
    out_dtype: str
    bias_dtype: str
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "Acc": CPP_TYPE[self.acc_dtype],
            "Out": CPP_TYPE[self.out_dtype],
            "Bias": CPP_TYPE[self.bias_dtype],
        }


@dataclass(frozen=True)
class StridedCopyConfig:
    """One variant of ``strided_copy``: the element size in bytes."""

    family: ClassVar[str] = "strided_copy"
    itemsize: int
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {"kItemBytes": str(self.itemsize)}
