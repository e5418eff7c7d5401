"""A made-up tuning table, and what the tests of tables do with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.config import NUMERICS_VERSION, SEGMENT
from gpulinear.device import DeviceSpec
from gpulinear.plan import Plan
from gpulinear.tuning import table
from gpulinear.tuning.entry import Entry, Table

ARCH = "sm_90a"
SPEC = DeviceSpec.preset(ARCH)
S = SEGMENT["gemm_simt"]

LINEAR = Entry(
    op="linear",
    layout="NT",
    dtype="float32",
    out_dtype="float32",
    precision="ieee",
    m=512,
    n=384,
    k=4096,
    vec_a=16,
    vec_b=16,
    family="gemm_simt",
    tile="32x32x16/4x4",
    splits=4,
    measured_us=1234567.0,  # made up, as every number in this file
    predicted_us=7654321.0,
    gpu="a GPU of the tests",
    sms=SPEC.sm_count,
    driver="1.2",
    commit="0" * 40,
    time="2001-02-03T04:05:06+00:00",
)
GOOD = Table(ARCH, NUMERICS_VERSION, (LINEAR,))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No table but those that a test writes."""
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(table, "shipped_path", lambda arch: tmp_path / "shipped" / f"{arch}.json")
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "cache"))
    gemm.reload_tuning()
    yield
    gemm.reload_tuning()


def user_file(arch: str = ARCH) -> Path:
    path = table.user_path(arch)
    assert path is not None
    path.parent.mkdir(exist_ok=True)
    return path


def put(*entries: Entry, **head: Any) -> Path:
    """Write the user's table and make the planner read it."""
    path = user_file()
    path.write_text(replace(GOOD, entries=entries, **head).to_json())
    gemm.reload_tuning()
    return path


def plan(entry: Entry, tokens: int | None = None, arch: str = ARCH, **kwargs: Any) -> Plan:
    """The plan of the call that an entry is about, possibly with other tokens."""
    t = tokens or entry.tokens
    sizes = {
        "linear": ((t, entry.k), (entry.n, entry.k)),
        "dgrad": ((t, entry.k), (entry.k, entry.n)),
        "wgrad": ((t, entry.m), (t, entry.n)),
    }[entry.op]
    out_dtype = None if entry.out_dtype == entry.dtype else entry.out_dtype
    arrays = [gl.ShapeDtype(size, entry.dtype) for size in sizes]
    return gl.explain(entry.op, *arrays, arch=arch, out_dtype=out_dtype, precision=entry.precision, **kwargs)


def taken(made: Plan) -> tuple[str, int]:
    """Tile and splits of a plan's only GEMM."""
    steps = [step for step in made.steps if step.family.startswith("gemm")]
    assert len(steps) == 1
    note = steps[0].note
    return steps[0].config.tile, int(note[: note.index(" split(s)")].split()[-1])


def tuned(made: Plan) -> bool:
    return any(choice.tuned for choice in made.choices)
