"""What tests and the bench share: a-priori bounds, comparisons, operands and lists of problems.

Needs NumPy and the reference only; nothing here runs a kernel.
"""

from __future__ import annotations

from .bounds import (
    REPRESENTATION,
    Summation,
    act_grad_bound,
    column_sum_bound,
    fma,
    gauge_bound,
    gemm_bound,
    magnitude,
    operand_error,
    tensor_core,
)
from .compare import Worst, assert_same_bits, assert_within, bit_pattern, error_ratio, worst
from .operands import (
    FILLS,
    VIEWS,
    Poisoned,
    accumulator_probe,
    broadcast,
    cancelling,
    integers,
    normal,
    poisoned,
    precision_probe,
    sprinkled,
    subnormals,
    uniform,
    wide,
)
from .problems import Case, edge_sizes, enumerate_problems

__all__ = [
    "FILLS",
    "REPRESENTATION",
    "VIEWS",
    "Case",
    "Poisoned",
    "Summation",
    "Worst",
    "accumulator_probe",
    "act_grad_bound",
    "assert_same_bits",
    "assert_within",
    "bit_pattern",
    "broadcast",
    "cancelling",
    "column_sum_bound",
    "edge_sizes",
    "enumerate_problems",
    "error_ratio",
    "fma",
    "gauge_bound",
    "gemm_bound",
    "integers",
    "magnitude",
    "normal",
    "operand_error",
    "poisoned",
    "precision_probe",
    "sprinkled",
    "subnormals",
    "tensor_core",
    "uniform",
    "wide",
    "worst",
]
