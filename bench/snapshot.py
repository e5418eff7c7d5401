"""The committed figures of every kernel, and what a change makes of them: ``static_snapshot.json``.

One line per kernel, sorted, so that a diff reads; spills and the like are not in it, because no kernel may have any
(``Row.defects``). The figures hold for one version of NVRTC: another one allocates registers otherwise.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulinear.measure.schema import violations
from gpulinear.measure.static import Row

PATH = Path(__file__).with_name("static_snapshot.json")
FRESH = "python -m bench.static --write"

# Field of a row -> whether less of it is better.
FIGURES = {
    "registers": True,
    "smem": True,
    "blocks_per_sm": False,
    "warps_per_sm": False,
    "bank_ratio": True,
    "sector_ratio": True,
}
_COUNT = {"type": "integer", "minimum": 0}
_RATIO = {"type": "number", "minimum": 1}
_KERNEL = {
    "type": "object",
    "required": ["registers", "smem", "blocks_per_sm", "warps_per_sm", "limits", "work"],
    "properties": {
        **{name: _RATIO if name.endswith("_ratio") else _COUNT for name in FIGURES},
        "limits": {"type": "string"},
        "work": {"type": "string"},
        "loop": {"type": "object"},
    },
    "additionalProperties": False,
}

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The figures of each kernel by its name, and the version of NVRTC that they hold for."""

    nvrtc: str
    kernels: Mapping[str, Entry]


@dataclass(frozen=True)
class Change:
    """A figure of a kernel that is not what it was; it prints as "NAME: registers 128 -> 136 (+8)"."""

    kernel: str
    figure: str
    before: Any
    after: Any
    worse: bool

    def __str__(self) -> str:
        delta = ""
        if isinstance(self.before, int | float) and isinstance(self.after, int | float):
            delta = f" ({self.after - self.before:+.6g})"
        return f"{self.kernel}: {self.figure} {self.before} -> {self.after}{delta}"


def entry(row: Row) -> Entry:
    """What a snapshot keeps of a row: no figure that could not be had."""
    kept: dict[str, Any] = {name: getattr(row, name) for name in FIGURES}
    kept |= {"limits": ", ".join(row.limits), "work": row.work, "loop": row.loop}
    return {name: value for name, value in kept.items() if value is not None}


def _per_work(kernel: Entry) -> float:
    """Instructions of the hot loop for each that does the work: it does not change when a loop is unrolled further."""
    loop: Mapping[str, int] = kernel["loop"]
    work = sum(count for kind, count in loop.items() if kind.partition(".")[0] == kernel["work"])
    return round(sum(loop.values()) / max(1, work), 4)


def compare(name: str, before: Entry, after: Entry) -> list[Change]:
    """What differs between two entries of a kernel, in the figures that both have."""
    changes = []
    for figure, less_is_better in FIGURES.items():
        if figure in before and figure in after and before[figure] != after[figure]:
            worse = (after[figure] > before[figure]) == less_is_better
            changes.append(Change(name, figure, before[figure], after[figure], worse))
    if "loop" in before and "loop" in after and before["loop"] != after["loop"]:
        was, now = _per_work(before), _per_work(after)
        changes.append(Change(name, f"loop instructions per {after['work']}", was, now, now > was))
        for kind in sorted(set(before["loop"]) | set(after["loop"])):
            old, new = before["loop"].get(kind, 0), after["loop"].get(kind, 0)
            if old != new:
                changes.append(Change(name, f"{kind} in the loop", old, new, False))
    if before.get("limits") != after.get("limits"):
        changes.append(Change(name, "limited by", before.get("limits"), after.get("limits"), False))
    return changes


def verdict(snapshot: Snapshot, rows: Iterable[Row]) -> str:
    """What got worse, what else changed, and what to do about it; empty where nothing did.

    Every row must be of a kernel that the snapshot knows (``strangers``).
    """
    worse: list[str] = []
    other: list[str] = []
    for row in rows:
        changes = compare(row.name, snapshot.kernels[row.name], entry(row))
        bad = any(change.worse for change in changes)
        (worse if bad else other).extend(map(str, changes))
    lines = []
    if worse:
        lines += ["worse than the committed snapshot:", *(f"  {line}" for line in worse)]
        lines.append(f"If this is the price of something better, say so in the commit and run {FRESH}.")
    if other:
        lines += ["better than the committed snapshot, or only different:", *(f"  {line}" for line in other)]
        lines.append(f"Run {FRESH} and commit the file.")
    return "\n".join(lines)


def strangers(snapshot: Snapshot, names: Iterable[str]) -> str:
    """The kernels that are only in the snapshot, or only among ``names``, and what to do; empty where there are none."""
    there = set(names)
    lines = [f"{name}: new" for name in sorted(there - set(snapshot.kernels))]
    lines += [f"{name}: gone" for name in sorted(set(snapshot.kernels) - there)]
    return "\n".join([*lines, f"If that is meant, run {FRESH} and commit the file."]) if lines else ""


def load(path: Path = PATH) -> Snapshot:
    """Read a snapshot. ValueError, with every reason, for a file that is not one."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(data, dict) and isinstance(data.get("nvrtc"), str) and isinstance(data.get("kernels"), dict)):
        raise ValueError(f"{path} must hold an object with nvrtc (a text) and kernels (an object)")
    wrong = []
    for name, kernel in data["kernels"].items():
        found = list(violations(kernel, _KERNEL, _KERNEL, name))
        if not found:
            for kind, count in kernel.get("loop", {}).items():
                found += violations(count, _COUNT, _COUNT, f"{name}: {kind}")
        wrong += found
    if wrong:
        raise ValueError(f"{path} is not a snapshot: {'; '.join(wrong)}")
    return Snapshot(data["nvrtc"], data["kernels"])


def dump(rows: Iterable[Row]) -> str:
    """The text of a snapshot of ``rows``. ValueError where they do not agree on the version of NVRTC."""
    kernels = {row.name: row for row in rows}
    versions = {row.compiler for row in kernels.values()}
    if len(versions) != 1:
        raise ValueError(f"a snapshot holds for one version of NVRTC, got {sorted(versions)}")
    lines = [f"{json.dumps(name)}: {json.dumps(entry(kernels[name]))}" for name in sorted(kernels)]
    return f'{{"nvrtc": {json.dumps(versions.pop())}, "kernels": {{\n' + ",\n".join(lines) + "\n}}\n"


def save(rows: Iterable[Row], path: Path = PATH) -> None:
    """Write a snapshot, all of it or nothing."""
    text = dump(rows)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(path)
