"""gemm_wgmma compiles without spills and without serialised wgmmas, in the registers that were planned, HGMMA after HGMMA."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace

import pytest

from gpulinear.compile import Artifact, compile_kernel
from gpulinear.config import SEGMENT, SPLITS, WGMMA_TILES, GemmWgmmaConfig, candidates
from gpulinear.configs.wgmma import PLANE_TILES, WgmmaTile
from gpulinear.device import DeviceSpec
from gpulinear.measure.sass import disassemble, hot_loop
from gpulinear.problem import Gemm, Matrix
from gpulinear.source import entry_name, render

from .test_kernels_compile import check_modelled

pytestmark = pytest.mark.usefixtures("compiled")

SPEC = DeviceSpec.preset("sm_90a")
MAJORS = {"NT": (True, True), "NN": (True, False), "TN": (False, False), "TT": (False, True)}
EVERYTHING = os.environ.get("GPULINEAR_TEST_ALL_VARIANTS") == "1"


def variant(tile: WgmmaTile, layout: str, *, segments: int, out_dtype: str = "bfloat16") -> GemmWgmmaConfig | None:
    """The variant as it is launched; None where the tile has no such one."""
    k_major_a, k_major_b = MAJORS[layout]
    config = GemmWgmmaConfig(
        dtype="bfloat16",
        out_dtype=out_dtype,
        bias_dtype="bfloat16",
        k_major_a=k_major_a,
        k_major_b=k_major_b,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_k=64,
        stages=1,
        vec_a=16,
        vec_b=16,
        cluster=tile.cluster,
        running_total=False,
        tma_store=tile.block_n % 64 == 0 and not tile.swapped,
        swapped=tile.swapped,
    )
    if not config.majors[1] and config.cols % 64:
        return None
    return config.for_work(segments, 1, SPEC)


def compiled(config: GemmWgmmaConfig) -> Artifact:
    artifact = compile_kernel(render(config), entry=entry_name(config.family), arch="sm_90a")
    used = artifact.resources
    assert (used.spill_stores, used.spill_loads, used.stack_frame) == (0, 0, 0), (config, used)
    assert used.registers <= config.registers, (config, used)
    # setmaxnreg deals out what the launch takes: with fewer, the consumers would wait for registers for ever.
    assert config.consumers == 1 or used.registers == config.registers, (config, used)
    # C7510 and its neighbours: wgmma serialised; C7508: setmaxnreg ignored.
    assert not re.findall(r"\(C75[0-9]{2}\).*", artifact.log), artifact.log
    return artifact


# The tile with the most registers in each layout, and every tile in one; all of them where everything is asked for.
CHOSEN = [
    (tile, layout, segments, out_dtype)
    for index, tile in enumerate(WGMMA_TILES)
    for layout, segments, out_dtype in itertools.product(MAJORS, (1, 2), ("bfloat16", "float32"))
    if EVERYTHING
    or ((layout, segments) == (("NT", "NN", "TN")[index % 3], 2) and out_dtype == ("bfloat16", "float32")[index % 2])
    or (tile.name == "128x256x64/c2" and segments == 2 and out_dtype == "bfloat16")
]


@pytest.mark.parametrize(
    ("tile", "layout", "segments", "out_dtype"), CHOSEN, ids=lambda v: v.name if isinstance(v, WgmmaTile) else str(v)
)
def test_the_main_loop_is_wgmma_after_wgmma(tile: WgmmaTile, layout: str, segments: int, out_dtype: str) -> None:
    config = variant(tile, layout, segments=segments, out_dtype=out_dtype)
    if config is None:
        config = variant(tile, "NT", segments=segments, out_dtype=out_dtype)
    assert config is not None and config.running_total == (segments > 1) and config.stages >= 3
    artifact = compiled(config)
    check_modelled(artifact.ptx, config.family)
    assert f"wgmma.mma_async.sync.aligned.m64n{config.cols}k16.f32.bf16.bf16" in artifact.ptx
    code = disassemble(artifact.cubin_path)
    loop = hot_loop(code, "HGMMA")
    assert loop is not None
    count = loop.mix["HGMMA"]
    assert count % 4 == 0, "a k-tile is four of them"
    # Accumulators that moved, were loaded or touched would stand out: there are tens of them.
    assert loop.instructions <= 16 * count, loop.mix
    assert not {name.partition(".")[0] for name in loop.mix} & {
        "LDL",
        "STL",
        "LDS",
        "STS",
        "LDG",
        "STG",
        "FADD",
        "FMUL",
    }, loop.mix
    registers = {int(number) for number in re.findall(r"\bR([0-9]+)\b", code)}
    assert max(registers) < (232 if config.consumers == 2 else 255)


def over_planes(tile: WgmmaTile, precision: str, layout: str, segments: int) -> GemmWgmmaConfig:
    """The variant of a tile over the planes of a precision, as it is launched."""
    dtype, (k_major_a, k_major_b) = SPLITS[precision].dtype, MAJORS[layout]
    a = Matrix("a", 256, 256, *((256, 1) if k_major_a else (1, 256)), dtype)
    b = Matrix("b", 256, 256, *((1, 256) if k_major_b else (256, 1)), dtype)
    gemm = Gemm("linear", a, b, Matrix("d", 256, 256, 256, 1, "float32"), precision)
    for config, refused in candidates(gemm, SPEC):
        if refused is None and config.tile == tile.name_at(config.block_k):
            assert isinstance(config, GemmWgmmaConfig)
            return config.for_work(segments, 1, SPEC)
    raise AssertionError(f"no {tile.name} over {precision} {layout}")


# Every tile in one layout, those with the most registers in each; of tf32 what has the most, everything where it is asked for.
CHOSEN_PLANES = [
    (tile, precision, layout, segments)
    for precision, tiles in (("bf16x6", PLANE_TILES), ("tf32x3", PLANE_TILES), ("tf32", WGMMA_TILES))
    for index, tile in enumerate(tiles)
    for layout, segments in itertools.product(MAJORS if precision == "bf16x6" else ("NT",), (1, 2))
    if not (layout in ("TN", "TT", "NN") and tile.swapped)
    if EVERYTHING
    or (segments == 2 and index < {"bf16x6": 6, "tf32x3": 1, "tf32": 3}[precision] and (layout == "NT" or index == 0))
]


@pytest.mark.parametrize(
    ("tile", "precision", "layout", "segments"),
    CHOSEN_PLANES,
    ids=lambda v: v.name if isinstance(v, WgmmaTile) else str(v),
)
def test_over_planes_only_the_promotion_stands_between_the_wgmmas(
    tile: WgmmaTile, precision: str, layout: str, segments: int
) -> None:
    config = over_planes(tile, precision, layout, segments)
    assert config.running_total == (segments > 1) and (config.totals_in_smem == 0 or config.planes == 1)
    artifact = compiled(config)
    check_modelled(artifact.ptx, config.family)
    kind = "k16.f32.bf16.bf16" if precision == "bf16x6" else "k8.f32.tf32.tf32"
    assert f"wgmma.mma_async.sync.aligned.m64n{config.cols}{kind}" in artifact.ptx
    code = disassemble(artifact.cubin_path)
    loop = hot_loop(code, "HGMMA")
    assert loop is not None
    count = loop.mix["HGMMA"]
    assert count % (4 * config.pairs) == 0, "a k-tile is four steps of all pairs"
    # A chain of one k-tile is promoted in the loop, once; longer ones behind it.
    promoted = config.cols // 2 if config.promote == config.block_k else 0
    assert loop.mix["FADD"] == promoted
    assert loop.instructions <= 16 * count + promoted, loop.mix
    assert not {name.partition(".")[0] for name in loop.mix} & {"LDL", "STL", "LDS", "STS", "LDG", "STG", "FMUL"}, (
        loop.mix
    )
    assert max(int(number) for number in re.findall(r"\bR([0-9]+)\b", code)) < (232 if config.consumers == 2 else 255)


def test_registers_go_from_the_producer_to_the_consumers() -> None:
    tile = next(tile for tile in WGMMA_TILES if tile.name == "128x128x64")
    config = variant(tile, "NT", segments=1)
    assert config is not None
    code = disassemble(compiled(config).cubin_path)
    assert "USETMAXREG.DEALLOC.CTAPOOL 0x28" in code and re.search(r"USETMAXREG.TRY_ALLOC.CTAPOOL UP[0-9], 0xe8", code)
    assert 128 * 40 + 256 * 232 == 384 * 168 and config.registers >= 168


def test_warps_that_sum_db_have_their_registers() -> None:
    """More of them for the producer's warpgroup: rows of dy are on their way while others are added."""
    tile = next(tile for tile in WGMMA_TILES if tile.name == "128x256x64")
    config = variant(tile, "TN", segments=2)
    assert config is not None
    code = disassemble(compiled(replace(config, db_dtype="float32")).cubin_path)
    assert "USETMAXREG.DEALLOC.CTAPOOL 0x38" in code and re.search(r"USETMAXREG.TRY_ALLOC.CTAPOOL UP[0-9], 0xe0", code)
    assert 128 * 56 + 256 * 224 == 384 * 168
    assert max(int(number) for number in re.findall(r"\bR([0-9]+)\b", code)) < 224


def test_more_stages_where_there_is_room_and_all_of_it_is_used() -> None:
    for tile, segments in itertools.product(WGMMA_TILES, (1, 2)):
        config = variant(tile, "NT", segments=segments)
        assert config is not None and config.stages >= 3
        assert config.smem_bytes <= SPEC.smem_per_block_optin
        longer = replace(config, stages=config.stages + 1)
        assert longer.smem_bytes > SPEC.smem_per_block_optin or config.stages == 12
        assert SEGMENT["gemm_wgmma"] % config.block_k == 0
