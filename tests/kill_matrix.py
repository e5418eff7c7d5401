"""Bugs put into copies of the kernels on purpose, and what notices them: the machinery of the tests/test_*_mutants.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
import gpulinear.compile as compiler
from gpulinear import testing
from gpulinear.emulator import BudgetError, DeadlockError
from gpulinear.errors import KernelFault

Array = np.ndarray[Any, Any]
Pairs = list[tuple[Array, Array]]
Probe = Callable[[], Pairs]  # (what the kernels gave, what they must give)


@dataclass(frozen=True)
class Mutant:
    """``old``, which stands once in ``file``, becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    probe: Probe


def sampled(mutants: Sequence[Mutant]) -> list[Any]:
    """The mutants as parameters of a test. Each needs a kernel compiled for it alone: of three, two are left to
    GPULINEAR_TEST_ALL_VARIANTS=1 (tests/test_mutant_texts.py holds them all to the text of the kernels)."""
    left = pytest.mark.skip(reason="two mutants of three wait for GPULINEAR_TEST_ALL_VARIANTS=1")
    every = os.environ.get("GPULINEAR_TEST_ALL_VARIANTS") == "1"
    return [
        pytest.param(mutant, id=mutant.name, marks=() if every or index % 3 == 0 else left)
        for index, mutant in enumerate(mutants)
    ]


def verdict(probe: Probe) -> str | None:
    """How a probe fails: the kind of the first finding, the error, "wrong result"; None if it passes."""
    try:
        for got, want in probe():
            testing.assert_same_bits(got, want)
    except KernelFault as fault:
        lines = [line for line in str(fault).splitlines()[1:] if line and not line.startswith(" ")]
        return lines[0].partition(":")[0] if lines else "unwritten output"
    except (DeadlockError, BudgetError) as error:
        return type(error).__name__
    except AssertionError:
        return "wrong result"
    return None


def first_verdict(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, schedules: Sequence[str] = ("lockstep",), arch: str = "sm_90a"
) -> str | None:
    """The verdict under the first schedule that has one."""
    for schedule in schedules:
        monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
        with gl.host_backend("emulator", arch=arch):
            how = verdict(probe)
        if how is not None:
            return how if schedule == "lockstep" else f"{how} under {schedule}"
    return None


def caught_by(
    mutant: Mutant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedules: Sequence[str] = ("lockstep",),
    arch: str = "sm_90a",
) -> str:
    """What catches a mutant: its probe is run on a copy of the kernels that holds it."""
    kernels = tmp_path / "kernels"
    shutil.copytree(compiler.kernels_dir(), kernels)
    path = kernels / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new))
    monkeypatch.setattr(compiler, "kernels_dir", lambda: kernels)
    how = first_verdict(mutant.probe, monkeypatch, schedules, arch)
    assert how is not None, "the mutant survived"
    return how


def probes_of(mutants: Sequence[Mutant]) -> list[Probe]:
    """Each probe once, by name."""
    return sorted({mutant.probe for mutant in mutants}, key=lambda probe: probe.__name__)


def print_matrix(title: str, caught: dict[str, str]) -> None:
    """What caught each mutant; -s shows it."""
    width = max((len(name) for name in caught), default=0)
    print(f"\n{title}: caught by")
    for name, how in caught.items():
        print(f"  {name:<{width}}  {how}")
