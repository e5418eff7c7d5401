"""Kernels of two problems compile without spills and without serialised wgmmas, and keep both hot loops of one problem."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.compile import Artifact, compile_kernel
from gpulinear.config import JointConfig
from gpulinear.device import ARCHS
from gpulinear.errors import BackendError
from gpulinear.measure.sass import disassemble
from gpulinear.plan import Options
from gpulinear.source import entry_name, render

from .test_kernels_compile import check_modelled

pytestmark = pytest.mark.usefixtures("compiled")

EVERYTHING = os.environ.get("GPULINEAR_TEST_ALL_VARIANTS") == "1"


def planned(arch: str, family: str, dtype: str, tokens: int, out: int, inner: int, **settings: Any) -> JointConfig:
    """The pair that is planned for a layer of that size, or in the tile that is asked for."""
    dy, x, w = (gl.ShapeDtype(shape, dtype) for shape in ((tokens, out), (tokens, inner), (out, inner)))
    options = {name: settings.pop(name) for name in ("tile", "segment", "splits") if name in settings}
    with gemm.planning(Options(family=family, joint=True, **options)):
        made = gl.explain("linear_backward", dy, x, w, arch=arch, **settings)
    (config,) = (step.config for step in made.steps if isinstance(step.config, JointConfig))
    return config


def check(config: JointConfig, arch: str) -> Artifact:
    artifact = compile_kernel(render(config), entry=entry_name(config.family), arch=arch)
    used = artifact.resources
    assert (used.spill_stores, used.spill_loads, used.stack_frame) == (0, 0, 0), (config, arch, used)
    assert used.registers <= config.registers, (config, arch, used)
    assert ".local" not in artifact.ptx
    check_modelled(artifact.ptx, config.family)
    return artifact


SIZES = [(512, 512, 512), (32, 1024, 1024), (1536, 1024, 1024), (1024, 1001, 1001)]


@pytest.mark.parametrize(
    ("arch", "family", "dtype", "precision"),
    [
        ("sm_90a", "gemm_simt", "float32", None),
        ("sm_90a", "gemm_simt", "float64", None),
        ("sm_75", "gemm_simt", "float32", None),
        ("sm_75", "gemm_mma", "float16", None),
        ("sm_80", "gemm_mma", "bfloat16", None),
        ("sm_80", "gemm_mma", "float32", "tf32"),
        ("sm_80", "gemm_mma", "float32", "bf16x6"),
        ("sm_90a", "gemm_wgmma", "float32", "bf16x6"),
        ("sm_120", "gemm_mma", "bfloat16", None),
    ],
)
def test_the_pairs_that_are_planned_fit(arch: str, family: str, dtype: str, precision: str | None) -> None:
    """Where two tiles meet, the larger one's registers hold both."""
    settings = {} if precision is None else {"precision": precision}
    sizes = (
        SIZES
        if EVERYTHING
        else SIZES[:1]
        if (arch, dtype) not in (("sm_90a", "float32"), ("sm_80", "bfloat16"))
        else SIZES
    )
    for size in sizes:
        check(planned(arch, family, dtype, *size, **settings), arch)


@pytest.mark.skipif(not EVERYTHING, reason="every family on every arch takes minutes")
@pytest.mark.parametrize("arch", ARCHS)
def test_pairs_fit_on_every_arch(arch: str) -> None:
    for family, dtype in (("gemm_simt", "float32"), ("gemm_simt", "float64"), ("gemm_mma", "float16")):
        for size in SIZES:
            try:
                config = planned(arch, family, dtype, *size)
            except BackendError:  # the family has nothing for this arch
                continue
            check(config, arch)


# (tile, segments of dgrad, of wgrad, dtype of dw, with db): both orders, totals in registers, in shared memory and not at
# all; warps that sum db leave the consumers fewer registers.
WGMMA = [
    ("128x256x64", 2, 1, "bfloat16", True),
    ("128x256x64/c2", 1, 2, "float32", False),
    ("128x192x64", 2, 2, "float32", True),
    ("64x64x64", 1, 1, "float32", False),
]
if EVERYTHING:
    TILES = (
        "128x256x64",
        "128x256x64/c2",
        "128x192x64",
        "128x192x64/c2",
        "128x128x64",
        "64x256x64",
        "64x128x64",
        "64x64x64",
    )
    WGMMA = list(itertools.product(TILES, (1, 2), (1, 2), ("bfloat16", "float32"), (False, True)))


@pytest.mark.parametrize(("tile", "of_dgrad", "of_wgrad", "out_dtype", "db"), WGMMA)
def test_both_main_loops_are_wgmma_after_wgmma(
    tile: str, of_dgrad: int, of_wgrad: int, out_dtype: str, db: bool
) -> None:
    tokens, out = (512 * segments for segments in (of_wgrad, of_dgrad))
    options = {"tile": tile, "segment": 512, "splits": 1, "dw_out": gl.ShapeDtype((out, 512), out_dtype)}
    needs = ("dx", "dw", "db") if db else ("dx", "dw")
    config = planned("sm_90a", "gemm_wgmma", "bfloat16", tokens, out, 512, needs=needs, **options)
    artifact = check(config, "sm_90a")
    # setmaxnreg deals out what the launch takes: with fewer, the consumers would wait for registers for ever.
    assert config.threads < 384 or artifact.resources.registers == config.registers
    # C7510 and its neighbours: wgmma serialised; C7508: setmaxnreg ignored.
    assert not re.findall(r"\(C75[0-9]{2}\).*", artifact.log), artifact.log
    code = disassemble(artifact.cubin_path)
    work = [line for line in code.splitlines() if "HGMMA" in line]
    transposed = {(".tnspA" in line, ".tnspB" in line) for line in work}
    assert transposed == {(False, True), (True, True)}, "dgrad's majors and wgrad's"
    assert not re.search(r"\b(LDL|STL)\b", code)
    most = 255 if config.threads < 384 else 224 if db else 232
    assert max(int(number) for number in re.findall(r"\bR([0-9]+)\b", code)) < most
