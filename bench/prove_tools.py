"""NVIDIA's own tools on our kernels: compute-sanitizer over tiny shapes, and ncu on the slowest measured case.

Each tool runs in a process of its own with a time limit. A tool that is not installed, or may not read the counters, is a
row that says so: absent is not passed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .budget import Clock, Part

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
_FINDING = 9  # the exit code that we ask compute-sanitizer for
_KEPT = 60_000  # characters of a profile that are worth committing
_TINY = (sys.executable, "-m", "bench.tiny")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _finish(run: Run, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a command; what came of it as the fields of a row."""
    try:
        done = run(command, capture_output=True, text=True, check=False, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return {"status": "skipped", "reason": f"did not end within {seconds:.0f} s"}
    except OSError as error:
        return {"status": "error", "error": repr(error)}
    return {"code": done.returncode, "output": (done.stdout + done.stderr)}


def sanitizers(out: Path, run: Run = subprocess.run, which: Callable[[str], str | None] = shutil.which) -> Part:
    """compute-sanitizer over ``python -m bench.tiny``, one tool after the other; reports go to ``out``."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        tool = which("compute-sanitizer")
        if tool is None:
            yield {
                "tool": "compute-sanitizer",
                "status": "unavailable",
                "reason": "compute-sanitizer is not on the PATH",
            }
            return
        for name in SANITIZERS:
            command = [tool, "--tool", name, "--error-exitcode", str(_FINDING), *_TINY]
            result = _finish(run, command, clock.left())
            if "code" not in result:
                yield {"tool": name, **result}
                continue
            text = result["output"]
            (out / f"sanitizer-{name}.txt").write_text(text[-_KEPT:], encoding="utf-8")
            status = {0: "ok", _FINDING: "WRONG"}.get(result["code"], "error")
            yield {"tool": name, "status": status, "code": result["code"], "last_lines": text.strip().splitlines()[-3:]}

    return part


def slowest(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], float] | None:
    """The case (as JSON) on which the best peer is furthest ahead of ours, and ours / peer's time; None without one."""
    times: dict[str, dict[bool, list[float]]] = {}
    cases: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.get("kind") == "time" and row.get("status") == "ok":
            cases[row["name"]] = row["case"]
            times.setdefault(row["name"], {}).setdefault(row["ours"], []).append(row["us_p50"])
    behind = {name: min(t[True]) / min(t[False]) for name, t in times.items() if len(t) == 2}
    if not behind:
        return None
    name = max(behind, key=lambda n: behind[n])
    return cases[name], behind[name]


def profile(
    out: Path, bench: Path, run: Run = subprocess.run, which: Callable[[str], str | None] = shutil.which
) -> Part:
    """ncu on the slowest case of the rows in ``bench``; its text goes to ``out``."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        tool = which("ncu")
        if tool is None:
            yield {"tool": "ncu", "status": "unavailable", "reason": "ncu is not on the PATH"}
            return
        lines = bench.read_text(encoding="utf-8").splitlines() if bench.exists() else []
        found = slowest(json.loads(line) for line in lines)
        if found is None:
            yield {"tool": "ncu", "status": "unavailable", "reason": "no case was timed for ours and a peer"}
            return
        case, behind = found
        # The first two calls compile, load and warm; of the third one every kernel of ours is profiled.
        command = [tool, "--set", "full", "--kernel-name", "regex:^(gemm|act_grad|ordered|split|column)", "--launch-skip", "2",
                   "--launch-count", "2", *_TINY, "--case", json.dumps(case)]  # fmt: skip
        result = _finish(run, command, clock.left())
        row = {"tool": "ncu", "case": case, "ours_over_peer": behind}
        if "code" not in result:
            yield {**row, **result}
            return
        text = result["output"]
        if "ERR_NVGPUCTRPERM" in text:
            yield {**row, "status": "unavailable", "reason": "this user may not read the GPU's counters"}
            return
        (out / "profile.txt").write_text(text[:_KEPT], encoding="utf-8")
        yield {**row, "status": "ok" if result["code"] == 0 else "error", "code": result["code"]}

    return part
