"""Runs parts in a worker process that may hang or die: another one goes on after the part that did it.

A kernel that waits for ever cannot be stopped from inside its process, and after an illegal access every later call of
the process fails. The worker says on its output what it is doing, in lines of its own:

    @where JSON      provenance of its rows
    @begin PART
    @end PART ok|bad
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

STARTING_S = 60.0  # importing, a context, the first compilation
GRACE_S = 25.0  # beyond a part's own limit: parts look at their clock between rows


@dataclass
class Outcome:
    """What became of the parts. ``good``: every part ended and found nothing wrong. ``deaths``: part -> what happened."""

    good: bool = True
    deaths: dict[str, str] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)


def supervise(
    command: Callable[[list[str], float], list[str]],
    limits: Mapping[str, float],
    budget: float,
    say: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
    grace: float = GRACE_S,
    starting: float = STARTING_S,
) -> Outcome:
    """Run all parts of ``limits`` (seconds each) within ``budget`` seconds.

    ``command(parts, seconds)`` is the command line of a worker that runs these parts in this order.
    """
    outcome = Outcome()
    end = now() + budget
    todo = list(limits)
    while todo:
        done = _run(command(todo, max(0.0, end - now())), limits, say, outcome, grace, starting)
        if done is None:  # the worker ended by itself
            return outcome
        outcome.good = False
        if done not in todo:  # it never began: another one would not either
            return outcome
        todo = todo[todo.index(done) + 1 :]
    return outcome


def _run(
    command: list[str],
    limits: Mapping[str, float],
    say: Callable[[str], None],
    outcome: Outcome,
    grace: float,
    starting: float,
) -> str | None:
    """One worker. None when it came to its end, else the part after which the next one has to go on ("" for none)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    stream = process.stdout
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    part, running, patience = "", False, starting
    try:
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                return _died(outcome, part, running, f"no answer for {patience:.0f} s; it was stopped")
            if line is None:
                code = process.wait()
                if code in (0, 1) and not running:
                    return None
                return _died(outcome, part, running, f"the worker ended with exit code {code}")
            word, _, rest = line.partition(" ")
            if word == "@where":
                outcome.where = json.loads(rest)
            elif word == "@begin":
                part, running, patience = rest, True, limits.get(rest, 0.0) + grace
            elif word == "@end":
                running, patience = False, grace
                outcome.good = outcome.good and rest.endswith(" ok")
            else:
                say(line)
    finally:
        process.kill()
        process.wait()
        reader.join(5.0)
        stream.close()


def _died(outcome: Outcome, part: str, running: bool, reason: str) -> str:
    if running or not part:
        outcome.deaths[part or "start"] = reason
    return part
