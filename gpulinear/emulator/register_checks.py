"""Checks of single registers at run time: read before written, and touched while a wgmma is in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpulinear.emulator.execute import Selection, Step, fetch_batch
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.program import Bound, Key, Rows
from gpulinear.emulator.schedule import Layout

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta


def checked(step: Step, bound: Bound, layout: Layout, tracked: frozenset[Key], in_place: frozenset[Key]) -> Step:
    """The step with the checks that its registers need; the step itself if they need none."""
    own = frozenset(key for item in bound.sources if isinstance(item, Rows) for key in item.keys)
    reads = tuple(sorted((bound.reads - own) & tracked))
    writes = tuple(sorted(bound.writes & tracked))
    # The wgmma that owns the rows judges them itself.
    touched = sorted(((bound.reads | bound.writes) - own) & in_place)
    if not reads and not writes and not touched:
        return step
    rows = [layout.rows[key] for key in touched]
    guard = None if bound.guard is None else fetch_batch([bound.guard], layout)
    instruction = bound.instruction

    def active(cta: Cta, sel: Selection) -> Any:
        if guard is None:
            return sel.threads
        return sel.threads[np.broadcast_to(guard(cta, sel), sel.threads.shape)]

    def run(cta: Cta, sel: Selection) -> None:
        threads = active(cta, sel)
        for key in reads:
            unwritten = ~cta.written[key][threads]
            if unwritten.any():
                Lanes(cta, threads, instruction).report(
                    "uninitialised register",
                    f"{key[1]} is read and was never written",
                    "give the variable a value on every path",
                    which=unwritten,
                )
        if rows:
            flying = cta.state("wgmma pending rows", dict[int, set[int]])
            for warpgroup in flying and np.unique(threads >> 7).tolist():
                pending = flying.get(warpgroup, set())
                if not pending.isdisjoint(rows):
                    names = ", ".join(key[1] for key, row in zip(touched, rows, strict=True) if row in pending)
                    Lanes(cta, threads, instruction).report(
                        "wgmma in flight",
                        f"{names} is touched while a wgmma.mma_async that uses it may still run",
                        "wgmma.commit_group and wgmma.wait_group before the registers are used",
                        which=threads >> 7 == warpgroup,
                    )
        step(cta, sel)
        for key in writes:
            cta.written[key][threads] = True

    return run
