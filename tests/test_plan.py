"""Plans: every legal variant covers the output once, splits follow segments, and no device is needed."""

from __future__ import annotations

import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.config import SEGMENT, WGMMA_TILES, GemmWgmmaConfig
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
        if isinstance(config, GemmWgmmaConfig):  # the next test's
            assert (arch, dtype) == ("sm_90a", "float16")
            continue
        assert value(step, "tiles_m") == -(-m // config.block_m) and value(step, "tiles_n") == -(-n // config.block_n)
        splits, per_split = value(step, "splits"), value(step, "segments_per_split")
        segments = -(-k // config.segment)
        assert (splits - 1) * per_split < segments <= splits * per_split  # type: ignore[operator]
        assert step.grid == value(step, "tiles_m") * value(step, "tiles_n") * splits  # type: ignore[operator]


@pytest.mark.parametrize("tile", [tile.name for tile in WGMMA_TILES])
@pytest.mark.parametrize("sms", [1, 7, 132])
def test_a_persistent_grid_is_as_large_as_its_work_at_most(tile: str, sms: int) -> None:
    for m, n, k, splits in ((129, 264, 64, 1), (4096, 4096, 8192, 1), (4096, 512, 20480, 5)):
        with gemm.planning(Options(tile=tile, num_sms=sms, splits=splits, workspace_limit=1 << 40)):
            step = plan(m, n, k, arch="sm_90a", dtype="float16").steps[0]
        config = step.config
        assert isinstance(config, GemmWgmmaConfig) and config.running_total == (k > config.segment and splits == 1)
        rows, cols = (n, m) if config.swapped else (m, n)
        across, down = -(-cols // config.cols), -(-rows // (config.rows * config.cluster))
        assert (value(step, "tiles_m"), value(step, "tiles_n")) == (down, across)
        items = down * across * (splits if splits > 1 else 1)
        assert step.grid == config.cluster * min(items, max(1, sms // config.cluster))


def test_the_family_is_the_weights_and_not_the_calls() -> None:
    """gemm_wgmma where the weight's rows can always be addressed by TMA; never by tokens, views or out (of linear)."""

    def family(op: str, tokens: int, out: int, inner: int, arch: str = "sm_90a", dtype: str = "float16") -> str:
        shapes = {"linear": ((tokens, inner), (out, inner)), "dgrad": ((tokens, out), (out, inner))}
        shapes["wgrad"] = ((tokens, out), (tokens, inner))
        return gl.explain(op, *(gl.ShapeDtype(shape, dtype) for shape in shapes[op]), arch=arch).steps[-1].family

    for op in ("linear", "dgrad", "wgrad"):
        assert {family(op, tokens, 24, 40) for tokens in (1, 7, 8, 1000)} == {"gemm_wgmma"}
        assert family(op, 8, 24, 44) == "gemm_mma" and family(op, 8, 24, 40, "sm_80") == "gemm_mma"
        assert family(op, 8, 24, 40, dtype="float32") == "gemm_simt"
    assert family("linear", 8, 23, 40) == "gemm_wgmma"
    assert family("dgrad", 8, 23, 40) == family("wgrad", 8, 23, 40) == "gemm_mma"


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
    text = str(plan(512, 512, 512, arch="sm_75", dtype="bfloat16"))
    assert "S=1024" in text and "would not fit the registers" in text and "not measured" in text


def test_dimensions_beyond_32_bits_are_refused() -> None:
    with pytest.raises(gl.ShapeError, match="2147483647"):
        plan(2**31, 8, 8)
