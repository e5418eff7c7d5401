"""Writes what committed rows say into README, docs/benchmarks.md and docs/pictures: ``python -m bench.report [--check]``.

Reads bench/results/<gpu>/*.jsonl; a corrupt or misplaced row is refused. All it writes follows from those rows, the
bench's list of cases and how far the tree has moved from the commits of the rows. ``--check`` writes nothing and fails
if a committed page or picture says anything else. Exit codes: 0 done, 1 out of date or a row refused.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpulinear.errors import GpuLinearError
from gpulinear.measure.pairs import GpuRows, by_gpu
from gpulinear.measure.records import RecordError, read_all, slug

from . import tables
from .staleness import Age, age

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_STATED = re.compile(r"<!-- run ([0-9a-f]{32}) (\w+) -->")
_MADE_OF = re.compile(rb"sha256 of rows and drawing: ([0-9a-f]{64})")
_DRAWN_BY = re.compile(rb"Matplotlib v[^<,]*")


def ages(gpus: Sequence[GpuRows], root: Path) -> dict[str, Age]:
    """Run -> how far the tree at ``root`` has moved from its commit; each commit is asked for once."""
    known: dict[tuple[str, bool], Age] = {}
    found = {}
    for gpu in gpus:
        for run in gpu.begun:
            where = gpu.any_of(run)["commit"], gpu.any_of(run)["dirty"]
            if where not in known:
                known[where] = age(*where, root)
            found[run] = known[where]
    return found


def states(found: Mapping[str, Age], page: str) -> dict[str, str]:
    """Run -> state. Where git cannot tell (a copied tree, a shallow clone), what the committed page says."""
    stated = dict(_STATED.findall(page))
    return {run: stated.get(run, one.state) if one.state == "unknown" else one.state for run, one in found.items()}


def between(text: str, section: str, name: str) -> str:
    """``text`` with ``section`` between its markers; RecordError unless it has each once, in order."""
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise RecordError(f"{name} must hold {BEGIN} and behind it {END}, once each: the tables go between them")
    return text[: text.index(BEGIN)] + f"{BEGIN}\n{section}\n{END}" + text[text.index(END) + len(END) :]


def independent(results: Path) -> str:
    """The rows of the benchmark by other hands: which files, how many lines. What they say stands in them."""
    files = sorted(path for path in (results / "independent").rglob("*") if path.is_file())
    if not files:
        return f"{tables.NONE_YET.capitalize()} by the independent benchmark."
    rows = []
    for path in files:
        lines = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        rows.append([f"`{path.relative_to(results).as_posix()}`", lines])
    return tables.table(["file in bench/results", "lines"], rows, ["lines"])


def pages(
    root: Path, gpus: Sequence[GpuRows], found: Mapping[str, Age], pictures: Mapping[str, bytes]
) -> dict[Path, str]:
    """What each page must say: rows between its markers, its own text outside them."""
    readme, overview = root / "README.md", root / "docs" / "benchmarks.md"
    folder, results = root / "docs" / "pictures", root / "bench" / "results"
    text = overview.read_text(encoding="utf-8")
    state = states(found, text)
    parts = [tables.readme(gpus, state, folder, overview)] if not gpus else []
    for gpu in gpus:
        drawn = [name for name in tables.PICTURES if f"{slug(gpu.gpu)}/{name}-light.svg" in pictures]
        parts.append(tables.overview(gpu, state, folder, overview, drawn))
    parts += [
        f"## By other hands\n\n{independent(results)}",
        *(f"<!-- run {run} {one} -->" for run, one in state.items()),
    ]
    wanted = {
        readme: between(readme.read_text("utf-8"), tables.readme(gpus, state, folder, readme), readme.name),
        overview: between(text, "\n\n".join(parts), overview.name),
    }
    for gpu in gpus:
        wanted[root / "docs" / "benchmarks" / f"{slug(gpu.gpu)}.md"] = tables.every_case(gpu)
    return wanted


def same_picture(old: bytes, new: bytes) -> bool:
    """Equal bytes; of drawings by different matplotlibs, whose bytes may differ, equal origins."""
    if _DRAWN_BY.findall(old) == _DRAWN_BY.findall(new):
        return old == new
    return _MADE_OF.findall(old) == _MADE_OF.findall(new)


def draw(gpus: Sequence[GpuRows]) -> dict[str, bytes]:
    """File below docs/pictures -> SVG."""
    if not gpus:
        return {}
    from .pictures import draw as drawn  # matplotlib is only needed where there are rows

    return {f"{slug(gpu.gpu)}/{name}": data for gpu in gpus for name, data in drawn(gpu).items()}


def outdated(root: Path, wanted: Mapping[Path, bytes]) -> list[Path]:
    """Files that do not say what they must, and files of ours that must not be there."""
    found = []
    for path, data in wanted.items():
        old = path.read_bytes() if path.is_file() else None
        same = same_picture if path.suffix == ".svg" else bytes.__eq__
        if old is None or not same(old, data):
            found.append(path)
    ours = [*(root / "docs" / "pictures").glob("*/*.svg"), *(root / "docs" / "benchmarks").glob("*.md")]
    return found + sorted(path for path in ours if path not in wanted)


def write(path: Path, data: bytes | None) -> None:
    """Replace a file in one step; None removes it."""
    if data is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Parse the command line and write or check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is out of date")
    options = parser.parse_args(arguments)
    try:
        gpus = by_gpu(read_all(root / "bench" / "results"))
        pictures, found = draw(gpus), ages(gpus, root)
        wanted = {path: text.encode() for path, text in pages(root, gpus, found, pictures).items()}
    except (GpuLinearError, OSError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 1
    wanted |= {root / "docs" / "pictures" / name: data for name, data in pictures.items()}
    for gpu in gpus:
        print(f"{gpu.gpu}: {len(gpu.pairs)} cases from {len(gpu.runs)} runs")
    for run, one in found.items():
        if one.state != "current":
            print(f"run {run[:8]}: {one}")
    old = outdated(root, wanted)
    for path in old:
        print(
            f"{'out of date' if options.check else 'written' if path in wanted else 'removed'}: {path.relative_to(root)}"
        )
        if not options.check:
            write(path, wanted.get(path))
    if options.check and old:
        print("what is committed is not what the rows say: run python -m bench.report and commit what it writes")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    raise SystemExit(main())
