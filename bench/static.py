"""What is known of each kernel without a GPU: ``python -m bench.static [--arch sm_90a] [--json | --write | --check]``.

Prints registers, spills, shared memory, occupancy, the mix of the hot loop and the emulator's counters. ``--write`` keeps
those of the snapshot's kernels in bench/static_snapshot.json, ``--check`` compares them with it. No time is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from gpulinear.config import family_of
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.gemm import DEFAULT_ARCH
from gpulinear.measure.static import Row, examine_all
from gpulinear.measure.static_table import show, to_json
from gpulinear.measure.variants import Variant, variants
from gpulinear.problem import Gemm

from . import snapshot

# Kept for these: every tile of the family that is planned for aligned operands, the first tile of the others, the small
# kernels. For other archs: the first tile of each kind, float32 only.
FULL = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Kept:
    """A kernel of the snapshot; ``first``: of its family, layout, dtype, precision and length of K; ``planned``: its
    family is the one that aligned operands are planned for."""

    variant: Variant
    first: bool
    planned: bool


def _is_planned(variant: Variant) -> bool:
    if not variant.layout:
        return True
    problem = variant.call.build(random=False).problems[0]
    return isinstance(problem, Gemm) and variant.config.family == family_of(problem, DeviceSpec.preset(variant.arch))


def kept(arch: str) -> list[Kept]:
    """The kernels of the snapshot for ``arch``. Of float16 the first tiles only: bfloat16 has the same, but for conversions."""
    chosen = []
    seen: set[tuple[object, ...]] = set()
    for variant in variants(arch):
        kind = (variant.config.family, variant.layout, variant.call.dtype, variant.precision, variant.long)
        one = Kept(variant, kind not in seen, _is_planned(variant))
        seen.add(kind)
        if arch in FULL:
            keep = one.first or (one.planned and variant.call.dtype != "float16")
        else:
            keep = one.first and variant.layout != "" and variant.call.dtype == "float32"
        if keep:
            chosen.append(one)
    return chosen


def _examine(chosen: list[Variant]) -> list[Row]:
    with Progress(console=Console(stderr=True)) as progress:
        return list(progress.track(examine_all(chosen), total=len(chosen), description="kernels"))


def _fail(problems: Iterable[str]) -> None:
    text = "\n".join(problem for problem in problems if problem)
    if text:
        sys.stdout.write(text + "\n")
        raise typer.Exit(1)


def _check(rows: list[Row]) -> None:
    known = snapshot.load(snapshot.PATH)
    if rows[0].compiler != known.nvrtc:
        sys.stdout.write(
            f"no kernel has a defect; figures are not compared: the snapshot is NVRTC {known.nvrtc}'s, here is "
            f"{rows[0].compiler}\n"
        )
        return
    _fail([snapshot.strangers(known, [row.name for row in rows])])
    _fail([snapshot.verdict(known, rows)])


def main(
    arch: Annotated[list[str] | None, typer.Option(help="Whose kernels to print; may be repeated.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only this kernel family; may be repeated.")] = None,
    view: Annotated[
        str, typer.Option(help="How operands lie, such as misaligned (gpulinear.testing.VIEWS).")
    ] = "contiguous",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write a fresh snapshot.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare every kernel with the snapshot.")] = False,
) -> None:
    """Print, keep or compare what is known of each kernel without a GPU."""
    if write or check:
        rows = _examine([one.variant for arch in ARCHS for one in kept(arch)])
        _fail(f"{row.name}: {defect}" for row in rows for defect in row.defects)
        if write:
            _fail(f"{row.name}: {note}" for row in rows for note in row.notes)
            snapshot.save(rows, snapshot.PATH)
        else:
            _check(rows)
        return
    rows = _examine([variant for one in arch or [DEFAULT_ARCH] for variant in variants(one, family, views=(view,))])
    if as_json:
        sys.stdout.write(json.dumps(to_json(rows), indent=2) + "\n")
    else:
        show(Console(), rows)


if __name__ == "__main__":
    typer.run(main)
