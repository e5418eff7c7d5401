"""Host time of planning a call that was not seen before: argument checks, candidates, cost model, parameter block."""

from __future__ import annotations

from typing import Any

import pytest

import gpulinear as gl
from gpulinear.planner import make_plan

TOKENS, OUT, IN = 4096, 11008, 4096


def operands(op: str, dtype: str) -> tuple[gl.ShapeDtype, ...]:
    x, w, dy = (gl.ShapeDtype(shape, dtype) for shape in ((TOKENS, IN), (OUT, IN), (TOKENS, OUT)))
    return {"linear": (x, w), "dgrad": (dy, w), "wgrad": (dy, x), "linear_backward": (dy, x, w)}[op]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad", "linear_backward"])
def test_cold_plan(benchmark: Any, op: str, dtype: str) -> None:
    benchmark.group = "plan, cache cleared"
    given = operands(op, dtype)
    plan = benchmark.pedantic(
        gl.explain, (op, *given), {"arch": "sm_90a"}, setup=make_plan.cache_clear, rounds=50, warmup_rounds=2
    )
    assert plan.steps


def test_plan_from_the_cache(benchmark: Any) -> None:
    benchmark.group = "plan, cached"
    assert benchmark(gl.explain, "linear", *operands("linear", "float32"), arch="sm_90a").steps
