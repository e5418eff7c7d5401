"""What a run of the bench came to, as a table by group and arithmetic, and as JSON: the same pairs as the report's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cases import arithmetic
from .pairs import OURS, GpuRows, Pair, summarize
from .records import Row
from .session import Summary

_SLOWEST = 10
_SHOWN = 10  # lines of one kind of trouble
_WIDTH = 120  # of a table, where the output is not a terminal


def _mean(values: Sequence[float]) -> float | None:
    """The geometric mean; None of nothing."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def _worst(rows: Iterable[Row | None]) -> float | None:
    """The largest error of these rows in units of the bound."""
    return max((row.data["error_units"] for row in rows if row is not None and "error_units" in row.data), default=None)


def _group(pairs: Sequence[Pair]) -> dict[str, Any]:
    found = summarize(pairs)
    shares = [share for pair in pairs if (share := pair.share(pair.timed)) is not None]
    return {
        "group": pairs[0].case.group,
        "arithmetic": arithmetic(pairs[0].case),
        "cases": len(pairs),
        "timed": sum(pair.timed is not None for pair in pairs),
        "with_peer": found.count if found else 0,
        "mean_ratio": found.mean if found else None,
        "least_ratio": found.least.ratio if found else None,
        "ahead": found.ahead if found else 0,
        "mean_share_of_ceiling": _mean(shares),
        "worst_error": _worst(pair.ours for pair in pairs),
        "worst_error_of_peers": _worst(pair.peer for pair in pairs),
    }


def _case(pair: Pair) -> dict[str, Any]:
    assert pair.timed is not None and pair.peer is not None
    return {
        "name": pair.case.name,
        "ratio": pair.ratio,
        "us": pair.timed.data["us_p50"],
        "us_peer": pair.peer.data["us_p50"],
        "peer": pair.peer.data["provider"],
        "kernel": pair.timed.data["kernel"],
    }


def _families(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Each forced family beside what gpulinear chose, where both have a time."""
    ratios: dict[str, list[float]] = {}
    for pair in pairs:
        for row in pair.rows:
            if row.data["ours"] and row.data["provider"] != OURS and row.data["status"] == "ok" and pair.timed:
                ratios.setdefault(row.data["provider"], []).append(pair.timed.data["us_p50"] / row.data["us_p50"])
    return [
        {"provider": name, "cases": len(found), "mean_ratio": _mean(found), "faster": sum(r > 1 for r in found)}
        for name, found in sorted(ratios.items())
    ]


def to_json(rows: Sequence[Row], summary: Summary | None, missing: dict[str, str], path: Path) -> dict[str, Any]:
    """The tables as JSON values.

    rows: of one GPU; ratios are formed inside each run. summary: of the run itself, None where it was interrupted.
    missing: providers that could not be used here, and why. path: the file that the rows are in.
    """
    pairs = GpuRows(rows).pairs if rows else []
    slow = sorted((pair for pair in pairs if pair.ratio is not None), key=lambda pair: pair.ratio or 0.0)
    return {
        "gpu": rows[0].data["gpu"] if rows else None,
        "file": str(path),
        "groups": [_group(list(some)) for _, some in groupby(pairs, lambda p: (p.case.group, arithmetic(p.case)))],
        "slowest": [_case(pair) for pair in slow[:_SLOWEST]],
        "families": _families(pairs),
        "missing": missing,
        "trouble": {name: getattr(summary, name) for name in _TROUBLE} if summary else {},
        "skipped": len(summary.skipped) if summary else None,
        "unsettled": summary.unsettled if summary else [],
        "ceilings_missing": summary.missing if summary else [],
        "lost": summary.lost if summary else None,
        "interrupted": summary is None,
    }


_TROUBLE = {
    "wrong": "[red]WRONG:[/red]",
    "errors": "[red]failed:[/red]",
    "wrong_peers": "a peer is wrong:",
}


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _table(title: str, *columns: str) -> Table:
    """Names, which end in a colon, to the left; numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        left = column.endswith(":")
        table.add_column(column.rstrip(":"), justify="left" if left else "right", overflow="fold")
    return table


def show(console: Console, rows: Sequence[Row], summary: Summary | None, missing: dict[str, str], path: Path) -> None:
    """Print the tables, what went wrong, and where the rows are; arguments as for ``to_json``."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    found = to_json(rows, summary, missing, path)
    columns = ("ratio", "least", "ahead", "of ceiling", "error", "peer's error")
    table = _table(f"{found['gpu']}: time of the fastest right peer / ours", "group:", "dtype:", "cases", *columns)
    for group in found["groups"]:
        table.add_row(
            group["group"],
            group["arithmetic"],
            f"{group['timed']}/{group['cases']}",
            _number(group["mean_ratio"]),
            _number(group["least_ratio"]),
            _percent(group["ahead"] / group["with_peer"] if group["with_peer"] else None),
            _percent(group["mean_share_of_ceiling"]),
            _number(group["worst_error"], 3),
            _number(group["worst_error_of_peers"], 3),
        )
    console.print(table)
    console.print(
        "cases: timed of all. ratio: geometric mean, above 1 we are ahead; ahead: share of cases at 1 or above. of ceiling: of "
        "what this run's largest product and copy allow. error: the largest, in units of the a-priori bound (at most 1 is "
        "right)."
    )
    if found["slowest"]:
        slow = _table("least ratios", "case:", "ratio", "us", "peer us", "peer:", "our kernel:")
        for case in found["slowest"]:
            times = (f"{case['us']:.1f}", f"{case['us_peer']:.1f}")
            slow.add_row(case["name"], _number(case["ratio"]), *times, case["peer"], case["kernel"])
        console.print(slow)
    if found["families"]:
        families = _table("a family forced: time of gpulinear / its own", "provider:", "cases", "ratio", "faster")
        for one in found["families"]:
            families.add_row(one["provider"], str(one["cases"]), _number(one["mean_ratio"]), str(one["faster"]))
        console.print(families)
    _print_trouble(console, found)
    console.print(f"{len(rows)} rows in {escape(str(path))}", soft_wrap=True)


def _print_trouble(console: Console, found: dict[str, Any]) -> None:
    for name, words in _TROUBLE.items():
        lines = found["trouble"].get(name, [])
        for line in lines[:_SHOWN]:
            console.print(f"{words} {escape(line)}", soft_wrap=True)
        if len(lines) > _SHOWN:
            console.print(f"{words} {len(lines) - _SHOWN} more, in the rows")
    for provider, reason in found["missing"].items():
        console.print(f"not timed: {escape(provider)}: {escape(reason)}", soft_wrap=True)
    for line in found["ceilings_missing"]:
        console.print(f"no ceiling: {escape(line)}", soft_wrap=True)
    if found["unsettled"]:
        console.print(f"the clock was still moving in {len(found['unsettled'])} case(s)")
    if found["skipped"]:
        console.print(f"the budget left no time for {found['skipped']} case(s); --resume goes on with them")
    if found["lost"]:
        console.print(f"[red]stopped:[/red] {escape(found['lost'])}", soft_wrap=True)
    if found["interrupted"]:
        console.print("[yellow]interrupted:[/yellow] the rows so far are kept; --resume goes on")
