"""The reader of machine code, on a made-up listing and on a compiled kernel."""

from __future__ import annotations

import pytest

from bench.sass import disassemble, hot_loop
from gpulinear.compile import compile_kernel
from gpulinear.source import entry_name, render

from .test_kernels_compile import legal, make_gemm

LISTING = """
        /*0000*/                   FFMA R1, R2, R3, R1 ;
.L_x_0:
        /*0010*/                   LDS.128 R4, [R5] ;
        /*0020*/              @!P0 FFMA R1, R2, R3, R1 ;
        /*0030*/                   FFMA R1, R2, R3, R1 ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   BRA `(.L_x_1) ;
"""


def test_the_loop_with_the_work_is_found() -> None:
    loop = hot_loop(LISTING, "FFMA")
    assert dict(loop.mix) == {"LDS": 1, "FFMA": 2, "BRA": 1}
    assert loop.share("FFMA") == 0.5


@pytest.mark.usefixtures("compiled")
def test_the_hot_loop_of_gemm_simt_is_mostly_fma() -> None:
    config = next(c for c in legal(make_gemm("float32", "TN", 16), "sm_90a") if c.tile == "128x128x16/8x8")
    artifact = compile_kernel(render(config), entry=entry_name("gemm_simt"), arch="sm_90a")
    loop = hot_loop(disassemble(artifact.cubin_path), "FFMA")
    # Exactly the tile's work: 8 x 8 outputs and 16 steps of k; no local memory.
    assert loop.mix["FFMA"] == 8 * 8 * 16
    assert loop.share("FFMA") > 0.8 and loop.mix["LDL"] == loop.mix["STL"] == 0
