"""The proof command's logic without a GPU: order, budget, failing and wrong parts, its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import prove
from bench.budget import Clock, run_parts


class FakeTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_parts_run_in_order_and_stop_at_the_budget(tmp_path: Path) -> None:
    time = FakeTime()

    def slow(clock: Clock) -> Iterator[dict[str, Any]]:
        for index in range(10):
            time.now += 3
            yield {"index": index}

    parts = {"first": (5.0, slow), "second": (100.0, slow), "third": (5.0, slow)}
    assert run_parts(parts, tmp_path / "r.jsonl", 20.0, {"gpu": "fake"}, lambda _: None, time)
    rows = rows_of(tmp_path / "r.jsonl")
    assert [row["part"] for row in rows if "index" in row] == ["first"] * 2 + ["second"] * 5
    assert rows[-1] == {"part": "third", "status": "skipped", "reason": "budget", "gpu": "fake"}
    assert all(row["gpu"] == "fake" for row in rows)


def test_a_failing_part_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(clock: Clock) -> Iterator[dict[str, Any]]:
        yield {"index": 0}
        raise RuntimeError("the device disappeared")

    def fine(clock: Clock) -> Iterator[dict[str, Any]]:
        yield {"index": 1}

    parts = {"broken": (5.0, broken), "fine": (5.0, fine)}
    assert not run_parts(parts, tmp_path / "r.jsonl", 60.0, {}, lambda _: None)
    rows = rows_of(tmp_path / "r.jsonl")
    assert [row.get("status") for row in rows] == [None, "error", None]
    assert "disappeared" in rows[1]["error"]


def test_a_wrong_row_fails_the_proof(tmp_path: Path) -> None:
    def wrong(clock: Clock) -> Iterator[dict[str, Any]]:
        yield {"status": "WRONG", "error_ratio": float("nan")}

    assert not run_parts({"wrong": (5.0, wrong)}, tmp_path / "r.jsonl", 60.0, {}, lambda _: None)


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if prove.job.gpu_usable():
        pytest.fail("run this suite's GPU part through python -m bench.prove")
    assert prove.main(["--out", str(tmp_path / "out")]) == 3
    assert "nothing was measured" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
