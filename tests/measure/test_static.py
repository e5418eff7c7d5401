"""What is known of kernels without a GPU: which there are, what a row says of one, and what it says when it cannot."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from gpulinear.config import FAMILIES
from gpulinear.device import ARCHS
from gpulinear.errors import BackendError, KernelFault
from gpulinear.measure import sass, static
from gpulinear.measure.occupancy import occupancy
from gpulinear.measure.static import WORK, Row, collect, examine
from gpulinear.measure.static_table import NO_TIME, show, to_json
from gpulinear.measure.variants import LAYOUTS, Variant, variants
from gpulinear.source import HEADERS

TILE = "128x128x16/8x8"


def simt(layout: str, view: str = "contiguous", dtype: str = "float32", tile: str = TILE) -> Variant:
    found = variants("sm_90a", ["gemm_simt"], [dtype], [view])
    return next(v for v in found if (v.layout, v.tile) == (layout, tile))


# ---- which kernels there are ----


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_have_names_of_their_own(arch: str) -> None:
    found = variants(arch, views=("contiguous", "misaligned"))
    names = [variant.name for variant in found]
    assert len(set(names)) == len(names) and len({variant.config for variant in found}) == len(names)
    for layout in LAYOUTS:
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            assert any(variant.layout == layout and variant.call.dtype == dtype for variant in found)


def test_every_family_is_looked_at_on_hopper() -> None:
    found = {variant.config.family for variant in variants("sm_90a")}
    assert found == set(HEADERS), "a family that variants() launches with no call of its own is not looked at"
    assert found <= set(WORK) and set(FAMILIES) <= found


def test_a_step_of_the_call_launches_the_kernel() -> None:
    for variant in variants("sm_80"):
        plan = variant.call.plan(variant.call.build(), "sm_80")
        assert plan.steps[variant.step].config == variant.config


def test_misaligned_operands_have_kernels_of_their_own() -> None:
    aligned, misaligned = simt("TN"), simt("TN", "misaligned")
    assert misaligned.config != aligned.config and (aligned.config.vec_a, misaligned.config.vec_a) == (16, 4)  # type: ignore[union-attr]
    assert misaligned.name == "gemm_simt TN 128x128x16/8x8 float32 misaligned sm_90a"


def test_a_family_with_another_kernel_for_more_than_a_segment_shows_both(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [v for v in variants("sm_90a", ["gemm_wgmma"], ["bfloat16"]) if (v.layout, v.tile) == ("NT", "128x256x64")]
    assert [v.long for v in found] == [False, True] and found[0].name.replace(" sm", " K>S sm") == found[1].name
    assert [v.config.running_total for v in found] == [False, True]  # type: ignore[union-attr]
    assert not any(v.long for v in variants("sm_90a", ["gemm_simt"], ["float32"]))
    # The emulator would take minutes.
    monkeypatch.setattr(static.emulator, "execute", None)
    assert static._requests(found[1], []) == (None, None)


def test_tiles_of_a_cluster_are_looked_at_together() -> None:
    (short, _) = (
        v for v in variants("sm_90a", ["gemm_wgmma"], ["bfloat16"]) if (v.layout, v.tile) == ("NT", "128x256x64/c2")
    )
    assert dict(short.call.inputs)["x"][0] == 256


def test_the_tables_of_this_machine_do_not_decide() -> None:
    assert all(not variant.call.options.tuned for variant in variants("sm_90a"))


# ---- a row ----


@pytest.mark.usefixtures("compiled")
def test_a_row_holds_what_the_tile_asks_for() -> None:
    variant = simt("TN")
    row = examine(variant)
    assert (row.name, row.family, row.layout, row.tile, row.dtype, row.precision, row.arch) == (
        "gemm_simt TN 128x128x16/8x8 float32 sm_90a",
        *("gemm_simt", "TN", TILE, "float32", None, "sm_90a"),
    )
    assert row.threads == 256 and row.dynamic_smem == variant.config.smem_bytes  # type: ignore[union-attr]
    assert 0 < row.registers <= variant.config.registers  # type: ignore[union-attr]
    assert row.blocks_per_sm == 2 and row.warps_per_sm == 16 and row.limits == ("registers",)
    assert row.loop is not None and row.loop["FFMA"] == 8 * 8 * 16 and row.work == "FFMA"
    assert row.share("FFMA") == row.loop["FFMA"] / sum(row.loop.values()) and row.loop_instructions
    # Full sectors; the staging stores of an operand along M conflict (tests/test_kernel_counters.py).
    assert row.sector_ratio == 1 and row.bank_ratio is not None and 1 < row.bank_ratio < 1.1
    assert row.defects == row.notes == () and row.compiler.startswith(".".join(row.compiler.split(".")[:2]))
    assert json.loads(json.dumps(row.to_json()))["registers"] == row.registers


@pytest.mark.usefixtures("compiled")
def test_strided_reads_of_a_misaligned_operand_show_in_the_sectors() -> None:
    row = examine(simt("NT", "misaligned", tile="64x64x16/4x4"))
    assert row.sector_ratio is not None and row.sector_ratio > 1


@pytest.mark.usefixtures("compiled")
def test_float64_works_with_its_own_instruction() -> None:
    row = examine(simt("TN", dtype="float64", tile="32x32x8/4x4"))
    assert row.work == "DFMA" and row.loop is not None and row.loop["DFMA"] == 4 * 4 * 8


@pytest.mark.usefixtures("compiled")
def test_requests_are_those_of_the_kernel_and_not_of_the_call() -> None:
    (variant,) = variants("sm_90a", ["ordered_reduce"], ["float32"])
    row = examine(variant)
    # It is the second step of a split product; unlike the first, it has no use for shared memory.
    assert variant.step == 1 and (row.bank_ratio, row.sector_ratio) == (None, 1.0)


@pytest.mark.usefixtures("compiled")
def test_a_block_takes_static_and_dynamic_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(static, "occupancy", lambda *args: (asked.append(args[:3]), occupancy(*args))[1])
    for variant in (simt("TN"), *variants("sm_90a", ["column_sum"], ["float32"])):
        row = examine(variant, resources_only=True)
        assert row.static_smem + row.dynamic_smem > 0
        assert asked.pop() == (row.registers, row.static_smem + row.dynamic_smem, 256)


@pytest.mark.usefixtures("compiled")
def test_resources_alone_need_neither_disassembler_nor_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "disassemble", None)
    monkeypatch.setattr(static.emulator, "execute", None)
    row = examine(simt("TN"), resources_only=True)
    assert row.registers and (row.loop, row.local_accesses, row.bank_ratio, row.notes) == (None, None, None, ())


@pytest.mark.usefixtures("compiled")
def test_what_could_not_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_nvdisasm() -> str:
        raise BackendError("reading machine code needs nvdisasm")

    def fault(*_: object) -> None:
        raise KernelFault("found faults:\na race in shared memory\nin CTA 0\nanother race")

    monkeypatch.setattr(sass, "disassembler", no_nvdisasm)
    monkeypatch.setattr(static.emulator, "execute", fault)
    row = examine(simt("TN"))
    assert row.registers and row.loop is row.bank_ratio is row.local_accesses is row.share("FFMA") is None
    assert row.notes == ("reading machine code needs nvdisasm", "found faults: a race in shared memory")
    shown = render([row])
    assert "nvdisasm" in shown and "race" in shown


@pytest.mark.usefixtures("compiled")
def test_a_family_that_nobody_has_named_a_working_instruction_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(WORK, "gemm_simt")
    row = examine(simt("TN"))
    assert row.loop is None and row.registers and "WORK" in row.notes[0]


@pytest.mark.usefixtures("compiled")
def test_processes_give_the_rows_of_one_process() -> None:
    chosen = [v for v in variants("sm_90a", ["column_sum"]) if v.call.dtype in ("float32", "float64")]
    assert list(static.examine_all(chosen, workers=2)) == list(static.examine_all(chosen, workers=1))


@pytest.mark.usefixtures("compiled")
def test_collect_reports_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    rows = collect(
        ["sm_90a"], ["column_sum"], ["float32", "float64"], workers=1, progress=lambda *counts: seen.append(counts)
    )
    assert [row.name for row in rows] == ["column_sum float32 sm_90a", "column_sum float64 sm_90a"]
    assert seen == [(1, 2), (2, 2)]


# ---- printing ----


def made_up(**changes: object) -> Row:
    row = Row(
        **{"name": "gemm_simt NT 8x8x8/1x1 float32 sm_90a", "family": "gemm_simt", "layout": "NT", "tile": "8x8x8/1x1"},
        **{"dtype": "float32", "precision": None, "arch": "sm_90a", "threads": 64, "registers": 40},
        **{"spill_stores": 0, "spill_loads": 0, "stack": 0, "static_smem": 0, "dynamic_smem": 1024},
        **{"blocks_per_sm": 4, "warps_per_sm": 8, "limits": ("registers", "block slots"), "compiler": "13.0.1"},
        **{"work": "FFMA", "loop": {"FFMA": 8, "LDS.128": 4, "address": 4}, "local_accesses": 0},
        **{"bank_ratio": 1.25, "sector_ratio": 1.0, "notes": ()},
    )  # type: ignore[arg-type]
    return replace(row, **changes)  # type: ignore[arg-type]


def render(rows: list[Row]) -> str:
    buffer = io.StringIO()
    show(Console(file=buffer), rows)
    return buffer.getvalue()


def test_tables_show_the_figures_and_no_time() -> None:
    shown = render([made_up(sector_ratio=None)])
    assert NO_TIME in shown
    resources, loop = (line for line in shown.splitlines() if "NT 8x8x8/1x1 float32" in line)
    for part in ("40", "1024", "4", "8", "regs, slots", "1.25", "-"):
        assert f" {part} " in f"{resources} "
    for part in ("FFMA", "50.0", "25.0", "0.0", "16", "4 LDS.128"):
        assert f" {part} " in f"{loop} "
    assert "defect" not in shown
    lines = render([made_up(spill_stores=4, spill_loads=8)]).splitlines()
    spilled = next(line for line in lines if line.strip().startswith("NT 8x8x8"))
    assert " 12 " in spilled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spill_stores": 4}, "4 bytes of spill stores"),
        ({"spill_loads": 8}, "8 bytes of spill loads"),
        ({"stack": 16}, "16 bytes of stack"),
        ({"local_accesses": 3}, "3 accesses to local memory"),
        ({"blocks_per_sm": 0}, "no block fits on an SM"),
    ],
)
def test_defects_are_named(changes: dict[str, int], words: str) -> None:
    row = made_up(**changes)
    assert row.defects == (words,)
    assert f"defect: {row.name}: {words}" in render([row])


def test_json_is_the_rows() -> None:
    value = json.loads(json.dumps(to_json([made_up()])))
    assert value["note"] == NO_TIME and value["kernels"][0]["loop"] == {"FFMA": 8, "LDS.128": 4, "address": 4}
