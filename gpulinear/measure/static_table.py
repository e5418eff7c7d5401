"""Prints what is known of kernels without a GPU: one table per architecture, and the same as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .static import Row

NO_TIME = "Known without a GPU: resources, machine code, emulated memory requests. No time was measured, none is shown."
_SHARED_LOADS = ("LDS", "LDSM")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UBLKCP", "UTMALDG")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _loads(row: Row) -> str:
    """The loads of the hot loop by width, as in "64 LDS.128, 4 LDGSTS.128"."""
    loop = row.loop or {}
    chosen = [kind for kind in loop if kind.partition(".")[0] in _SHARED_LOADS + _GLOBAL_LOADS]
    return ", ".join(f"{loop[kind]} {kind}" for kind in chosen) or "-"


def _table(arch: str, rows: Sequence[Row]) -> Table:
    table = Table(title=arch, title_justify="left")
    table.add_column("kernel", no_wrap=True)
    right = ("regs", "spill B", "smem B", "blocks/SM", "warps/SM")
    for column in right:
        table.add_column(column, justify="right")
    table.add_column("limited by")
    table.add_column("work", justify="right")
    for column in ("% work", "% address", "% barrier", "loop instr."):
        table.add_column(column, justify="right")
    table.add_column("loads of the loop")
    for column in ("banks", "sectors"):
        table.add_column(column, justify="right")
    for row in rows:
        spilled = row.spill_stores + row.spill_loads
        table.add_row(
            row.name.removesuffix(f" {arch}"),
            str(row.registers),
            f"[red]{spilled}" if spilled else "0",
            str(row.static_smem + row.dynamic_smem),
            str(row.blocks_per_sm),
            str(row.warps_per_sm),
            ", ".join(row.limits),
            row.work,
            _percent(row.share(row.work)),
            _percent(row.share("address")),
            _percent(row.share("barrier")),
            "-" if row.loop_instructions is None else str(row.loop_instructions),
            _loads(row),
            _ratio(row.bank_ratio),
            _ratio(row.sector_ratio),
        )
    return table


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print ``rows``, the reasons for what is missing, and every defect."""
    console.print(NO_TIME)
    for arch in dict.fromkeys(row.arch for row in rows):
        console.print(_table(arch, [row for row in rows if row.arch == arch]))
    console.print(
        "regs: of a thread. smem: of a block. %: share of the hot loop's instructions. banks, sectors: wavefronts of "
        "shared memory and sectors of global memory over the fewest possible, counted in the emulator (1 is best)."
    )
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        names = [row.name for row in rows if note in row.notes]
        console.print(f"{len(names)} of {len(rows)} kernels: {note} ({names[0]}{', ...' if len(names) > 1 else ''})")
    for row in rows:
        for defect in row.defects:
            console.print(f"[red]defect[/red] {row.name}: {defect}")


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as JSON values."""
    return {"note": NO_TIME, "kernels": [row.to_json() for row in rows]}
