"""The reader of machine code, on a made-up listing and on a compiled kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpulinear.compile import compile_kernel
from gpulinear.errors import BackendError
from gpulinear.measure import sass
from gpulinear.source import entry_name, render

from ..test_kernels_compile import legal, make_gemm

LISTING = """
        /*0000*/                   FFMA R1, R2, R3, R1 ;
        /*0008*/                   STL [R1+0x4], R2 ;
.L_x_0:
        /*0010*/                   FFMA R1, R2, R3, R1 ;
.L_x_1:
        /*0020*/                   LDS.128 R4, [R5] ;
        /*0030*/              @!PT LDS RZ, [RZ] ;
        /*0040*/              @!P0 FFMA R1, R2, R3, R1 ;
        /*0050*/                   FFMA R1, R2, R3, R1 ;
        /*0060*/             @!UP0 IMAD.MOV.U32 R4, RZ, RZ, R5 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*0090*/                   FFMA R1, R2, R3, R1 ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3) ;
"""


def test_the_innermost_loop_with_the_most_work_is_found() -> None:
    loop = sass.hot_loop(LISTING, "FFMA")
    assert loop is not None
    assert dict(loop.mix) == {"LDS.128": 1, "FFMA": 2, "move": 1, "control": 1}
    assert (loop.instructions, loop.share("FFMA"), loop.share("LDS")) == (5, 0.4, 0.2)
    assert sass.hot_loop(LISTING, "HMMA") is None
    other = sass.hot_loop(LISTING, "FFMA", never=("LDS",))
    assert other is not None and dict(other.mix) == {"FFMA": 1, "control": 1}
    assert sass.hot_loop(LISTING, "FFMA", never=("BRA",)) is None
    assert sass.local_accesses(LISTING) == 1


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("FFMA", "FFMA"),
        ("HMMA.16816.F32.BF16", "HMMA"),
        ("HGMMA.64x256x16.F32.BF16", "HGMMA"),
        ("LDS", "LDS.32"),
        ("LDS.U.128", "LDS.128"),
        ("LDSM.16.M88.4", "LDSM.x4"),
        ("LDSM.16.MT88.2", "LDSM.x2"),
        ("LDSM.16.M88", "LDSM.x1"),
        ("LDG.E.128.CONSTANT", "LDG.128"),
        ("LDG.E.U16", "LDG.16"),
        ("LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.128"),
        ("LDGSTS.E.LTC128B", "LDGSTS.32"),
        ("LDL.LU", "LDL.32"),
        ("IMAD.MOV.U32", "move"),
        ("IMAD.WIDE", "address"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "barrier"),
        ("UTMALDG.2D", "UTMALDG"),
        ("BRA.U", "control"),
    ],
)
def test_instructions_are_counted_by_what_one_looks_for(opcode: str, kind: str) -> None:
    assert sass.kind(opcode) == kind


@pytest.mark.usefixtures("compiled")
def test_the_hot_loop_of_gemm_simt_is_mostly_fma() -> None:
    config = next(c for c in legal(make_gemm("float32", "TN", 16), "sm_90a") if c.tile == "128x128x16/8x8")
    artifact = compile_kernel(render(config), entry=entry_name("gemm_simt"), arch="sm_90a")
    text = sass.disassemble(artifact.cubin_path)
    loop = sass.hot_loop(text, "FFMA")
    # Exactly the tile's work: 8 x 8 outputs and 16 steps of k; 16-byte loads of 8 + 8 values for each; no local memory.
    assert loop is not None
    assert (loop.mix["FFMA"], loop.mix["LDS.128"]) == (8 * 8 * 16, (8 + 8) * 16 // 4)
    assert loop.share("LDS") * loop.instructions == loop.mix["LDS.128"]
    assert loop.share("FFMA") > 0.8
    assert sass.local_accesses(text) == 0


def test_without_nvdisasm_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass.shutil, "which", lambda _: None)
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match="pip install nvidia-cuda-nvdisasm"):
        sass.disassembler()


def test_a_broken_cubin_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").write_bytes(b"not a cubin")
    with pytest.raises(BackendError, match=r"nvdisasm failed on .*kernel\.cubin"):
        sass.disassemble(tmp_path / "kernel.cubin")
