"""Every kernel compiles for every architecture, within its registers, without spills, with the promised instructions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpulinear.compile import compile_kernel
from gpulinear.config import (
    ActGradConfig,
    ColumnSumConfig,
    Config,
    GemmConfig,
    OrderedReduceConfig,
    StridedCopyConfig,
    candidates,
)
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.emulator import isa
from gpulinear.emulator.parser import parse
from gpulinear.measure.sass import disassemble, hot_loop
from gpulinear.problem import ITEMSIZE, Gemm, Matrix
from gpulinear.source import entry_name, render

pytestmark = pytest.mark.usefixtures("compiled")

LAYOUTS = {"NT": (True, True), "NN": (True, False), "TN": (False, False)}
# All variants of all archs take minutes; the default covers every tile, layout, dtype and width on the arch where the
# planner is used most, and every arch with its largest tiles.
EVERYTHING = os.environ.get("GPULINEAR_TEST_ALL_VARIANTS") == "1"


def make_gemm(dtype: str, layout: str, align: int, out_dtype: str | None = None) -> Gemm:
    size = 256
    k_major_a, k_major_b = {**LAYOUTS, "TT": (False, True)}[layout]
    a = Matrix("a", size, size, *((size, 1) if k_major_a else (1, size)), dtype, align)
    b = Matrix("b", size, size, *((1, size) if k_major_b else (size, 1)), dtype, align)
    d = Matrix("d", size, size, size, 1, out_dtype or dtype, align)
    return Gemm("linear", a, b, d, "ieee" if dtype == "float32" else None)


def legal(gemm: Gemm, arch: str, family: str = "gemm_simt") -> list[GemmConfig]:
    return [config for config, refused in candidates(gemm, DeviceSpec.preset(arch), family) if refused is None]


JUMPS = ("bra", "brx", "ret", "exit")


@pytest.fixture(scope="module", autouse=True)
def forms() -> Iterator[dict[str, set[str]]]:
    """By family the instruction forms of all kernels compiled here; listed at the end (-s shows it)."""
    yield FORMS
    for family, names in sorted(FORMS.items()):
        print(f"\n{family}: {len(names)} instruction forms\n  " + " ".join(sorted(names)))


FORMS: dict[str, set[str]] = {}


def check_modelled(ptx: str, family: str) -> None:
    """Every instruction of a shipped kernel is one that the emulator models; NotModelledError names the line."""
    for entry in parse(ptx).entries.values():
        for instruction in entry.instructions:
            FORMS.setdefault(family, set()).add(instruction.name)
            if instruction.opcode not in JUMPS:
                isa.resolve(instruction)


def check(config: Config, arch: str) -> str:
    artifact = compile_kernel(render(config), entry=entry_name(config.family), arch=arch)
    used = artifact.resources
    assert (used.spill_stores, used.spill_loads, used.stack_frame) == (0, 0, 0), (config, arch, used)
    if isinstance(config, GemmConfig):
        assert used.registers <= config.registers, (config, arch, used)
        assert config.smem_bytes <= DeviceSpec.preset(arch).smem_per_block_optin
    assert ".local" not in artifact.ptx
    assert artifact.cubin[:4] == b"\x7fELF"
    check_modelled(artifact.ptx, config.family)
    return artifact.ptx


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_gemm_simt_fits_on_hopper(dtype: str, layout: str) -> None:
    for align in (16, ITEMSIZE[dtype]):
        variants = legal(make_gemm(dtype, layout, align), "sm_90a")
        assert variants
        few = variants[:1] if align != 16 or dtype == "bfloat16" else variants
        for config in variants if EVERYTHING else few:
            check(config, "sm_90a")


@pytest.mark.parametrize("arch", ARCHS)
def test_gemm_simt_fits_on_every_arch(arch: str) -> None:
    dtypes = ("float32", "float64", "float16") if EVERYTHING else ("float32",)
    for dtype, layout, align in itertools.product(dtypes, LAYOUTS, (16, 4)):
        variants = legal(make_gemm(dtype, layout, max(align, ITEMSIZE[dtype])), arch)
        for config in variants if EVERYTHING else variants[:1]:
            check(config, arch)


@pytest.mark.parametrize("layout", [*LAYOUTS, "TT"])
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "sm_75"])
def test_gemm_mma_fits(arch: str, layout: str) -> None:
    """Aligned: all tiles where most are planned, else the largest; and the largest with copies of single elements."""
    for dtype, out_dtype, align in (("bfloat16", None, 16), ("float16", "float32", 16), ("bfloat16", None, 2)):
        variants = legal(make_gemm(dtype, layout, align, out_dtype), arch, "gemm_mma")
        few_tokens = LAYOUTS.get(layout, (False,))[0]  # the tile of 16 rows is for a K-major A
        assert len(variants) == (5 if align == 16 else 3) + few_tokens
        all_tiles = EVERYTHING or (arch == "sm_80" and (dtype, align) == ("bfloat16", 16))
        for config in variants if all_tiles else variants[:1]:
            check(config, arch)


@pytest.mark.parametrize("layout", [*LAYOUTS, "TT"])
def test_gemm_mma_fits_without_cp_async(layout: str) -> None:
    """All tiles with 16-byte loads where most registers are taken, else the largest; also with loads of single elements."""
    for align in (16, 2):
        variants = legal(make_gemm("float16", layout, align), "sm_75", "gemm_mma")
        few_tokens = LAYOUTS.get(layout, (False,))[0]
        assert len(variants) == (5 if align == 16 else 3) + few_tokens
        for config in variants if EVERYTHING or (layout, align) == ("NN", 16) else variants[: align // 8 or 1]:
            ptx = check(config, "sm_75")
            assert "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32" in ptx and "cp.async" not in ptx


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_gemm_mma_that_sums_db_fits(arch: str) -> None:
    gemm = make_gemm("float16", "TN", 16)
    summing = [config for config in legal(gemm, arch, "gemm_mma") if config.db_refused(gemm) is None]
    assert len(summing) >= 3
    for config in summing[: None if EVERYTHING else 2]:
        check(replace(config, db_dtype="float32"), arch)


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "sm_75"])
def test_tf32_gemm_mma_fits(arch: str) -> None:
    for layout, align in (("NT", 16), ("TN", 16), ("NN", 4)):
        gemm = replace(make_gemm("float32", layout, align), precision="tf32")
        for config in legal(gemm, arch, "gemm_mma")[: None if EVERYTHING else 1]:
            assert "cvt.rna.tf32.f32" in check(config, arch)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_float64_gemm_mma_fits(arch: str) -> None:
    """All tiles where operands are aligned on sm_90a; else the largest, also with copies of single elements."""
    for layout, align in (("NT", 16), ("TN", 16), ("NN", 8), ("TT", 8)):
        variants = legal(make_gemm("float64", layout, align), arch, "gemm_mma")
        assert len(variants) == 5 and all(config.segment == 1024 for config in variants)
        all_tiles = EVERYTHING or (arch, align) == ("sm_90a", 16)
        for config in variants if all_tiles else variants[:1]:
            ptx = check(config, arch)
            step = "m8n8k4" if arch == "sm_80" else "m16n8k4"
            assert f"mma.sync.aligned.{step}.row.col.f64.f64.f64.f64" in ptx and ("cp.async.cg" in ptx) == (align == 16)


@pytest.mark.parametrize(("arch", "dmma"), [("sm_80", 64), ("sm_90a", 32)])
def test_the_hot_loop_of_float64_is_the_tiles_work(arch: str, dmma: int) -> None:
    """A warp's 64x32 outputs, 8 of K, in instructions of 8x8x4 or 16x8x4."""
    config = legal(make_gemm("float64", "TN", 16), arch, "gemm_mma")[0]
    loop = hot_loop(
        disassemble(compile_kernel(render(config), entry=entry_name("gemm_mma"), arch=arch).cubin_path), "DMMA"
    )
    assert (loop.mix["DMMA"], loop.mix["LDS.64"], loop.mix["LDGSTS.128"]) == (dmma, 24, 4)
    assert not any(name.startswith(("LDL", "STL", "LDG.", "STS", "LDS.32")) for name in loop.mix)
    assert loop.mix.total() < 170  # beside 16 clocks or more of each DMMA.16x8x4


def test_gemm_mma_has_the_promised_instructions() -> None:
    for layout, load in (("NT", "ldmatrix.sync.aligned.m8n8.x4.shared"), ("TN", "ldmatrix.sync.aligned.m8n8.x4.trans")):
        ptx = check(legal(make_gemm("bfloat16", layout, 16), "sm_80", "gemm_mma")[0], "sm_80")
        assert load in ptx and "cp.async.cg.shared.global" in ptx and "st.global.v4" in ptx
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in ptx
        assert ".ftz" not in ptx and "approx" not in ptx


@pytest.mark.parametrize(("dtype", "layout"), [("bfloat16", "NN"), ("float32", "NT")])
def test_the_hot_loop_of_gemm_mma_is_the_tiles_work(dtype: str, layout: str) -> None:
    """128x128 outputs, 64 bytes of K: 64 (tf32: 32 a step, 64 in all) matrix instructions, and nothing in local memory."""
    gemm = replace(make_gemm(dtype, layout, 16), precision="tf32" if dtype == "float32" else None)
    (config,) = (c for c in legal(gemm, "sm_90a", "gemm_mma") if c.tile.startswith("128x128x"))
    artifact = compile_kernel(render(config), entry=entry_name("gemm_mma"), arch="sm_90a")
    loop = hot_loop(disassemble(artifact.cubin_path), "HMMA")
    assert loop.mix["HMMA"] == 64 and loop.mix["LDSM.x4"] == 16 and loop.mix["LDGSTS.128"] == 8
    assert not any(name.startswith(("LDL", "STL", "LDG.", "STS")) for name in loop.mix)
    # cvt.rna.tf32 is three to four instructions for each of the 64 words of fragments (NaN must stay one).
    assert loop.mix.total() < 3 * 64 + (0 if dtype == "bfloat16" else 4 * 64)


def test_the_hot_loop_without_cp_async_is_the_tiles_work() -> None:
    """128x128 outputs of four warps, 64 bytes of K in halves of a step; every thread loads and stores 128 bytes."""
    (config,) = (c for c in legal(make_gemm("float16", "NN", 16), "sm_75", "gemm_mma") if c.tile.startswith("128x128x"))
    artifact = compile_kernel(render(config), entry=entry_name("gemm_mma"), arch="sm_75")
    loop = hot_loop(disassemble(artifact.cubin_path), "HMMA")
    assert loop.mix["HMMA"] == 128 and loop.mix["LDSM.x4"] == 16
    assert loop.mix["LDG.128"] == loop.mix["STS.128"] == 8
    assert not any(name.startswith(("LDL", "STL")) for name in loop.mix)
    assert loop.mix.total() < 2 * 128


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_small_kernels_fit(arch: str) -> None:
    for dtype, acc in (("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32")):
        check(ColumnSumConfig(dtype, acc), arch)
        check(ActGradConfig(dtype, acc, acc), arch)
        check(OrderedReduceConfig(acc, dtype, dtype), arch)
    for itemsize in (1, 2, 4, 8):
        check(StridedCopyConfig(itemsize), arch)


def test_ptx_has_the_promised_instructions() -> None:
    config = legal(make_gemm("float32", "NT", 16), "sm_80")[0]
    ptx = check(config, "sm_80")
    assert "cp.async.cg.shared.global" in ptx
    assert "ld.shared.v4.f32" in ptx or "ld.shared.v4.b32" in ptx
    assert "fma.rn.f32" in ptx
    assert ".ftz" not in ptx and "approx" not in ptx
    assert "bar.sync" in ptx or "barrier.sync" in ptx

    prefetch = legal(make_gemm("float32", "NT", 16), "sm_75")[0]
    assert not prefetch.asynchronous
    assert "cp.async" not in check(prefetch, "sm_75")


def test_source_names_the_line_and_no_path() -> None:
    ptx = check(legal(make_gemm("float32", "NT", 16), "sm_80")[0], "sm_80")
    files = [line for line in ptx.splitlines() if line.strip().startswith(".file")]
    assert any("gemm_simt.cuh" in line for line in files)
    assert not any('"/' in line for line in files)
