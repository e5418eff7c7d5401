"""The proof command's supervisor: workers that finish, hang, crash, never begin, or leave a device behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.supervisor import Outcome, supervise

LIMITS = {"first": 1.0, "second": 1.0, "third": 1.0}
SCRIPT = """
import os, sys, time
print('@where {"gpu": "Fake"}', flush=True)
for part in sys.argv[1].split(","):
    print(f"@begin {part}", flush=True)
    with open(sys.argv[2], "a") as log: log.write(part + "\\n")
    BODY
    print("a line", flush=True)
    print(f"@end {part} ok", flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Outcome, list[str], list[str]]]:
    def run(body: str, budget: float = 60.0) -> tuple[Outcome, list[str], list[str]]:
        script, log, said = tmp_path / "worker.py", tmp_path / "log", list[str]()
        script.write_text(SCRIPT.replace("BODY", body))

        def command(parts: list[str], seconds: float) -> list[str]:
            assert 0.0 <= seconds <= budget
            return [sys.executable, str(script), ",".join(parts), str(log)]

        outcome = supervise(command, LIMITS, budget, said.append, grace=0.5, starting=20.0)
        return outcome, log.read_text().split() if log.exists() else [], said

    return run


def test_a_worker_that_ends_is_not_followed_by_another(
    run: Callable[..., tuple[Outcome, list[str], list[str]]],
) -> None:
    outcome, log, said = run("pass")
    assert outcome == Outcome(True, {}, {"gpu": "Fake"})
    assert log == list(LIMITS) and said == ["a line"] * 3


def test_a_bad_part_fails_the_whole_and_the_rest_runs(run: Callable[..., tuple[Outcome, list[str], list[str]]]) -> None:
    outcome, log, _ = run("if part == 'second': print('@end second bad', flush=True); continue")
    assert not outcome.good and outcome.deaths == {} and log == list(LIMITS)


def test_a_part_that_hangs_is_stopped_and_the_next_one_runs(
    run: Callable[..., tuple[Outcome, list[str], list[str]]],
) -> None:
    outcome, log, _ = run("if part == 'second': time.sleep(60)")
    assert not outcome.good and list(outcome.deaths) == ["second"] and "no answer for 2 s" in outcome.deaths["second"]
    assert log == list(LIMITS)  # each part once


@pytest.mark.parametrize("how", ["os._exit(0)", "os._exit(4)", "os.kill(os.getpid(), 9)"])
def test_a_part_that_kills_its_process(how: str, run: Callable[..., tuple[Outcome, list[str], list[str]]]) -> None:
    outcome, log, _ = run(f"if part == 'first': {how}")
    assert not outcome.good and list(outcome.deaths) == ["first"] and "exit code" in outcome.deaths["first"]
    assert log == list(LIMITS)


def test_a_lost_device_after_a_part_costs_no_part(run: Callable[..., tuple[Outcome, list[str], list[str]]]) -> None:
    """The worker ends between two parts because its device no longer answers: not the part's own death."""
    outcome, log, _ = run("if part == 'first': print('@end first bad', flush=True); os._exit(4)")
    assert not outcome.good and outcome.deaths == {} and log == list(LIMITS)


def test_a_worker_that_never_begins_is_not_tried_for_ever(
    run: Callable[..., tuple[Outcome, list[str], list[str]]], tmp_path: Path
) -> None:
    outcome = supervise(lambda parts, left: [sys.executable, "-c", "import sys; sys.exit(3)"], LIMITS, 9.0, print)
    assert not outcome.good and outcome.deaths == {"start": "the worker ended with exit code 3"}
