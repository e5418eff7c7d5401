"""``gpulinear bench`` on a fake device with fake providers: rows, table, exit codes. Every time here is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpulinear import cli, cli_bench
from gpulinear.errors import BackendError
from gpulinear.measure import cases, ceilings, records, session, static, table, variants
from gpulinear.measure.case import Case
from gpulinear.measure.records import Row, read
from gpulinear.measure.session import Summary

from .fakes import FakeDevice, FakeProvider
from .test_ceilings import CopyModule
from .test_records import PROVENANCE

SMALL = (
    Case("linear", "float32", 9, 8, 7, group="square"),
    Case("wgrad", "float32", 9, 8, 7, group="square"),
    Case("linear", "bfloat16", 5, 8, 7, group="decode"),
    Case("backward", "float32", 9, 8, 7, group="backward"),
)
Run = Callable[..., tuple[int, str]]


class Closing(FakeProvider):
    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``run(args, providers=...)`` is (exit code, what it printed); results go below ``tmp_path``."""
    monkeypatch.setattr(cases, "universe", lambda: SMALL)
    monkeypatch.setattr(ceilings, "SIZES", (8,))
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(cli_bench, "why_no_gpu", lambda: None)
    # As installed, not in this checkout: without --out, rows go below the working directory.
    monkeypatch.setattr(cli_bench, "__file__", str(tmp_path / "site-packages" / "gpulinear" / "cli_bench.py"))
    monkeypatch.chdir(tmp_path)

    def go(*args: str, providers: Any = None, missing: dict[str, str] | None = None) -> tuple[int, str]:
        def opened(wanted: Any, families: Any) -> cli_bench.Bench:
            go.asked = (list(wanted), list(families))  # type: ignore[attr-defined]
            device = FakeDevice()
            device.xp = CopyModule(device)
            made = providers(device) if providers else standard(device)
            return cli_bench.Bench(device, made, missing or {}, dict(PROVENANCE))

        monkeypatch.setattr(cli_bench, "open_bench", opened)
        monkeypatch.setattr(sys, "argv", ["gpulinear", "bench", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out + printed.err

    return go


def standard(device: FakeDevice) -> list[FakeProvider]:
    return [
        Closing(device, "gpulinear", True, 8.0),
        Closing(device, "near", device_us=10.0),
        Closing(device, "far", device_us=30.0),
    ]


def rows_below(path: Path) -> list[dict[str, Any]]:
    return [row.data for file in sorted(path.rglob("*.jsonl")) for row in read(file)]


def test_a_complete_run_writes_valid_rows_and_prints_the_table(run: Run, tmp_path: Path) -> None:
    made: list[FakeProvider] = []

    def providers(device: FakeDevice) -> list[FakeProvider]:
        made.extend(standard(device))
        return made

    code, text = run(
        "--out", str(tmp_path / "results"), providers=providers, missing={"torch": "torch is not installed"}
    )
    assert code == 0, text
    (file,) = (tmp_path / "results").rglob("*.jsonl")
    assert file == records.results_path(tmp_path / "results", PROVENANCE)
    rows = rows_below(tmp_path)
    times = [row for row in rows if row["kind"] == "time"]
    assert [(row["name"], row["provider"]) for row in times] == [
        (case.name, name) for case in SMALL for name in ("gpulinear", "near", "far")
    ]
    assert {row["status"] for row in times} == {"ok"} and {row["kind"] for row in rows} == {"time", "ceiling"}
    assert all(provider.closed == 1 for provider in made)  # type: ignore[attr-defined]
    assert "square" in text and "decode" in text and "1.25" in text and "100 %" in text
    assert "torch is not installed" in text and str(len(rows)) in text and "WRONG" not in text


def test_the_tables_numbers(run: Run, tmp_path: Path) -> None:
    def providers(device: FakeDevice) -> list[FakeProvider]:
        class Slow(Closing):
            def prepare(self, case: Case, sets: Any) -> Any:
                self.device_us = 32.0 if case.op == "wgrad" else 8.0
                return super().prepare(case, sets)

        forced = Closing(device, "gpulinear:gemm_simt", True, 4.0)
        return [Slow(device, "gpulinear", True), forced, Closing(device, "near", device_us=16.0)]

    code, text = run("--json", "--out", str(tmp_path / "here.jsonl"), providers=providers)
    assert code == 0
    found = json.loads(text)
    assert found["measured"] is True and found["gpu"] == PROVENANCE["gpu"] and found["file"].endswith("here.jsonl")
    square = next(group for group in found["groups"] if group["group"] == "square")
    assert (square["cases"], square["timed"], square["with_peer"], square["ahead"]) == (2, 2, 2, 1)
    assert square["mean_ratio"] == pytest.approx((16 / 8 * 16 / 32) ** 0.5)
    assert square["least_ratio"] == pytest.approx(0.5)
    assert found["slowest"][0]["name"] == "wgrad float32 9x8x7" and found["slowest"][0]["peer"] == "near"
    assert [case["ratio"] for case in found["slowest"]] == sorted(case["ratio"] for case in found["slowest"])
    (family,) = found["families"]
    assert family["cases"] == 4 and family["mean_ratio"] == pytest.approx((2**3 * 8) ** 0.25) and family["faster"] == 4
    ceiling = {row["ceiling"]: row["value"] for row in rows_below(tmp_path) if row["kind"] == "ceiling"}
    ours = [r for r in rows_below(tmp_path) if r["kind"] == "time" and r["provider"] == "gpulinear"]
    shares = []
    for row in ours[:2]:
        roof = min(ceiling["matmul float32"], row["flops"] / row["least_bytes"] * ceiling["copy"] * 1e-3)
        shares.append(row["flops"] / row["us_p50"] * 1e-6 / roof)
    assert square["mean_share_of_ceiling"] == pytest.approx((shares[0] * shares[1]) ** 0.5)
    assert square["worst_error"] == max(row["error_units"] for row in ours[:2])


@pytest.mark.parametrize("fault, code, words", [("wrong", 1, "WRONG"), ("raises", 1, "failed"), ("nan", 1, "WRONG")])
def test_something_wrong_of_ours_is_exit_code_1(run: Run, fault: str, code: int, words: str) -> None:
    def providers(device: FakeDevice) -> list[FakeProvider]:
        return [Closing(device, "gpulinear", True, fault=fault), Closing(device, "near")]

    got, text = run(providers=providers)
    assert got == code and words in text and SMALL[0].name in text


def test_a_peer_that_is_wrong_is_told_but_costs_nothing(run: Run) -> None:
    code, text = run(
        providers=lambda device: [Closing(device, "gpulinear", True), Closing(device, "near", fault="wrong")]
    )
    assert code == 0 and "a peer is wrong" in text and "near" in text


def test_nothing_that_can_be_timed_is_exit_code_3(run: Run) -> None:
    code, text = run(providers=lambda device: [Closing(device, "gpulinear", True, fault="why_not")])
    assert code == 3 and "no provider could be timed" in text


@pytest.mark.parametrize("ours", [True, False])
def test_a_lost_device_is_exit_code_1_and_keeps_what_was_measured(run: Run, tmp_path: Path, ours: bool) -> None:
    def providers(device: FakeDevice) -> list[FakeProvider]:
        class Last(Closing):
            def prepare(self, case: Case, sets: Any) -> Any:
                self.fault = "device" if case.op == "backward" else ""
                return super().prepare(case, sets)

        return [Last(device, "gpulinear" if ours else "near", ours)]

    code, text = run("--out", str(tmp_path), providers=providers)
    assert code == 1 and "stopped:" in text
    assert sum(row.get("status") == "ok" for row in rows_below(tmp_path)) == 3


def test_an_interrupted_run_keeps_its_rows_and_says_so(run: Run, tmp_path: Path) -> None:
    def providers(device: FakeDevice) -> list[FakeProvider]:
        class Stopped(Closing):
            def why_not(self, case: Case) -> str | None:
                if case.op == "backward":
                    raise KeyboardInterrupt
                return None

        return [Stopped(device, "gpulinear", True)]

    code, text = run("--out", str(tmp_path), providers=providers)
    assert code == 130 and "interrupted" in text and "square" in text
    assert sum(row.get("status") == "ok" for row in rows_below(tmp_path)) == 3


# ---- where rows go, and going on from them ----


def test_without_out_rows_go_to_the_checkout_or_below_the_working_directory(run: Run, tmp_path: Path) -> None:
    code, _ = run("--limit", "1")
    assert code == 0 and len(list((tmp_path / "gpulinear-results").rglob("*.jsonl"))) == 1
    for part in (".git", "bench"):
        (tmp_path / "site-packages" / part).mkdir(parents=True)
    root = tmp_path / "site-packages" / "bench" / "results"
    assert cli_bench._results(None, PROVENANCE) == records.results_path(root, PROVENANCE)
    assert cli_bench._results(tmp_path / "x.jsonl", PROVENANCE) == tmp_path / "x.jsonl"


def test_resume_leaves_out_what_this_commit_has(run: Run, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "results"))
    assert run(*out, "--limit", "2")[0] == 0
    before = len(rows_below(tmp_path))
    code, text = run(*out, "--resume")
    new = [row for row in rows_below(tmp_path)[before:] if row["kind"] == "time"]
    assert code == 0 and {row["name"] for row in new} == {case.name for case in SMALL[2:]}
    assert "square" in text and "decode" in text  # the table is of all rows
    before = len(rows_below(tmp_path))
    code, _ = run(*out, "--resume")
    assert code == 0
    assert [row for row in rows_below(tmp_path)[before:] if row["kind"] == "time"] == []
    more = [*out, "--resume", "--limit", "1"]
    before = len(rows_below(tmp_path))
    assert run(*more, providers=lambda device: [*standard(device), Closing(device, "new", device_us=9.0)])[0] == 0
    assert {row["name"] for row in rows_below(tmp_path)[before:] if row["kind"] == "time"} == {SMALL[0].name}


def test_what_the_budget_cut_off_is_resumed(run: Run, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "results"))
    alone = lambda device: standard(device)[:1]  # noqa: E731 - so that its skipped row alone could stand for the case
    code, text = run(*out, "--budget", "0", providers=alone)
    assert code == 3 and all(row["status"] == "skipped" for row in rows_below(tmp_path) if row["kind"] == "time")
    assert "4 case(s)" in text
    assert run(*out, "--resume", providers=alone)[0] == 0
    assert sum(row.get("status") == "ok" for row in rows_below(tmp_path)) == 4


def test_rows_of_another_commit_are_not_gone_on_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ("--out", str(tmp_path / "here.jsonl"), "--limit", "1")
    assert run(*out)[0] == 0
    monkeypatch.setitem(PROVENANCE, "commit", "f" * 40)
    assert run(*out, "--resume")[0] == 0
    timed = [row["commit"][0] for row in rows_below(tmp_path) if row["kind"] == "time"]
    assert timed == ["f" if i >= 3 else timed[0] for i in range(6)] and timed[0] != "f"


def test_a_broken_file_is_refused_before_anything_is_measured(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "torn.jsonl"
    file.write_text('{"schema": 1')
    for more in ((), ("--resume",)):
        code, text = run("--out", str(file), *more)
        assert code == 2 and "torn.jsonl" in text
    assert file.read_text() == '{"schema": 1'


# ---- usage ----


def test_list_needs_no_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "why_no_gpu", lambda: pytest.fail("asked for a GPU"))
    code, text = run("--list")
    assert code == 0 and [line.split(maxsplit=2)[2] for line in text.splitlines()] == [case.name for case in SMALL]
    code, text = run("--list", "--json", "--ops", "wgrad, backward")
    assert code == 0 and [case["name"] for case in json.loads(text)] == [SMALL[1].name, SMALL[3].name]


def test_filters_and_names_reach_their_place(run: Run) -> None:
    code, text = run("--dtypes", "bfloat16", "--providers", "gpulinear,near", "--families", "gemm_simt")
    assert code == 0 and "decode" in text and "square" not in text
    assert run.asked == (["gpulinear", "near"], ["gemm_simt"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "args", [("--ops", "bgrad"), ("--tier", "huge"), ("--match", "nothing like it"), ("--shard", "9/2")]
)
def test_bad_usage_is_exit_code_2(run: Run, args: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*args)[0] == 2
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_unknown_provider_is_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpulinear.measure.cuda_device.CudaDevice", object)
    monkeypatch.setattr(cli_bench, "live_spec", lambda _: type("Spec", (), {"arch": "sm_90a"}))
    with pytest.raises(cli_bench.ArgumentError, match="rocblas"):
        cli_bench.open_bench(["rocblas"], [])


def test_bench_run_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", "--list", "--limit", "1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split(maxsplit=2)[2].strip() == cases.universe()[0].name


# ---- without a GPU ----


def test_without_a_gpu_it_prints_what_is_known_and_no_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "why_no_gpu", lambda: "the driver reports no GPU")
    asked: list[Any] = []

    def chosen(arch: str, families: Any, dtypes: Any) -> list[str]:
        asked.append((arch, families, dtypes))
        return ["one", "two", "three"]

    row = static.examine(next(iter(variants.variants("sm_90a", dtypes=("float32",)))), resources_only=True)
    monkeypatch.setattr(variants, "variants", chosen)
    monkeypatch.setattr(static, "examine_all", lambda kept: [row for _ in kept])
    code, text = run("--arch", "sm_80", "--dtypes", "bf16x6,float16", "--families", "gemm_simt", "--limit", "2")
    assert code == 0 and "the driver reports no GPU" in text and "No time was measured" in text
    assert asked == [("sm_80", ["gemm_simt"], ("float32", "float16"))]
    assert " us" not in text and "ratio" not in text.split("over the fewest")[0]
    code, text = run("--json", "--limit", "2")
    found = json.loads(text)
    assert code == 0 and found["measured"] is False and len(found["kernels"]) == 2


def test_an_unknown_family_is_bad_usage_without_a_gpu_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "why_no_gpu", lambda: "CuPy is not installed")
    code, text = run("--families", "gemm_magic")
    assert code == 2 and "gemm_simt" in text


def test_where_nothing_is_known_either_it_is_exit_code_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Any:
        raise BackendError("NVRTC is not installed")

    monkeypatch.setattr(cli_bench, "why_no_gpu", lambda: "CuPy is not installed")
    monkeypatch.setattr(variants, "variants", nothing)
    code, text = run()
    assert code == 3 and "NVRTC is not installed" in text


# ---- the table on its own ----


def test_errors_of_ours_and_of_the_fastest_right_peer_stand_beside_each_other() -> None:
    data = [
        {"provider": "gpulinear", "ours": True, "status": "ok", "error_units": 0.5, "us_p50": 4.0},
        {"provider": "near", "ours": False, "status": "ok", "error_units": 0.125, "us_p50": 5.0},
        {"provider": "far", "ours": False, "status": "ok", "error_units": 0.75, "us_p50": 9.0},
        {"provider": "wrong", "ours": False, "status": "WRONG", "error_units": 7.0},
    ]
    case = SMALL[0]
    head = {
        "kind": "time",
        "run": "1" * 32,
        "case": case.to_json(),
        "name": case.name,
        "flops": case.flops,
        "kernel": "",
    }
    rows = [Row({**PROVENANCE, **head, "least_bytes": case.least_bytes, **one}, Path("x"), 1) for one in data]
    (group,) = table.to_json(rows, None, {}, Path("x"))["groups"]
    assert (group["worst_error"], group["worst_error_of_peers"]) == (0.5, 0.125)
    assert group["mean_ratio"] == pytest.approx(5 / 4)


def test_a_run_without_rows_prints_what_is_missing() -> None:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    summary = Summary("0" * 32, wrong=[f"case {i}: gpulinear: NaN" for i in range(12)], missing=["copy: no memory"])
    table.show(Console(file=out), [], summary, {"torch": "sees no GPU"}, Path("x.jsonl"))
    text = out.getvalue()
    assert "2 more" in text and "case 9:" in text and "case 10:" not in text
    assert "copy: no memory" in text and "sees no GPU" in text


def test_the_default_budget_is_the_tiers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = session.run

    def spy(*args: Any, **kwargs: Any) -> Summary:
        seen.append(kwargs["budget_s"])
        return real(*args, **kwargs)

    monkeypatch.setattr(session, "run", spy)
    for args in (("--limit", "1"), ("--tier", "main", "--limit", "1"), ("--budget", "7", "--limit", "1")):
        assert run(*args)[0] == 0
    assert seen == [90.0, 480.0, 7.0]


def test_interrupted_rows_are_rows() -> None:
    assert cli_bench.Report(Path("x")).exit_code == 130
    done = cli_bench.Report(Path("x"), [Row({"kind": "ceiling"}, Path("x"), 0)], Summary("0" * 32))
    assert done.exit_code == 3
