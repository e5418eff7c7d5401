"""The report's words and tables, as Markdown, from the rows of each GPU."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gpulinear.measure.cases import ARITHMETIC, GROUPS, arithmetic, select
from gpulinear.measure.pairs import OPS, OURS, GpuRows, Pair, key, summarize, tflops
from gpulinear.measure.records import Row, slug

States = Mapping[str, str]  # run -> "current", "stale", "dirty" or "unknown"
Cells = Sequence[object]

NONE_YET = "nothing has been measured yet"
_STATES = {
    "stale": "**stale**: kernels or planning have changed since",
    "dirty": "from a changed tree: its commit does not hold what ran",
    "unknown": "of a commit that this history does not know",
}


def table(head: Sequence[str], rows: Iterable[Cells], numbers: Sequence[str] = ()) -> str:
    """A Markdown table; ``numbers`` names the columns that are set to the right."""
    line = ["---:" if name in numbers else "---" for name in head]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in [head, line, *rows]
    )


def digits(value: float, significant: int = 3) -> str:
    """A positive number with some significant digits and no exponent; whole numbers keep all theirs."""
    if value <= 0:
        return f"{value:.0f}"
    return f"{value:.{max(0, significant - 1 - math.floor(math.log10(value)))}f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def place(row: Row) -> str:
    """Where a number stands: file and line, in bench/results/<gpu>/."""
    return f"`{row.file.name}:{row.line}`"


def days(times: Iterable[str]) -> str:
    """The day, or the first and the last, of some times."""
    found = sorted({time[:10] for time in times})
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def picture(gpu: GpuRows, name: str, words: str, pictures: Path, page: Path) -> str:
    """A picture in both themes, for the page at ``page``."""
    base = Path(os.path.relpath(pictures / slug(gpu.gpu), page.parent)).as_posix()
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{base}/{name}-dark.svg">'
        f'<img alt="{words}, {gpu.gpu}" src="{base}/{name}-light.svg"></picture>'
    )


def when(gpu: GpuRows) -> str:
    """GPU, days and commits of what is shown."""
    shown = [gpu.any_of(run) for run in gpu.runs]
    commits = dict.fromkeys(data["commit"][:7] for data in shown)
    named = ", ".join(f"`{commit}`" for commit in list(commits)[:3]) + (" and older" if len(commits) > 3 else "")
    return f"**{gpu.gpu}**, {days(data['time'] for data in shown)}, commit {named}"


def warnings(gpu: GpuRows, states: States) -> list[str]:
    """A sentence for each state of a run, but "current", with the share of cases that it touches."""
    counts = Counter(states[pair.rows[0].data["run"]] for pair in gpu.pairs)
    total = counts.total()
    return [
        f"{count} of {total} cases are {_STATES[state]}." for state, count in sorted(counts.items()) if state in _STATES
    ]


def cell(pairs: Sequence[Pair]) -> str:
    """The ratio of some cases in a few words; says so when there is none."""
    wrong = sum(pair.ours is not None and pair.ours.data["status"] in ("WRONG", "error") for pair in pairs)
    found = summarize(pairs)
    if found is not None:
        text = f"**{found.mean:.2f}** ({found.ahead} of {found.count})"
    elif any(pair.timed for pair in pairs):
        text = "no peer"
    elif any(pair.ours is not None and pair.ours.data["status"] == "unavailable" for pair in pairs):
        text = "no kernel yet"
    else:
        text = "" if wrong else "not measured"
    return f"{text} **{wrong} WRONG**".strip() if wrong else text


def waiting(pairs: Sequence[Pair]) -> str:
    """What of the bench's main tier has no measurement of ours yet, by group."""
    done_with = ("ok", "WRONG", "error")
    tried = {pair.case.name for pair in pairs if pair.ours is not None and pair.ours.data["status"] in done_with}
    none, part = [], []
    for group in GROUPS:
        names = [case.name for case in select("main") if case.group == group]
        done = sum(name in tried for name in names)
        if names and not done:
            none.append(f"`{group}`")
        elif done < len(names):
            part.append(f"`{group}` ({done} of {len(names)} cases)")
    lists = [", ".join(none)] if none else []
    lists += ["in part " + ", ".join(part)] if part else []
    return f"Not measured yet: {'; '.join(lists)}." if lists else "Every case of the main tier is measured."


def peers(gpu: GpuRows) -> str:
    """Names of the peers that have a time, in words."""
    timed = [row.data for pair in gpu.pairs for row in pair.rows if row.data["status"] == "ok"]
    names = sorted({data["provider"] for data in timed if not data["ours"]})
    return ", ".join(f"`{name}`" for name in names) or "no peer"


def readme(gpus: Sequence[GpuRows], states: States, pictures: Path, page: Path) -> str:
    """README's section: what is fast, against what, on which GPU, when, and what has not been measured."""
    if not gpus:
        names = ", ".join(f"`{group}`" for group in GROUPS)
        return (
            f"**Speed: {NONE_YET}, on any GPU, so none is claimed.** All groups of the bench wait for one: {names}.\n"
            "On a GPU `gpulinear bench` measures them beside cuBLAS; `python -m bench.report` puts the outcome here."
        )
    parts = []
    for gpu in gpus:
        rows = []
        for numbers in ARITHMETIC:
            cells = [[p for p in gpu.pairs if (arithmetic(p.case), p.case.op) == (numbers, op)] for op in OPS]
            rows.append([numbers, *(cell(pairs) for pairs in cells)])
        parts += [
            f"{when(gpu)}: the time of the fastest right peer at equal precision ({peers(gpu)}) divided by ours. "
            "**Above 1 gpulinear is ahead**; in brackets, in how many cases.",
            table(["", *OPS.values()], rows),
        ]
        if gpu is gpus[0]:
            parts.append(picture(gpu, "ratio", "Time of the fastest right peer / ours, by shape", pictures, page))
        parts.append(" ".join([*warnings(gpu, states), waiting(gpu.pairs)]))
    return "\n\n".join(parts)


def runs(gpu: GpuRows, states: States) -> str:
    """The runs that the numbers come from."""
    head = [
        "run",
        "time (UTC)",
        "commit",
        "state",
        "driver",
        "CUDA",
        "NVRTC",
        "CuPy",
        "cuBLAS",
        "torch",
        "nvmath",
        "rows",
    ]
    rows = []
    for run in gpu.runs:
        of_run = [row for row in gpu.rows if row.data["run"] == run]
        data = of_run[0].data
        versions = [data.get(name, "-") for name in ("cuda", "nvrtc", "cupy", "cublas", "torch", "nvmath")]
        rows.append([
            f"`{run[:8]}`", gpu.begun[run][:16].replace("T", " "), f"`{data['commit'][:7]}`", states[run],
            data.get("driver_release", f"for CUDA {data['driver']}"), *versions, f"{len(of_run)} from {place(of_run[0])}",
        ])  # fmt: skip
    return table(head, rows)


def ceilings(gpu: GpuRows) -> str:
    """What the device reached in each run."""
    rows = [
        [row.data["ceiling"], f"{digits(row.data['value'])} {row.data['unit']}", f"`{run[:8]}`", place(row)]
        for run in gpu.runs
        for row in gpu.ceilings[run].values()
    ]
    return table(["ceiling", "reached", "run", "row"], rows, ["reached"]) if rows else "No ceiling was measured."


def _worst_error(rows: Iterable[Row | None]) -> str:
    found = [row.data["error_units"] for row in rows if row is not None]
    return digits(max(found), 2) if found else "-"


def by_group(gpu: GpuRows) -> str:
    """A line for each group, arithmetic and op: ratios, rates, shares of the ceilings and errors."""
    head = ["group", "arithmetic", "op", "cases", "ratio", "least", "ahead", "TFLOP/s, most", "of the roof, median",
            "error", "peer's error", "row of the least"]  # fmt: skip
    rows: list[Cells] = []
    for (_, _, _), same in groupby(gpu.pairs, key=lambda pair: key(pair.case)):
        pairs = list(same)
        case, found = pairs[0].case, summarize(pairs)
        timed = [pair.timed for pair in pairs if pair.timed is not None]
        shares = [share for pair in pairs if (share := pair.share(pair.timed)) is not None]
        ratio = [cell(pairs), "-", "-"]
        if found is not None:
            ratio = [f"**{found.mean:.2f}**", f"{found.least.ratio:.2f}", percent(found.ahead / found.count)]
        rows.append([
            case.group, arithmetic(case), OPS[case.op], len(pairs), *ratio,
            digits(max(map(tflops, timed))) if timed else "-", percent(statistics.median(shares) if shares else None),
            _worst_error(timed), _worst_error(pair.peer for pair in pairs),
            place(found.least.timed) if found is not None and found.least.timed is not None else "-",
        ])  # fmt: skip
    return table(head, rows, head[3:-1])


def host(gpu: GpuRows) -> str:
    """Host time of a call by provider, over the cases that have one."""
    times: dict[str, list[float]] = {}
    for pair in gpu.pairs:
        for row in pair.rows:
            if "host_us" in row.data:
                times.setdefault(row.data["provider"], []).append(row.data["host_us"])
    rows = [
        [f"`{name}`", len(found), *(digits(float(np.quantile(found, q)), 2) for q in (0.2, 0.5, 0.8))]
        for name, found in sorted(times.items(), key=lambda item: (item[0] != OURS, item[0]))
    ]
    head = ["provider", "cases", "us per call, p20", "p50", "p80"]
    return table(head, rows, head[1:]) if rows else "Not measured."


def not_right(gpu: GpuRows) -> str:
    """Wrong and failed rows one by one; what was not run, counted by reason."""
    rows = [row for pair in gpu.pairs for row in pair.rows]
    bad = [
        [row.data["status"], f"`{row.data['provider']}`", row.data["name"], _reason(row), place(row)]
        for row in rows
        if row.data["status"] in ("WRONG", "error")
    ]
    rest = Counter(
        (row.data["status"], row.data["provider"], row.data["reason"])
        for row in rows
        if row.data["status"] in ("unavailable", "skipped")
    )
    parts = [table(["status", "provider", "case", "what", "row"], bad) if bad else "No wrong result and no failure."]
    if rest:
        counted = [[status, f"`{name}`", why, count] for (status, name, why), count in sorted(rest.items())]
        parts.append(table(["status", "provider", "why", "cases"], counted, ["cases"]))
    return "\n\n".join(parts)


def _reason(row: Row) -> str:
    error = row.data.get("error_units")
    words = [f"error {digits(error)} times the bound"] if error is not None else []
    return "; ".join([*words, *([row.data["reason"]] if "reason" in row.data else [])]).replace("\n", " ")


def regret(gpu: GpuRows) -> str:
    """What the cost model's choices cost against the measured best."""
    rows = [
        [data["name"], data["chosen"], digits(data["us_chosen"]), data["best"], digits(data["us_best"]),
         percent(data["us_chosen"] / data["us_best"] - 1), data["candidates"], place(row)]
        for row in gpu.of_kind("regret") for data in [row.data]
    ]  # fmt: skip
    head = ["case", "chosen", "us", "best", "us, best", "lost", "candidates", "row"]
    return table(head, rows, ["us", "us, best", "lost", "candidates"]) if rows else "Not measured."


PICTURES = {
    "ratio": "Time of the fastest right peer / ours, by shape",
    "squares": "TFLOP/s by size of square layers",
    "roofline": "Roofline with measured ceilings",
    "share": "Share of the measured roof",
    "host": "Host time of a call",
}


def overview(gpu: GpuRows, states: States, pictures: Path, page: Path, drawn: Iterable[str]) -> str:
    """One GPU's part of docs/benchmarks.md."""
    shown = "\n\n".join(picture(gpu, name, PICTURES[name], pictures, page) for name in drawn)
    sections: list[tuple[str, str]] = [
        ("Pictures", shown),
        ("Ratios", f"Every case with its rows: [{slug(gpu.gpu)}](benchmarks/{slug(gpu.gpu)}.md).\n\n{by_group(gpu)}"),
        ("Ceilings", ceilings(gpu)),
        ("Host time of a call", host(gpu)),
        ("Wrong, failed or not run", not_right(gpu)),
        ("Regret of the cost model", regret(gpu)),
        ("Runs", runs(gpu, states)),
    ]
    text = " ".join([f"{when(gpu)}.", *warnings(gpu, states), waiting(gpu.pairs)])
    return "\n\n".join([f"## {gpu.gpu}", text, *(f"### {name}\n\n{body}" for name, body in sections)])


def every_case(gpu: GpuRows) -> str:
    """The page that lists each case of one GPU with all its rows."""
    head = ["case", "provider", "kernel", "us (p20 to p80)", "TFLOP/s", "of the roof", "error", "host us", "graph us",
            "ratio", "row"]  # fmt: skip
    parts = [
        f"# Every case on {gpu.gpu}",
        "Written by `python -m bench.report`; [benchmarks](../benchmarks.md) says how to read it. "
        f"Rows are lines of files in bench/results/{slug(gpu.gpu)}/.",
    ]
    for group, pairs in groupby(gpu.pairs, key=lambda pair: pair.case.group):
        rows = [line for pair in pairs for line in _lines(pair)]
        parts += [f"## {group}", table(head, rows, head[3:-1])]
    return "\n\n".join(parts) + "\n"


def _lines(pair: Pair) -> list[Cells]:
    """A line for each provider that ran: ours first, then by time."""

    def order(row: Row) -> tuple[bool, bool, float]:
        return row.data["provider"] != OURS, not row.data["ours"], row.data.get("us_p50", math.inf)

    lines: list[Cells] = []
    for row in sorted((row for row in pair.rows if row.data["status"] not in ("unavailable", "skipped")), key=order):
        name = pair.case.name if not lines else ""
        lines.append([name, row.data["provider"], row.data["kernel"], *_numbers(pair, row), place(row)])
    return lines


def _numbers(pair: Pair, row: Row) -> list[str]:
    data: dict[str, Any] = row.data
    if data["status"] != "ok":
        return [f"**{data['status']}**", "-", "-", _reason(row), "-", "-", "-"]
    host, graph = (digits(data[name]) if name in data else "-" for name in ("host_us", "graph_us"))
    low, middle, high = (digits(data[name]) for name in ("us_p20", "us_p50", "us_p80"))
    ratio = f"**{pair.ratio:.2f}**" if row is pair.timed and pair.ratio is not None else ""
    return [
        f"{middle} ({low} to {high})", digits(tflops(row)), percent(pair.share(row)), digits(data["error_units"], 2),
        host, graph, ratio,
    ]  # fmt: skip
