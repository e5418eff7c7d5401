"""Runs PTX on NumPy memory and checks it: bounds, initialisation, races, barriers. NumPy and stdlib only.

It knows nothing of GEMM. ``run`` launches a kernel; docs/emulator.md says what is modelled and what is not.
"""

from gpulinear.emulator.errors import (
    BudgetError,
    DeadlockError,
    EmulatorError,
    LaunchError,
    NotModelledError,
    ParseError,
    SanitizerError,
)
from gpulinear.emulator.global_memory import GlobalMemory
from gpulinear.emulator.launch import Result, run
from gpulinear.emulator.report import Finding, Report

__all__ = [
    "BudgetError",
    "DeadlockError",
    "EmulatorError",
    "Finding",
    "GlobalMemory",
    "LaunchError",
    "NotModelledError",
    "ParseError",
    "Report",
    "Result",
    "SanitizerError",
    "run",
]
