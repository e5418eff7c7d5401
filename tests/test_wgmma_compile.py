"""gemm_wgmma compiles without spills and without serialised wgmmas, in the registers that were planned, HGMMA after HGMMA."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace

import pytest

from gpulinear.compile import Artifact, compile_kernel
from gpulinear.config import SEGMENT, WGMMA_TILES, GemmWgmmaConfig
from gpulinear.configs.wgmma import WgmmaTile
from gpulinear.device import DeviceSpec
from gpulinear.measure.sass import disassemble, hot_loop
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
