"""Fake candidates on a fake GPU, for the tests of tuning: every time is made up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import gpulinear as gl
from gpulinear import cli_tune, gemm
from gpulinear.device import DeviceSpec
from gpulinear.measure.candidates import (
    Candidate,
    candidates_of,
)
from gpulinear.measure.case import Case
from gpulinear.measure.operands import OperandSet
from gpulinear.measure.stopwatch import Call, Rules
from gpulinear.measure.tuner import Result, Unmeasured, tune_case
from gpulinear.tuning import table

from .fakes import FakeDevice

SPEC = DeviceSpec.preset("sm_90a")
CASE = Case("linear", "float32", 48, 40, 4096)
RULES = Rules(budget_s=0.2, warm_s=0.01)
PROVENANCE: dict[str, Any] = {
    "gpu": "a fake GPU",
    "arch": "sm_90a",
    "sms": SPEC.sm_count,
    "driver": "13.0",
    "cuda": "13.0",
    "nvrtc": "13.0",
    "cupy": "14.2",
    "numpy": "2.1",
    "python": "3.12",
    "gpulinear": "0.1.0",
    "commit": "0" * 40,
    "dirty": False,
    "time": "2026-01-02T03:04:05+00:00",
}


@pytest.fixture(autouse=True)
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "shipped_path", lambda arch: tmp_path / f"{arch}.json")
    gemm.reload_tuning()
    yield
    gemm.reload_tuning()


@dataclass
class Lab:
    """Prepares fake candidates on a fake GPU. The numbers are microseconds of its made-up clock.

    times: by the candidate's place in the list, or one for all others.  spread: relative, alternating.
    """

    device: FakeDevice = field(default_factory=FakeDevice)
    times: dict[int, float] = field(default_factory=dict)
    usual: float = 50.0
    spread: float = 0.0
    wrong: set[int] = field(default_factory=set)
    idle: set[int] = field(default_factory=set)  # write nothing
    uncompilable: set[int] = field(default_factory=set)
    fails_at: dict[int, int] = field(default_factory=dict)  # the number of the call that raises
    on_call: Callable[[], None] = lambda: None
    calls: dict[int, int] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)

    def prepare(self, case: Case, candidate: Candidate, sets: Sequence[OperandSet]) -> Call:
        place = candidates_of(case, SPEC).index(candidate)
        self.threads.add(threading.get_ident())
        if place in self.uncompilable:
            raise gl.CompileError("it does not compile")

        def call(index: int) -> None:
            self.on_call()
            count = self.calls[place] = self.calls.get(place, 0) + 1
            if self.fails_at.get(place) == count:
                raise ValueError("it fails")
            if place not in self.idle:
                for array in sets[index].outputs.values():
                    array[...] = 1.0
                    if place in self.wrong:
                        array.reshape(-1)[-1:].view(f"i{array.itemsize}")[...] ^= 1
            wiggle = 1 + self.spread * (-1) ** (count // 7)
            self.device.work(1.0, self.times.get(place, self.usual) * wiggle)

        return call

    def tune(self, case: Case = CASE) -> Result | Unmeasured:
        return tune_case(case, self.device, SPEC, self.prepare, RULES)

    def result(self, case: Case = CASE) -> Result:
        found = self.tune(case)
        assert isinstance(found, Result), found
        return found


LISTED = candidates_of(CASE, SPEC)


def bench(lab: Lab) -> cli_tune.Bench:
    return cli_tune.Bench(lab.device, SPEC, PROVENANCE, lab.prepare)
