"""What stops an emulated launch: each error carries the findings that were made before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpulinear.emulator.report import Finding


class EmulatorError(Exception):
    """Base of all errors of the emulator; ``findings`` holds what the sanitizers saw before."""

    findings: tuple[Finding, ...]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.findings = ()


class ParseError(EmulatorError):
    """The text is not PTX that this parser understands."""


class NotModelledError(EmulatorError):
    """PTX that the emulator does not model; raised when the module is loaded."""


class LaunchError(EmulatorError):
    """The launch itself is wrong: unknown entry, parameter widths, block size, shared memory."""


class DeadlockError(EmulatorError):
    """Nothing can run and nothing is in flight; the message says who waits for what, and where."""


class BudgetError(EmulatorError):
    """The launch ran past its instruction budget: most likely a loop that waits for nothing."""


class SanitizerError(EmulatorError):
    """Raised by ``Report.raise_if_any``: the launch ended, but the sanitizers made findings."""
