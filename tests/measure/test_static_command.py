"""``python -m bench.static``: prints tables or JSON, writes a snapshot only of sound kernels, and fails on what is worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bench import snapshot, static
from gpulinear.measure.static import Row

from .test_static import made_up

OTHER = "column_sum float32 sm_80"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Row]:
    """Made-up kernels in the place of the real ones; the snapshot lies in ``tmp_path``."""
    found = [made_up(), made_up(name=OTHER, family="column_sum", layout="", tile="", arch="sm_80")]
    monkeypatch.setattr(static, "_examine", lambda chosen: found)
    monkeypatch.setattr(static, "variants", lambda *_, **__: [])
    monkeypatch.setattr(snapshot, "PATH", tmp_path / "snapshot.json")
    return found


def command(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(static.main)
    return CliRunner().invoke(app, arguments)


def test_tables_and_json(rows: list[Row]) -> None:
    shown = command()
    assert shown.exit_code == 0 and "NT 8x8x8/1x1 float32" in shown.output and "column_sum, sm_80" in shown.output
    assert [kernel["name"] for kernel in json.loads(command("--json").stdout)["kernels"]] == [rows[0].name, OTHER]


def test_what_was_written_is_what_is_checked(rows: list[Row]) -> None:
    assert command("--write").exit_code == 0
    assert sorted(snapshot.load(snapshot.PATH).kernels) == sorted(row.name for row in rows)
    assert command("--check").exit_code == 0

    rows[0] = made_up(registers=48)
    worse = command("--check")
    assert worse.exit_code == 1 and f"{rows[0].name}: registers 40 -> 48 (+8)" in worse.output
    rows[0] = made_up(name="new")
    strange = command("--check")
    assert strange.exit_code == 1 and "new: new" in strange.output and f"{made_up().name}: gone" in strange.output


def test_with_another_compiler_only_defects_count(rows: list[Row]) -> None:
    assert command("--write").exit_code == 0
    rows[:] = [made_up(registers=48, compiler="13.1.7")]
    checked = command("--check")
    assert checked.exit_code == 0 and "not compared" in checked.output and "13.1.7" in checked.output
    rows[:] = [made_up(spill_stores=4, compiler="13.1.7")]
    assert command("--check").exit_code == 1


@pytest.mark.parametrize("changes", [{"spill_loads": 4}, {"notes": ("no nvdisasm",)}])
def test_no_snapshot_of_a_defect_or_of_less_than_everything(rows: list[Row], changes: dict[str, object]) -> None:
    rows[0] = made_up(**changes)
    refused = command("--write")
    assert refused.exit_code == 1 and rows[0].name in refused.output and not snapshot.PATH.exists()
