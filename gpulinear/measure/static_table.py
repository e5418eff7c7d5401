"""Prints what is known of kernels without a GPU: two tables for each family, and the same as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .static import Row

NO_TIME = "Known without a GPU: resources, machine code, emulated memory requests. No time was measured, none is shown."
_SHARED_LOADS = ("LDS", "LDSM")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UBLKCP", "UTMALDG")


_LIMITS = {"registers": "regs", "shared memory": "smem", "threads": "threads", "block slots": "slots"}
_WIDTH = 110  # of a table, where the output is not a terminal


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _loads(row: Row) -> str:
    """The loads of the hot loop by width, as in "64 LDS.128, 4 LDGSTS.128"."""
    loop = row.loop or {}
    chosen = [kind for kind in loop if kind.partition(".")[0] in _SHARED_LOADS + _GLOBAL_LOADS]
    return ", ".join(f"{loop[kind]} {kind}" for kind in chosen) or "-"


def _table(title: str, *columns: str) -> Table:
    """Numbers to the right; the names of kernels, and what ends in a colon, to the left."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        left = column == "kernel" or column.endswith(":")
        table.add_column(column.rstrip(":"), justify="left" if left else "right", no_wrap=not column.endswith(":"))
    return table


def _tables(family: str, arch: str, rows: Sequence[Row]) -> tuple[Table, Table]:
    """Resources with the requests, and the hot loop, of one family."""
    of_it = f"{family}, {arch}"
    resources = _table(
        f"{of_it}: resources, and what fits on an SM",
        *("kernel", "regs", "spill", "smem", "blocks", "warps", "limited by:", "banks", "sectors"),
    )
    loops = _table(f"{of_it}: the hot loop", *("kernel", "work", "% work", "% addr", "% barr", "instr", "loads:"))
    for row in rows:
        label = row.name.removeprefix(f"{family} ").removesuffix(f" {arch}")
        spilled = row.spill_stores + row.spill_loads
        resources.add_row(
            label,
            str(row.registers),
            f"[red]{spilled}" if spilled else "0",
            str(row.smem),
            str(row.blocks_per_sm),
            str(row.warps_per_sm),
            ", ".join(_LIMITS[limit] for limit in row.limits),
            _ratio(row.bank_ratio),
            _ratio(row.sector_ratio),
        )
        loops.add_row(
            label,
            row.work,
            _percent(row.share(row.work)),
            _percent(row.share("address")),
            _percent(row.share("barrier")),
            "-" if row.loop_instructions is None else str(row.loop_instructions),
            _loads(row),
        )
    return resources, loops


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print ``rows``, the reasons for what is missing, and every defect."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    console.print(NO_TIME)
    for arch, family in dict.fromkeys((row.arch, row.family) for row in rows):
        for table in _tables(family, arch, [row for row in rows if (row.arch, row.family) == (arch, family)]):
            console.print(table)
    console.print(
        "regs: registers of a thread. spill, smem: bytes of a thread and of a block. blocks, warps: of an SM. banks, sectors: "
        "wavefronts of shared memory and sectors of global memory over the fewest possible, counted in the emulator (1 is "
        "best). work, addr, barr: instructions that do the work, integer arithmetic, barriers, of the loop's instr."
    )
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        names = [row.name for row in rows if note in row.notes]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{names[0]}{more}: {escape(note)}")
    for row in rows:
        for defect in row.defects:
            console.print(f"[red]defect:[/red] {row.name}: {defect}")


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as JSON values."""
    return {"note": NO_TIME, "kernels": [row.to_json() for row in rows]}
