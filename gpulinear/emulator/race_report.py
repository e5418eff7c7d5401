"""The words of the race detector: who accessed what, where, and what would order the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.race_access import ATOMIC, READ, WRITE, Access

if TYPE_CHECKING:
    from gpulinear.emulator.race import SharedRaces

Array = npt.NDArray[Any]

_NOW = {READ: "reads", WRITE: "writes", ATOMIC: "atomically updates"}
_BEFORE = {READ: "read", WRITE: "wrote", ATOMIC: "atomically updated"}


def column_of(access: Access, row: int) -> int:
    """The column that did a row of an access."""
    return access.columns if isinstance(access.columns, int) else int(access.columns[row])


def threads_of(clocks: Clocks, access: Access, rows: Array) -> tuple[int, ...]:
    """The threads (in their CTA) that issued rows of an access, the first ones."""
    issuers = access.issuers[:1] if access.together else access.issuers[rows]
    return tuple(int(t) for t in np.unique(issuers % clocks.threads)[:8])


def report_race(
    races: SharedRaces, access: Access, other: Access, mine: Array, theirs: Array, addresses: Array
) -> None:
    """Rows ``mine`` of an access race with rows ``theirs`` of an earlier one at these addresses."""
    clocks = races.clocks
    column, earlier = column_of(access, int(mine[0])), column_of(other, int(theirs[0]))
    address = int(addresses[0])
    message = (
        f"{clocks.describe(column).name} {_NOW[access.kind]} shared memory that {clocks.describe(earlier).name} "
        f"{_BEFORE[other.kind]} at {other.instruction.where()}, and nothing orders the two"
    )
    fix = _fix(clocks, access, int(mine[0]), earlier)
    threads = threads_of(clocks, access, mine)
    count = len(np.unique(mine))
    races.report.add("shared race", message, fix, access.instruction, races.cta, threads, address, count)


def _fix(clocks: Clocks, access: Access, row: int, earlier: int) -> str:
    if earlier >= clocks.agents:
        return f"missing wait: {clocks.describe(earlier).wait}, before this access"
    issuer = int(access.issuers[0 if access.together else row])
    if issuer // clocks.threads != earlier // clocks.threads:
        return "missing cluster synchronisation between the two: barrier.cluster.arrive + wait, or a remote mbarrier"
    if access.by_thread and issuer >> 5 == earlier >> 5 and clocks.threads % 32 == 0:
        return "missing __syncwarp() (bar.warp.sync) between the two: lanes of one warp do not run in lockstep"
    between = "the earlier access and the issue of this operation" if not access.by_thread else "the two"
    return f"missing __syncthreads() (bar.sync), or arrive and wait on an mbarrier, between {between}"


def report_conflict(races: SharedRaces, access: Access, mine: Array, theirs: Array, addresses: Array) -> None:
    """Two rows of one write write the same byte."""
    clocks = races.clocks
    first, second = (clocks.describe(column_of(access, int(rows[0]))).name for rows in (mine, theirs))
    races.report.add(
        "same-instruction write conflict",
        f"{first} and {second} write the same byte of shared memory in one instruction: which value stays is undefined",
        "let one thread write it, or use an atomic",
        access.instruction,
        races.cta,
        threads_of(clocks, access, np.concatenate([mine[:1], theirs[:1]])),
        int(addresses[0]),
        len(np.unique(mine)),
    )
