"""Writes what the precisions of float32 err by: ``python -m bench.accuracy [--render]``.

Computes bench/accuracy.json (minutes) and writes docs/accuracy.md from it alone; ``--render`` does the second only.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from gpulinear.config import PROMOTE

from .accuracy_rows import ARCHS, IEEE, ONE_CHAIN, OTHERS, PROBLEMS, SHIPPED, M, N, Scheme, rows

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "bench" / "accuracy.json", ROOT / "docs" / "accuracy.md"
TEMPLATE = ROOT / "bench" / "accuracy.template.md"
WHAT = "errors in the emulator's tensor-core model, not hardware"

# ---- the page ----------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "NaN, Inf" if not math.isfinite(value) else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _errors(found: list[dict[str, Any]], problems: list[tuple[str, int]], schemes: tuple[Scheme, ...]) -> str:
    """One line for each problem: the error of ieee, and that of the others on both adders relative to it."""
    at = {(r["data"], r["k"], r["scheme"], r["arch"]): r for r in found}
    head = ["data", "K", IEEE.name, ONE_CHAIN.name, *(s.name for s in schemes)]
    body = []
    for data, k in problems:
        base = at[data, k, IEEE.name, "any"]["rms"]
        cells = [_number(at[data, k, ONE_CHAIN.name, "any"]["rms"] / base)]
        for scheme in schemes:
            cells.append(" / ".join(_number(at[data, k, scheme.name, arch]["rms"] / base) for arch in ARCHS))
        body.append([data, str(k), _number(base), *cells])
    return _table(head, body)


def _bounds(found: list[dict[str, Any]]) -> str:
    names = [IEEE.name, *(s.name for s in SHIPPED)]
    body = []
    for name in names:
        mine = [r for r in found if r["scheme"] == name and math.isfinite(r["of_bound"])]
        worst = max(mine, key=lambda r: float(r["of_bound"]))
        largest = max(mine, key=lambda r: float(r["max"]))
        body.append(
            [
                name,
                f"{worst['of_bound']:.3f}",
                f"{worst['data']}, K = {worst['k']}",
                _number(largest["max"]),
                largest["data"],
            ]
        )
    return _table(["precision", "largest error / bound", "on", "largest error, units of 2^-24", "on"], body)


def page(found: list[dict[str, Any]]) -> str:
    """docs/accuracy.md, from the rows alone."""
    benign, rest = PROBLEMS[:6], PROBLEMS[6:]
    return TEMPLATE.read_text().format(
        bounds=_bounds(found),
        benign=_errors(found, benign, SHIPPED + OTHERS),
        hostile=_errors(found, rest, SHIPPED),
        dots=M * N,
        promote=PROMOTE,
        segment=IEEE.segment,
    )


def read() -> list[dict[str, Any]]:
    """The committed rows; a number that is not finite is null in the file."""
    stored = json.loads(DATA.read_text())["rows"]
    return [{name: math.nan if value is None else value for name, value in r.items()} for r in stored]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", action="store_true", help="write only the page, from the committed rows")
    if not parser.parse_args().render:
        stored = [{name: finite(value) for name, value in r.items()} for r in rows()]
        lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in stored)
        DATA.write_text(f'{{"what": "{WHAT}", "rows": [\n{lines}\n]}}\n')
    PAGE.write_text(page(read()))


def finite(value: Any) -> Any:
    """None for a number that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
