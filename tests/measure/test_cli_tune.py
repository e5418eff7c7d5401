"""``gpulinear tune``: dry runs, exit codes, tables and rows, on a fake GPU with a made-up clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpulinear import cli_tune
from gpulinear.cli import app
from gpulinear.errors import ArgumentError, BackendError
from gpulinear.measure.records import read
from gpulinear.tuning import table

from .tuner_lab import CASE, LISTED, Lab, bench, no_tables

__all__ = ["no_tables"]  # a fixture for every test here


def command(*args: str, lab: Lab | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    if monkeypatch is not None and lab is not None:
        monkeypatch.setattr(cli_tune, "open_bench", lambda: bench(lab))
    return CliRunner().invoke(app, ["tune", *args])


SHAPE = ("--shape", "48x40x4096", "--dtypes", "float32")


def test_a_dry_run_lists_predictions_as_predictions() -> None:
    text = " ".join(command(*SHAPE, "--dry-run").output.split())
    assert "nothing was measured" in text and "predicted us" in text and "no claim of speed" in text
    found = json.loads(command(*SHAPE, "--dry-run", "--json", "--ops", "linear").output)
    assert found["measured"] is False
    (row,) = found["cases"]
    assert row["case"] == CASE.name and len(row["candidates"]) == len(LISTED)
    assert "bf16x6" in command("--shape", "48x40x4096", "--dry-run", "--json").output


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_tune, "why_no_gpu", lambda: "there is none")
    with pytest.raises(BackendError, match=r"needs a GPU: there is none\. --dry-run"):
        cli_tune.open_bench()
    found = command(*SHAPE)
    assert isinstance(found.exception, BackendError)  # which the entry point turns into exit code 3


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (("--shape", "48x40"), "TOKENSxOUTxIN"),
        (("--shape", "48x40x-1"), "TOKENSxOUTxIN"),
        (("--shape", "0x40x40"), "at least 1"),
        (("--shape", "4x4x4", "--tier", "quick"), "exclude each other"),
        (("--shape", "4x4x4", "--ops", "backward"), "ops must be among linear, dgrad, wgrad, got backward"),
        (("--shape", "4x4x4", "--dtypes", "int8"), "dtypes must be among"),
        (("--tier", "huge"), "tier must be among"),
    ],
)
def test_bad_usage_names_the_rule(args: tuple[str, ...], rule: str) -> None:
    found = command(*args, "--dry-run")
    assert isinstance(found.exception, ArgumentError) and rule in str(found.exception)


def test_the_winners_go_to_the_users_table_and_the_rows_to_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(times={0: 60.0, 2: 40.0})
    found = command(*SHAPE, "--out", str(tmp_path / "results"), lab=lab, monkeypatch=monkeypatch)
    assert found.exit_code == 0, found.output
    assert "median 50.0 %" in found.output and "3 entries written" in found.output
    path = table.user_path("sm_90a")
    assert path is not None
    written = table.read(path)
    assert written is not None and {entry.op for entry in written.entries} == {"linear", "dgrad", "wgrad"}
    (file,) = (tmp_path / "results").glob("a-fake-gpu/2026-01-02-0000000.jsonl")
    assert [row.data["kind"] for row in read(file)] == ["regret"] * 3
    assert len({row.data["run"] for row in read(file)}) == 1


def test_shipping_writes_the_packages_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command(*SHAPE, "--ship", "--json", lab=Lab(), monkeypatch=monkeypatch)
    assert found.exit_code == 0
    assert json.loads(found.stdout)["table"] == str(table.shipped_path("sm_90a"))
    assert table.read(table.shipped_path("sm_90a")) is not None
    user = table.user_path("sm_90a")
    assert user is not None and not user.exists()


def test_wrong_bits_are_reported_and_fail_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command(*SHAPE, lab=Lab(wrong={1}), monkeypatch=monkeypatch)
    assert found.exit_code == 1 and "WRONG" in found.output and LISTED[1].name in found.output


def test_a_lost_device_is_reported_and_what_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()

    def vanish() -> None:
        if lab.device.released == 1:
            lab.device.gone_after = 0

    lab.on_call = vanish
    found = command(*SHAPE, lab=lab, monkeypatch=monkeypatch)
    assert found.exit_code == 1 and "stopped" in found.output and "1 entries written" in found.output
    path = table.user_path("sm_90a")
    assert path is not None
    kept = table.read(path)
    assert kept is not None and len(kept.entries) == 1


def test_a_table_that_cannot_be_added_to_is_said_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    path = table.user_path("sm_90a")
    assert path is not None
    path.parent.mkdir()
    path.write_text("my notes")
    lab = Lab()
    found = command(*SHAPE, lab=lab, monkeypatch=monkeypatch)
    assert isinstance(found.exception, ArgumentError) and str(path) in str(found.exception)
    assert not lab.calls and path.read_text() == "my notes"


def test_a_spent_budget_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command(*SHAPE, "--budget", "0", lab=Lab(), monkeypatch=monkeypatch)
    assert found.exit_code == 0 and found.output.count("not measured") == 3 and "0 entries" in found.output
