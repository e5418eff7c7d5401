"""A run on the fake device: its rows, its budget, and what it says when something goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gpulinear.measure import ceilings, session
from gpulinear.measure.case import Case
from gpulinear.measure.records import validate
from gpulinear.measure.session import Summary, run
from gpulinear.measure.stopwatch import Rules

from .fakes import FakeDevice, FakeProvider
from .test_records import PROVENANCE

CASES = [Case("linear", "float32", tokens, 10, 8, group="odd", source="a fake") for tokens in range(1, 6)]
RULES = Rules(budget_s=0.05, warm_s=0.01, most_samples=40)


def go(
    device: FakeDevice,
    *providers: FakeProvider,
    cases: list[Case] | None = None,
    budget_s: float = 10.0,
    **options: Any,
) -> tuple[Summary, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    options = {"rules": RULES, "with_ceilings": False, "provenance": PROVENANCE, **options}
    found = run(CASES if cases is None else cases, providers, device, budget_s=budget_s, write=rows.append, **options)
    for row in rows:
        validate(row)
        assert row["run"] == found.run
    return found, rows


def test_a_row_for_each_case_and_provider_in_order() -> None:
    device = FakeDevice()
    found, rows = go(device, FakeProvider(device, "gpulinear", True, 8.0), FakeProvider(device, "peer"))
    assert [(row["name"], row["provider"]) for row in rows] == [
        (case.name, name) for case in CASES for name in ("gpulinear", "peer")
    ]
    assert found.counts == {"ok": 10} and found.exit_code == 0 and found.lost is None
    row = rows[0]
    assert row["us_p50"] == pytest.approx(8.0) and row["graph_us"] == pytest.approx(8.0)
    assert row["host_us"] == pytest.approx(3.0)
    assert row["case"] == CASES[0].to_json() and row["flops"] == 160 and row["least_bytes"] == 4 * (8 + 80 + 10)
    assert row["kernel"] == "kernel of gpulinear" and row["ours"] is True and row["same_bits"] is True
    assert row["sm_clock_mhz"] == 1000.0 and row["power_w"] == 300.0 and "temperature_c" not in row
    assert row["sets"] >= 2 and row["samples"] >= 5 and row["late_batches"] == 0
    assert {name: row[name] for name in PROVENANCE} == PROVENANCE


def test_every_status_has_its_row() -> None:
    device = FakeDevice()
    providers = [
        FakeProvider(device, "gpulinear", True),
        FakeProvider(device, "cannot", fault="why_not"),
        FakeProvider(device, "wrong", fault="wrong"),
        FakeProvider(device, "nan", fault="nan"),
        FakeProvider(device, "raises", fault="raises", at=30),
        FakeProvider(device, "other bits", fault="last bit", at=30),
    ]
    found, rows = go(device, *providers, cases=CASES[:1])
    assert [row["status"] for row in rows] == ["ok", "unavailable", "WRONG", "WRONG", "error", "ok"]
    assert all("reason" in row for row in rows[1:5]) and rows[5]["same_bits"] is False
    assert found.exit_code == 0  # nothing of ours
    assert len(found.wrong_peers) == 2 and found.wrong_peers[0].startswith("linear float32 1x10x8: wrong: the error is")


@pytest.mark.parametrize("fault, at", [("wrong", 1), ("nan", 1), ("last bit", 30), ("raises", 1), ("raises", 30)])
def test_anything_wrong_of_ours_is_the_exit_code(fault: str, at: int) -> None:
    device = FakeDevice()
    found, rows = go(
        device,
        FakeProvider(device, "gpulinear", True, fault=fault, at=at),
        FakeProvider(device, "peer"),
        cases=CASES[:2],
    )
    assert found.exit_code == 1
    assert [row["status"] for row in rows[1::2]] == ["ok", "ok"]
    notes = found.errors if fault == "raises" else found.wrong
    assert len(notes) == 2 and notes[0].startswith("linear float32 1x10x8: gpulinear: ")


def test_what_ours_cannot_do_is_no_failure() -> None:
    device = FakeDevice()
    found, rows = go(device, FakeProvider(device, "gpulinear", True, fault="why_not"), cases=CASES[:1])
    assert found.exit_code == 0 and rows[0]["status"] == "unavailable"


# ---- budget ----


def test_when_the_budget_is_spent_the_rest_is_skipped() -> None:
    device = FakeDevice()
    slow = FakeProvider(device, "gpulinear", True, device_us=30_000.0)  # five samples alone take 150 ms
    found, rows = go(device, FakeProvider(device, "peer"), slow, budget_s=0.4)
    measured = [row for row in rows if row["status"] == "ok"]
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert 2 <= len(measured) < 10 and len(measured) % 2 == 0
    assert [row["name"] for row in skipped] == [case.name for case in CASES[len(measured) // 2 :]] == found.skipped
    assert {row["provider"] for row in skipped} == {"gpulinear"} and skipped[0]["reason"] == "the budget is spent"
    assert found.counts["skipped"] == len(skipped) and found.exit_code == 0


def test_thousands_of_skipped_cases_are_a_number_and_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_SKIPPED_ROWS", 3)
    device = FakeDevice()
    found, rows = go(device, FakeProvider(device), budget_s=0.0)
    assert rows == [] and len(found.skipped) == 5
    found, rows = go(device, FakeProvider(device), budget_s=0.0, cases=CASES[:3])
    assert len(rows) == 3


def test_what_one_case_leaves_over_is_there_for_the_others() -> None:
    seen: list[float] = []

    device = FakeDevice()
    rules = Rules(budget_s=1.0, warm_s=0.1, most_samples=10**6, settled=-1.0)  # never settled

    class Watching(FakeProvider):
        def why_not(self, case: Case) -> str | None:
            seen.append(device.now())
            return "not this one" if case.tokens < 4 else None

    go(device, Watching(device, "peer", device_us=1000.0), budget_s=1.0, rules=rules)
    starts, end = seen[3:], device.now()
    # The first three took nothing: the fourth has half of a second, the fifth what is left; timing gets 0.6 of that.
    assert starts[0] == 0.0
    assert starts[1] == pytest.approx(0.3, abs=0.1) and end - starts[1] == pytest.approx(0.42, abs=0.1)


def test_the_share_of_a_case_bounds_its_warm_up_too() -> None:
    device = FakeDevice(clocks=lambda seconds: 1000.0 + 500.0 * (int(seconds * 1000) % 2))
    found, _ = go(device, FakeProvider(device), cases=CASES, budget_s=0.5, rules=Rules(budget_s=10.0, warm_s=2.5))
    assert not found.skipped and device.now() < 0.7
    assert found.unsettled == [case.name for case in CASES]


# ---- failures ----


def test_a_device_that_disappears_ends_the_run_with_what_it_has() -> None:
    device = FakeDevice()

    class Fragile(FakeProvider):
        def prepare(self, case: Case, sets: Any) -> Any:
            if case.tokens == 3:
                device.gone_after = device.operations + 50
            return super().prepare(case, sets)

    found, rows = go(device, FakeProvider(device, "gpulinear", True), Fragile(device, "fragile"))
    assert found.lost is not None and "stopped answering" in found.lost
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["error"] * 2 + ["skipped"] * 2
    assert all("the device is lost" in row["reason"] for row in rows[-2:])
    assert found.skipped == [case.name for case in CASES[3:]]


def test_a_row_that_cannot_be_written_ends_the_run() -> None:
    def full(row: dict[str, Any]) -> None:
        raise OSError("no space left")

    device = FakeDevice()
    with pytest.raises(OSError, match="no space left"):
        run(CASES, [FakeProvider(device)], device, budget_s=1.0, write=full, rules=RULES, with_ceilings=False)


def test_no_cases_and_no_providers() -> None:
    device = FakeDevice()
    assert go(device, FakeProvider(device), cases=[])[1] == []
    found, rows = go(device)
    assert rows == [] and found.exit_code == 0
    assert go(device, budget_s=0.0)[0].skipped == [case.name for case in CASES]


def test_progress_is_told() -> None:
    device = FakeDevice()
    told: list[tuple[int, int, str]] = []
    go(device, FakeProvider(device), cases=CASES[:2], progress=lambda *what: told.append(what))
    assert told == [(0, 2, CASES[0].name), (1, 2, CASES[1].name), (2, 2, "")]


# ---- ceilings ----


def test_ceilings_come_first_through_the_peers_for_the_kinds_of_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZES", (8,))
    monkeypatch.setattr(ceilings, "COPY_BYTES", 4000)
    device = FakeDevice()
    ours, peer = FakeProvider(device, "gpulinear", True, 1.0), FakeProvider(device, "peer")
    cases = [CASES[0], Case("linear", "float32", 4, 4, 4, precision="bf16x6"), Case("wgrad", "float64", 4, 4, 4)]
    found, rows = go(device, ours, peer, cases=cases, with_ceilings=True)
    named = [(row["ceiling"], row["unit"]) for row in rows if row["kind"] == "ceiling"]
    # A split precision is held against what it stands for and against the tensor cores that it is made of.
    kinds = ["matmul float32", "matmul bfloat16", "matmul float64"]
    assert named == [*((kind, "TFLOP/s") for kind in kinds), ("empty launch", "us")]
    assert [row["kind"] for row in rows[:4]] == ["ceiling"] * 4
    assert rows[0]["value"] == pytest.approx(2 * 8**3 / 10.0 * 1e-6)  # of the peer, though ours is faster
    # NumPy's copy takes no time on the fake device, so that it has no bandwidth.
    assert found.missing == ["copy: ZeroDivisionError: float division by zero"]


def test_the_kinds_of_products_that_a_precision_is_held_against() -> None:
    kinds = {
        p: session._arithmetic(Case("linear", "float32", 1, 1, 1, precision=p))
        for p in ("ieee", "tf32", "tf32x3", "bf16x6")
    }
    ieee, tf32, bfloat16 = ("float32", None), ("float32", "tf32"), ("bfloat16", None)
    assert kinds == {"ieee": [ieee], "tf32": [tf32], "tf32x3": [ieee, tf32], "bf16x6": [ieee, bfloat16]}


def test_a_device_that_disappears_under_the_ceilings_skips_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZES", (8,))
    device = FakeDevice(gone_after=30)
    found, rows = go(device, FakeProvider(device), with_ceilings=True)
    assert found.lost is not None and found.skipped == [case.name for case in CASES]
    assert {row["status"] for row in rows} == {"skipped"}
