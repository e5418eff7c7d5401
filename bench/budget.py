"""Runs parts of a measurement one after the other within a budget, keeping what each has found."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A part that could not be done at all is said to be so, and is no failure of what was measured.
HARMLESS = ("ok", "unavailable", "skipped")

Part = Callable[["Clock"], Iterator[dict[str, Any]]]


class Clock:
    """Seconds left of a part, by a clock that tests can replace."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds

    def left(self) -> float:
        """Seconds until the part should stop; negative when it is late."""
        return self._end - self._now()


def run_parts(
    parts: dict[str, tuple[float, Part]],
    out: Path,
    budget: float,
    provenance: dict[str, Any],
    say: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> bool:
    """Run parts in order, each for its share (seconds) of what is left; append every row to ``out`` as it comes.

    A part that fails is a row with its error, and the next one runs. Returns whether nothing failed.
    """
    whole = Clock(budget, now)
    good = True
    with open(out, "a", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps({**row, **provenance}) + "\n")
            file.flush()

        for name, (seconds, part) in parts.items():
            if whole.left() <= 0:
                write({"part": name, "status": "skipped", "reason": "budget"})
                say(f"{name}: skipped, the budget is spent")
                continue
            clock = Clock(min(seconds, whole.left()), now)
            rows = 0
            try:
                for row in part(clock):
                    rows += 1
                    good = good and row.get("status", "ok") in HARMLESS
                    write({"part": name, **row})
                    if clock.left() <= 0:
                        write({"part": name, "status": "ok", "stopped": "part budget"})
                        break
                say(f"{name}: {rows} rows")
            except Exception as error:  # a broken part must not cost the others
                good = False
                write({"part": name, "status": "error", "error": repr(error), "trace": traceback.format_exc()[-2000:]})
                say(f"{name}: failed with {error!r}")
    return good
