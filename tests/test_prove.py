"""The proof command's logic without a GPU: order, budget, failing and wrong parts, its exit code."""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench import golden, prove, prove_kernels, supervisor
from bench.budget import Clock, run_parts
from bench.prove_kernels import Case, Kernels
from gpulinear import ledger
from gpulinear.device import DeviceSpec
from gpulinear.measure import session
from gpulinear.plan import Options

from .measure.fakes import FakeDevice


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
    if prove.why_no_gpu() is None:
        pytest.fail("run this suite's GPU part through python -m bench.prove")
    assert prove.main(["--out", str(tmp_path / "out")]) == 3
    assert "nothing was measured" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


WHERE = {
    "gpu": "Fake H200", "driver": "13.2", "nvrtc": "13.5", "commit": "0123abc", "time": "2026-01-02T03:04:05+00:00"
}  # fmt: skip
NAMES = [
    "golden_bits", "correctness", "contract", "emulator", "check", "train", "segments", "hot_and_cold", "host_costs",
    "stream_rate", "foreign_cubins", "bench", "tuning", "sanitizers", "profile"
]  # fmt: skip


@pytest.fixture
def host_as_device(monkeypatch: pytest.MonkeyPatch, compiled: None) -> Iterator[None]:
    """The emulator stands in for the device: "CuPy" arrays are NumPy's."""
    fake = types.ModuleType("cupy")
    fake.__dict__.update({name: value for name, value in vars(np).items() if name[0] != "_" and name != "ndarray"})
    fake.__dict__["ndarray"] = type(None)  # no array is on the device, or the launch would look for one
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(prove_kernels.device, "live_spec", lambda _: DeviceSpec.preset("sm_90a"))
    monkeypatch.setattr(prove_kernels.check, "DTYPES", ("float32",))
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def test_the_parts_and_their_order(tmp_path: Path) -> None:
    parts = prove.parts(tmp_path, Kernels(), FakeDevice(), WHERE)
    assert [name for name, _, _ in parts] == NAMES
    assert sum(seconds for _, seconds, _ in parts) <= 570  # a command on a lent machine may take 600


def test_every_family_and_layout_is_held_against_float64(host_as_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    views = {name: gl.testing.VIEWS[name] for name in ("contiguous", "columns_stepped")}
    monkeypatch.setattr(prove_kernels.testing, "VIEWS", views)
    monkeypatch.setattr(prove_kernels, "PRECISIONS", ("bf16x6",))
    small = [(dtype, case._replace(shape=(5, 6, 7))) for dtype, case in prove_kernels.layout_cases()]
    monkeypatch.setattr(prove_kernels, "layout_cases", lambda: small)
    monkeypatch.setattr(prove_kernels, "SHAPES", ())
    kernels = Kernels()
    rows = list(kernels.correctness(Clock(100)))
    assert {row["status"] for row in rows} == {"ok"} and {row["view"] for row in rows} == set(views)
    families = {family for family, _, _ in kernels.seen.values()}
    assert families >= {"gemm_simt", "column_sum", "act_grad", "strided_copy", "split_planes", "gemm_wgmma"}
    assert families >= {"joint_gemm_simt", "joint_gemm_wgmma"}
    assert all(good for _, _, good in kernels.seen.values())

    def broken(*_: Any) -> Any:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(prove_kernels, "results_of", broken)
    assert {row["status"] for row in kernels.correctness(Clock(100))} == {"error"}
    assert not any(good for _, _, good in kernels.seen.values())


def test_tiles_are_held_against_each_other(host_as_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_kernels, "SHAPES", ((3, 5, 4),))
    rows = list(itertools.islice(Kernels()._tiles(), 3))
    assert [row["status"] for row in rows] == ["ok"] * 3 and [row["splits"] for row in rows] == [1, 2, 3]


def few(dtype: str, arch: str) -> list[Case]:
    (family, *_) = prove_kernels.families_of(dtype, arch)
    small = Options(family=family, tile=prove_kernels.legal_tiles(dtype, arch, family)["wgrad"][-1], splits=1)
    return [
        Case("linear", "misaligned", (5, 6, 7), None, small),
        Case("linear_backward", "contiguous", (5, 6, 7), "silu", small),
    ]


def test_the_emulator_is_held_against_the_device(host_as_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_kernels, "emulator_cases", few)
    kernels = Kernels()
    rows = list(kernels.emulator(Clock(100)))
    assert [(row["status"], row["same_bits"], row["same_kernels"]) for row in rows] == [("ok", True, True)] * 2
    (first, *_), results = rows, prove_kernels.results_of

    def flipped(case: Case, arguments: Any) -> Any:
        found = results(case, arguments)
        if gl.gemm.current_host_backend().arch == "sm_90a" and next(count) == 0:
            found[0].view(np.uint32)[0, 0] ^= 1
        return found

    count = iter(range(100))
    monkeypatch.setattr(prove_kernels, "results_of", flipped)
    wrong = list(kernels.emulator(Clock(100)))
    assert [row["status"] for row in wrong] == ["WRONG", "ok"] and first["op"] == wrong[0]["op"] == "linear"
    assert not all(good for _, _, good in kernels.seen.values())


def test_the_emulators_cases_reach_every_tile_and_split_k() -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        cases = prove_kernels.emulator_cases(dtype, "sm_90a")
        tiles = {case.options.tile for case in cases if case.precision is None}
        families = prove_kernels.families_of(dtype, "sm_90a")
        assert {case.options.family for case in cases if case.precision is None} == set(families)
        legal = [tiles for f in families for tiles in prove_kernels.legal_tiles(dtype, "sm_90a", f).values()]
        assert tiles == set().union(*legal)
        assert any(case.options.splits == 2 for case in cases)
        assert {case.op for case in cases} == {"linear", "dgrad", "wgrad", "bgrad", "linear_backward"}


class Everything:
    """The worker with fake parts on a fake GPU, run in this process; ``lost``: after a part the device is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path, status: str, lost: bool = False) -> None:
        monkeypatch.setattr(prove, "why_no_gpu", lambda: None)
        monkeypatch.setattr(prove, "_device", FakeDevice)
        monkeypatch.setattr(prove, "is_lost", lambda device: lost)
        monkeypatch.setattr(prove, "provenance", lambda: dict(WHERE))
        monkeypatch.setattr(prove, "LIMITS", {"one": 10.0, "two": 10.0})
        self.codes: list[int] = []
        self.deaths: dict[str, str] = {}

        def parts(out: Path, kernels: Kernels, device: Any, where: Any, cubins: Any) -> list[tuple[str, float, Any]]:
            def one(clock: Clock) -> Iterator[dict[str, Any]]:
                kernels.seen = {"a" * 64: ("gemm_simt", "sm_90a", True), "b" * 64: ("act_grad", "sm_90a", False)}
                yield {"status": status}

            return [("one", 10.0, one), ("two", 10.0, lambda clock: iter([{"status": "unavailable"}]))]

        def supervise(command: Any, limits: dict[str, float], budget: float, say: Any) -> supervisor.Outcome:
            assert command(list(limits), budget)[:4] == [sys.executable, "-m", "bench.prove", "--worker"]
            self.codes.append(prove.main(command(list(limits), budget)[3:]))
            return supervisor.Outcome(self.codes == [0] and not self.deaths, self.deaths, dict(WHERE))

        monkeypatch.setattr(prove, "parts", parts)
        monkeypatch.setattr(prove.supervisor, "supervise", supervise)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("WRONG", 1)])
def test_what_passed_goes_to_the_ledger(
    status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Everything(monkeypatch, tmp_path, status)
    assert prove.main(["--out", str(tmp_path)]) == code
    new = [e for e in ledger.read(tmp_path / "ledger.json") if e not in ledger.load()]
    assert new == [ledger.Entry("gemm_simt", "a" * 64, "sm_90a", "Fake H200", "13.2", "13.5", "2026-01-02", "0123abc")]
    assert rows_of(tmp_path / "prove.jsonl")[-1]["failed_families"] == ["act_grad"]


def test_what_an_earlier_process_saw_fail_stays_failed(tmp_path: Path) -> None:
    first = Kernels(tmp_path / "kernels.json")
    first.seen = {"a" * 64: ("gemm_simt", "sm_90a", False)}
    first.save()
    assert Kernels(tmp_path / "kernels.json").entries(WHERE) == []


def test_a_dead_worker_enters_nothing_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Everything(monkeypatch, tmp_path, "ok")
    everything.deaths["one"] = "no answer for 35 s; it was stopped"
    assert prove.main(["--out", str(tmp_path)]) == 1
    rows = rows_of(tmp_path / "prove.jsonl")
    assert [row["error"] for row in rows if row.get("status") == "error"] == ["no answer for 35 s; it was stopped"]
    assert rows[-1]["passed"] == 0 and ledger.read(tmp_path / "ledger.json") == ledger.load()


def test_a_lost_device_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Everything(monkeypatch, tmp_path, "ok", lost=True)
    prove.main(["--out", str(tmp_path)])
    assert everything.codes == [4] and [row["part"] for row in rows_of(tmp_path / "prove.jsonl")] == ["one", "ledger"]


def test_a_spent_budget_still_writes_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Everything(monkeypatch, tmp_path, "ok")
    assert prove.main(["--out", str(tmp_path), "--budget", "0"]) == 0
    rows = rows_of(tmp_path / "prove.jsonl")
    assert [(row["part"], row.get("status")) for row in rows] == [
        ("one", "skipped"), ("two", "skipped"), ("ledger", None)
    ]  # fmt: skip
    assert ledger.read(tmp_path / "ledger.json") == ledger.load()


def test_golden_bits_that_differ_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [golden.Verdict("mma.m8n8k4.f64", "sm_90a", outcome) for outcome in ("confirmed", "MISMATCH")]
    monkeypatch.setattr(prove.golden, "write", lambda *_: iter(verdicts))
    rows = list(prove.golden_bits(tmp_path, "sm_90a", WHERE)(Clock(10)))
    assert [row["status"] for row in rows] == ["ok", "MISMATCH"]


def test_one_part_can_be_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Everything(monkeypatch, tmp_path, "WRONG")
    assert prove.main(["--out", str(tmp_path), "--parts", "two"]) == 0  # unavailable is no failure
    assert [row["part"] for row in rows_of(tmp_path / "prove.jsonl")] == ["two", "ledger"]
    with pytest.raises(SystemExit) as stop:
        prove.main(["--out", str(tmp_path), "--parts", "three"])
    assert stop.value.code == 2


def test_the_contract_is_checked_for_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fake:
        def __init__(self, xp: Any, dtype: str, precision: str | None) -> None:
            asked.append((dtype, precision))

        def rows(self) -> Iterator[dict[str, Any]]:
            yield {"status": "ok"}

    monkeypatch.setattr(prove, "Contract", Fake)
    monkeypatch.setattr(prove, "_runs", lambda device, precision: precision == "tf32")
    rows = list(prove.contract(FakeDevice())(Clock(10)))
    dtypes = [("float64", None), ("float32", None), ("float16", None), ("bfloat16", None)]
    assert asked == [*dtypes, ("float32", "tf32")]
    assert [row["precision"] for row in rows if row["status"] == "unavailable"] == ["tf32x3", "bf16x6"]


class FakeProvider:
    """What the quick bench finds installed; ``closed`` counts."""

    def __init__(self, name: str, ours: bool) -> None:
        self.name, self.ours, self.closed = name, ours, 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(("code", "lost", "status"), [(0, None, "ok"), (1, None, "WRONG"), (0, "gone", "error")])
def test_the_quick_bench_writes_rows_and_says_how_it_went(
    code: int, lost: str | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [FakeProvider("gpulinear", True), FakeProvider("cupy.matmul", False)]
    monkeypatch.setattr(prove, "discover", lambda arch: (providers, {"cublasLt": "nvmath-python is not installed"}))
    seen: dict[str, Any] = {}

    def run(cases: Any, given: Any, device: Any, *, budget_s: float, write: Any, provenance: Any) -> Any:
        seen.update(cases=cases, budget=budget_s, provenance=provenance)
        summary = session.Summary("0" * 32, wrong=["x"] * code, lost=lost)
        summary.counts["ok"] = 3
        return summary

    monkeypatch.setattr(prove, "run", run)
    rows = list(prove.bench(FakeDevice(), tmp_path / "rows.jsonl", WHERE)(Clock(50)))
    assert [row["status"] for row in rows] == ["unavailable", status] and rows[1]["rows"] == {"ok": 3}
    assert len(seen["cases"]) > 20 and 40 < seen["budget"] < 50 and seen["provenance"] == WHERE
    assert [provider.closed for provider in providers] == [1, 1] and (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("failures", "lost", "status"), [([], None, "ok"), (["other bits"], None, "WRONG"), ([], "gone", "error")]
)
def test_tuning_writes_its_table_beside_the_rows(
    failures: list[str], lost: str | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    report = types.SimpleNamespace(results=[1, 2], unmeasured=[], failures=failures, lost=lost, regret=None)

    def run(*given: Any, quiet: bool) -> Any:
        seen.extend(given)
        return report

    at_hand = types.SimpleNamespace(spec=types.SimpleNamespace(arch="sm_90a"))
    monkeypatch.setattr(prove.cli_tune, "open_bench", lambda: at_hand)
    monkeypatch.setattr(prove.cli_tune, "run", run)
    (row,) = prove.tuning(tmp_path)(Clock(30))
    assert row["status"] == status and row["cases"] == 2
    cases, bench, budget, table, results = seen
    assert bench is at_hand and 20 < budget < 30 and len(cases) > 10
    assert (table, results) == (tmp_path / "tuning" / "sm_90a.json", tmp_path / "results")
