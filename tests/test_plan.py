"""Plans: every legal variant covers the output once, splits follow segments, and no device is needed."""

from __future__ import annotations

import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.config import SEGMENT
from gpulinear.device import ARCHS
from gpulinear.params import PARAM_BLOCKS
from gpulinear.plan import Options, Plan, Step

S = SEGMENT["gemm_simt"]


def plan(tokens: int, out: int, inner: int, *, arch: str = "sm_90a", dtype: str = "float32") -> Plan:
    x, w = gl.ShapeDtype((tokens, inner), dtype), gl.ShapeDtype((out, inner), dtype)
    return gl.explain("linear", x, w, arch=arch)


def value(step: Step, field: str) -> object:
    position = 0
    for name, _, count in PARAM_BLOCKS[step.family].fields:
        if name == field:
            return step.values[position]
        position += count
    raise KeyError(field)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (127, 129, 64), (4096, 4096, 4096), (1, 8192, 8192), (64, 64, 500_000)]
)
def test_the_grid_covers_the_output_and_k_once(arch: str, m: int, n: int, k: int) -> None:
    for dtype in ("float32", "float64", "float16"):
        step = plan(m, n, k, arch=arch, dtype=dtype).steps[0]
        config = step.config
        assert value(step, "tiles_m") == -(-m // config.block_m) and value(step, "tiles_n") == -(-n // config.block_n)
        splits, per_split = value(step, "splits"), value(step, "segments_per_split")
        segments = -(-k // config.segment)
        assert (splits - 1) * per_split < segments <= splits * per_split  # type: ignore[operator]
        assert step.grid == value(step, "tiles_m") * value(step, "tiles_n") * splits  # type: ignore[operator]


def test_forced_tiles_and_splits_are_taken_and_bounded_by_segments() -> None:
    for tile in ("128x128x16/8x8", "32x32x16/4x4"):
        with gemm.planning(Options(tile=tile, splits=3)):
            step = plan(64, 64, 5 * S).steps[0]
        assert step.config.tile == tile and value(step, "splits") == 3
    with gemm.planning(Options(splits=64)):
        assert value(plan(64, 64, 2 * S).steps[0], "splits") == 2
    with gemm.planning(Options(tile="1x1")), pytest.raises(gl.BackendError, match="only 1x1"):
        plan(64, 64, 64)


def test_limits_are_kept_and_segments_never_change() -> None:
    with gl.options(workspace_limit=0):
        limited = plan(64, 64, 100 * S)
    assert value(limited.steps[0], "splits") == 1
    assert {step.config.segment for step in limited.steps if step.family == "gemm_simt"} == {S}
    with gl.options(num_sms=1):
        assert plan(64, 64, 4 * S).steps


def test_short_k_needs_no_workspace() -> None:
    assert plan(512, 512, S).workspace_bytes == 0
    assert len(plan(512, 512, S).steps) == 1


def test_small_devices_get_a_legal_plan() -> None:
    for arch in ARCHS:
        step = plan(8192, 8192, 8192, arch=arch).steps[0]
        assert step.smem_bytes <= {"sm_75": 64, "sm_86": 99, "sm_89": 99, "sm_120": 99}.get(arch, 163) * 1024


def test_a_plan_says_what_is_refused_and_why() -> None:
    text = str(plan(512, 512, 512, arch="sm_75", dtype="float16"))
    assert "S=1024" in text and "would not fit the registers" in text and "not measured" in text


def test_dimensions_beyond_32_bits_are_refused() -> None:
    with pytest.raises(gl.ShapeError, match="2147483647"):
        plan(2**31, 8, 8)
