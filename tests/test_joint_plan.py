"""When dgrad and wgrad share a launch, which of them comes first, what stands around it, and how the plan says so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.config import GemmMmaConfig, GemmWgmmaConfig, JointConfig
from gpulinear.cost import Cost, predict_apart, predict_pair
from gpulinear.device import DeviceSpec
from gpulinear.params import PARAM_BLOCKS, JointBlock
from gpulinear.plan import Options, Plan, Step

SPEC = DeviceSpec.preset("sm_90a")


def plan(tokens: int, out: int, inner: int, dtype: str = "bfloat16", *, arch: str = "sm_90a", **settings: Any) -> Plan:
    dy, x, w = (gl.ShapeDtype(shape, dtype) for shape in ((tokens, out), (tokens, inner), (out, inner)))
    return gl.explain("linear_backward", dy, x, w, arch=arch, **{"needs": ("dx", "dw"), **settings})


def joint_step(made: Plan) -> Step:
    (step,) = (step for step in made.steps if step.family.startswith("joint_"))
    return step


def values(step: Step) -> dict[str, Any]:
    names = [name for name, _, count in PARAM_BLOCKS[step.family].fields for _ in range(count)]
    return dict(zip(names, step.values, strict=True))


def cost(blocks: int, each: float, sms: int) -> Cost:
    compute = -(-blocks // sms) * each
    return Cost(compute, compute, 0.0, blocks / sms, 1)


@pytest.mark.parametrize("sms", [1, 4, 7])
def test_the_predicted_load_is_that_of_the_fullest_sm(sms: int) -> None:
    for first, second in itertools.product(range(1, 20), repeat=2):
        loads = [0.0] * sms
        for item in range(first + second):
            loads[item % sms] += 5.0 if item < first else 2.0
        made = predict_pair(cost(first, 5.0, sms), cost(second, 2.0, sms), sms)
        assert made.compute == made.seconds == pytest.approx(max(loads))


def test_passes_of_split_k_are_counted_and_two_launches_are_two() -> None:
    one = replace(cost(4, 1e-6, 8), seconds=4e-6)  # a pass of 3 us behind it
    assert predict_pair(one, one, 8).seconds == pytest.approx(1e-6 + 2 * 3e-6)
    assert predict_apart(one, one) > 2 * one.seconds


@pytest.mark.parametrize(
    ("dtype", "arch", "family"),
    [
        ("bfloat16", "sm_90a", "gemm_wgmma"),
        ("float32", "sm_90a", "gemm_simt"),
        ("float16", "sm_80", "gemm_mma"),
        ("float64", "sm_75", "gemm_simt"),
    ],
)
def test_small_layers_get_one_launch_and_large_ones_two(dtype: str, arch: str, family: str) -> None:
    small = plan(512, 512, 512, dtype, arch=arch)
    if dtype != "float64":  # where 512 fill an SM of two FMAs a clock for many waves
        assert [step.family for step in small.steps] == [f"joint_{family}"]
        assert small.joint is not None and small.joint.refused is None and small.joint.cost is not None
        assert small.joint.cost.seconds < small.joint.apart
    large = plan(8192, 8192, 8192, dtype, arch=arch)
    assert [step.family for step in large.steps][-2:] == [family] * 2
    assert large.joint is not None and "gain" in str(large.joint.refused)


def test_explain_says_what_both_ways_would_take() -> None:
    text = str(plan(512, 512, 512))
    assert "dgrad and wgrad in one launch, 64x64x64:" in text and "us in two (predicted, not measured)" in text
    assert "joint_gemm_wgmma" in text and "first dgrad" in text and "second wgrad" in text
    assert "the gain predicted is less than 5%" in str(plan(8192, 8192, 8192))
    assert "in one launch" not in str(plan(512, 512, 512, needs=("dx",)))


def test_what_runs_longer_comes_first() -> None:
    with gemm.planning(Options(joint=True, splits=1)):
        assert joint_step(plan(4096, 256, 256)).note.startswith("first wgrad")
        assert joint_step(plan(256, 4096, 256)).note.startswith("first dgrad")


@pytest.mark.parametrize("sms", [1, 7, 132])
@pytest.mark.parametrize("tile", ["64x64x64", "128x256x64/c2"])
def test_a_persistent_grid_holds_the_items_of_both(tile: str, sms: int) -> None:
    for shape in ((264, 256, 256), (264, 4096, 512), (2048, 512, 512)):
        with gemm.planning(Options(joint=True, tile=tile, num_sms=sms, splits=1)):
            step = joint_step(plan(*shape))
        given, cluster = values(step), step.config.blocks_per_cluster  # type: ignore[union-attr]
        items = sum(given[f"{part}.tiles_m"] * given[f"{part}.tiles_n"] for part in ("first", "second"))
        assert step.grid == cluster * min(items, max(1, sms // cluster))


def test_other_grids_have_a_block_for_each_tile_and_split() -> None:
    for splits in (1, 3):
        with gemm.planning(Options(joint=True, splits=splits)):
            step = joint_step(plan(3000, 3000, 136, "float32"))
        given = values(step)
        blocks = [given[f"{part}.tiles_m"] * given[f"{part}.tiles_n"] for part in ("first", "second")]
        assert step.grid == splits * sum(blocks) and given["first.splits"] == given["second.splits"] == splits


def test_copies_come_before_the_launch_and_sums_after_it() -> None:
    dy, x, w = (gl.ShapeDtype(shape, "bfloat16") for shape in ((201, 72), (201, 40), (72, 40)))
    view = {"dy": gl.ShapeDtype((201, 72), "bfloat16"), "x": x, "weight": w}
    with gemm.planning(Options(family="gemm_wgmma", joint=True, segment=64, splits=4)):
        odd = gl.explain(
            "linear_backward", gl.ShapeDtype((201, 71), "bfloat16"), x, gl.ShapeDtype((71, 40), "bfloat16")
        )
        even = gl.explain("linear_backward", **view)
    families = [step.family for step in odd.steps]
    at = families.index("joint_gemm_wgmma")
    assert "strided_copy" in families[:at] and set(families[at + 1 :]) == {"ordered_reduce"} and dy.shape == (201, 72)
    assert [step.family for step in even.steps].count("joint_gemm_wgmma") == 1


def test_a_joint_launch_can_be_asked_for_and_refused() -> None:
    with gemm.planning(Options(joint=False)):
        apart = plan(512, 512, 512)
        assert [step.family for step in apart.steps] == ["gemm_wgmma"] * 2 and apart.joint is None
    with gemm.planning(Options(joint=True)):
        assert joint_step(plan(8192, 8192, 8192)) is not None
        assert plan(8192, 8192, 8192, needs=("dw",)).joint is None
    # A tile of few tokens is for a K-major A, which wgrad's is not.
    with gemm.planning(Options(joint=True, tile="16x64x32/16x32")), pytest.raises(gl.BackendError, match="few tokens"):
        plan(512, 512, 512, "float16", arch="sm_80")


def variant(family: type[GemmMmaConfig] | type[GemmWgmmaConfig], tile: str, op: str = "dgrad") -> Any:
    with gemm.planning(Options(family=family.family, tile=tile)):
        operands = [gl.ShapeDtype((256, 256), "bfloat16")] * 2
        return gl.explain(op, *operands, arch="sm_90a").steps[0].config


def test_which_variants_can_share_a_launch() -> None:
    mma, wgmma = GemmMmaConfig, GemmWgmmaConfig
    large, small = variant(mma, "128x256x32/64x64"), variant(mma, "64x64x32/32x32")
    assert "has 256" in str(JointConfig.of(large, small).supports(SPEC))
    both = JointConfig.of(variant(mma, "128x128x32/64x64"), small)
    assert both.supports(SPEC) is None and both.tile == "128x128x32/64x64 and 64x64x32/32x32"
    assert both.smem_bytes == max(both.first.smem_bytes, both.second.smem_bytes)
    ring = JointConfig.of(variant(wgmma, "128x128x64"), variant(wgmma, "128x192x64"))
    assert "one ring" in str(ring.supports(SPEC))
    assert "not of" in str(JointConfig(large, variant(wgmma, "128x128x64")).supports(SPEC))
    cluster = JointConfig.of(variant(wgmma, "128x256x64"), variant(wgmma, "128x256x64/c2"))
    assert "one ring" in str(cluster.supports(SPEC))
    huge = JointConfig.of(replace(large, stages=16), large)
    assert "shared memory" in str(huge.supports(SPEC))


def test_stages_are_those_that_fit_beside_the_totals_of_either() -> None:
    with gemm.planning(Options(joint=True, tile="128x256x64", splits=1)):
        config = joint_step(plan(256, 8192, 256)).config
    assert isinstance(config, JointConfig)
    assert (config.first.running_total, config.second.running_total) == (True, False)  # type: ignore[attr-defined]
    assert config.first.stages == config.second.stages == 3 and config.smem_bytes <= SPEC.smem_per_block_optin


@pytest.mark.parametrize("family", ["gemm_simt", "gemm_wgmma"])
def test_a_joint_block_is_the_block_twice(family: str) -> None:
    block, single = PARAM_BLOCKS[f"joint_{family}"], PARAM_BLOCKS[family]
    assert isinstance(block, JointBlock) and block.size == 2 * single.size
    assert len(block.fields) == 2 * len(single.fields)
    assert dict(block.offsets)["second.m"] == single.size + dict(single.offsets)["m"]
