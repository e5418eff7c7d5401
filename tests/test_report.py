"""The report: what it takes from rows, what it refuses, and that what is committed is what the rows say.

All rows here are fakes of a GPU that does not exist.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import report, staleness, tables
from gpulinear.measure.case import Case
from gpulinear.measure.cases import GROUPS, select
from gpulinear.measure.pairs import GpuRows, by_gpu, summarize
from gpulinear.measure.records import Recorder, RecordError, read_all, results_path

from .report_rows import (
    BEHIND,
    CASE,
    FIRST,
    LATER,
    PROVENANCE,
    ceiling,
    everything,
    gpu,
    only,
    placed,
    row,
    wrong,
)

# Ratios


def test_a_ratio_is_the_fastest_right_peers_time_by_ours() -> None:
    pair = only(gpu(row(us=10), row("torch", 25), row("cupy.matmul", 20), wrong("cublasLt")))
    assert pair.peer is not None and pair.peer.data["provider"] == "cupy.matmul"
    assert pair.ratio == 2


def test_forced_kernels_are_neither_ours_nor_peers() -> None:
    pair = only(gpu(row(us=10), row("gpulinear:gemm_mma", 1), row("torch", 20)))
    assert pair.ratio == 2
    assert only(gpu(row("gpulinear:gemm_mma", 1), row("torch", 20))).ratio is None


def test_ratios_are_formed_within_a_run_only() -> None:
    pair = only(gpu(row(us=10), row("torch", 20), row(us=40, **LATER)))
    assert pair.timed is not None and pair.timed.data["us_p50"] == 40
    assert pair.peer is None and pair.ratio is None
    assert only(gpu(row("torch", 20), row(us=10, **LATER))).ratio is None


def test_the_newest_run_counts_whatever_the_order_of_the_rows() -> None:
    rows = [row(us=40, **LATER), row("torch", 20, **LATER), row(us=10), row("torch", 20)]
    for order in (rows, rows[::-1]):
        assert only(gpu(*order)).ratio == 0.5


def test_a_run_that_did_not_try_ours_does_not_hide_one_that_did() -> None:
    assert only(gpu(row(us=10), row("torch", 20), row(us=None, **LATER), row("torch", 50, **LATER))).ratio == 2
    assert only(gpu(row(us=10), row("torch", 20), row("torch", 50, **LATER))).ratio == 2
    assert only(gpu(row(us=None), row("torch", 20, **LATER))).ours is None


def test_a_newer_wrong_result_replaces_an_older_right_one() -> None:
    pair = only(gpu(row(us=10), row("torch", 20), wrong(**LATER), row("torch", 20, **LATER)))
    assert pair.ratio is None and pair.timed is None
    assert "**1 WRONG**" in tables.cell([pair])


def test_a_wrong_peer_is_no_peer() -> None:
    assert only(gpu(row(us=10), wrong("torch"))).ratio is None


def test_summaries_are_geometric() -> None:
    cases = [replace(CASE, tokens=tokens) for tokens in (1, 2, 3, 4)]
    rows = [row(us=8, case=case) for case in cases[:3]]
    rows += [row("torch", us, case) for us, case in zip((1, 64, 8, 5), cases, strict=True)]
    found = summarize(gpu(*rows).pairs)
    assert found is not None
    assert (found.count, found.ahead, found.least.ratio) == (3, 2, 0.125)
    assert found.mean == pytest.approx(1, rel=2**-50)  # exp(log 1/8 + log 8): a few roundings
    assert summarize(gpu(row("torch", 3)).pairs) is None


def test_two_gpus_are_never_in_one_table() -> None:
    rows = placed([row(), row(gpu="Other Fake GPU")])
    with pytest.raises(RecordError, match="one GPU, got rows of Fake GPU, Other Fake GPU"):
        GpuRows(rows)
    with pytest.raises(RecordError, match="rows of none"):
        GpuRows([])
    assert [found.gpu for found in by_gpu(rows)] == ["Other Fake GPU", "Fake GPU"]
    assert all(len(found.rows) == 1 for found in by_gpu(rows))


def test_the_gpu_with_the_newest_row_comes_first() -> None:
    assert [g.gpu for g in by_gpu(placed([row(gpu="B"), row(gpu="A", **LATER), row(gpu="C")]))] == ["A", "C", "B"]


# The roof


def test_the_roof_is_of_the_same_run_and_the_lower_of_two() -> None:
    flops, moved = CASE.flops, CASE.least_bytes
    rows = [row(us=10), row(us=10, **LATER), ceiling("copy", 1000.0, "GB/s", **LATER)]
    low = only(gpu(*rows, ceiling("matmul bfloat16", 64.0, **LATER)))
    assert low.roof == 64 and low.share(low.timed) == flops / 10 * 1e-6 / 64
    high = only(gpu(*rows, ceiling("matmul bfloat16", 1e6, **LATER)))
    assert high.roof == flops / moved * 1000 * 1e-3
    assert only(gpu(*rows, ceiling("matmul bfloat16", 64.0))).roof is None
    assert only(gpu(*rows, ceiling("matmul float32", 64.0, **LATER))).roof is None
    assert low.share(None) is None


def test_a_split_precisions_ceiling_is_its_products() -> None:
    case = Case("linear", "float32", 64, 64, 64, precision="bf16x6")
    rows = [
        row(case=case),
        ceiling("copy", 1e9, "GB/s"),
        ceiling("matmul float32", 10.0),
        ceiling("matmul bfloat16", 60.0),
    ]
    assert only(gpu(*rows)).roof == 10
    assert only(gpu(*rows[:3])).roof is None


# Words


@pytest.mark.parametrize(
    ("value", "words"), [(1234.5, "1234"), (123.45, "123"), (12.345, "12.3"), (0.001234, "0.00123"), (0, "0")]
)
def test_three_digits_and_no_exponent(value: float, words: str) -> None:
    assert tables.digits(value) == words


def test_cells_say_what_there_is_not() -> None:
    def words(*rows: dict[str, Any]) -> str:
        return tables.cell(gpu(*rows).pairs)

    unavailable = {**row(us=None), "status": "unavailable", "reason": "no such kernel"}
    assert words(row(us=10), row("torch", 20)) == "**2.00** (1 of 1)"
    assert words(row()) == "no peer"
    assert words(unavailable, row("torch", 20)) == "no kernel yet"
    assert words(row(us=None), row("torch", 20)) == "not measured"
    assert words(wrong(), row("torch", 20)) == "**1 WRONG**"
    assert words({**row(us=None), "status": "error"}, row("torch", 20)) == "**1 WRONG**"
    assert tables.cell([]) == "not measured"


def test_what_waits_is_named() -> None:
    main = select("main")
    squares = [case for case in main if case.group == "square"]
    words = tables.waiting(gpu(row(case=squares[0]), row(us=None, case=squares[1])).pairs)
    assert f"`square` (1 of {len(squares)} cases)" in words
    assert all(f"`{group}`" in words for group in GROUPS)
    assert tables.waiting(gpu(*(row(case=case) for case in main)).pairs) == "Every case of the main tier is measured."


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert tables.table(["a"], [["x|y"]], ["a"]) == "| a |\n| ---: |\n| x\\|y |"


def test_each_number_names_its_row() -> None:
    found = gpu(row("torch", 20), row(us=10), row("gpulinear:gemm_mma", 4), wrong("cublasLt"))
    lines = [line for line in tables.every_case(found).splitlines() if "0123456.jsonl:" in line]
    assert [line.rsplit(":", 1)[1] for line in lines] == ["2` |", "3` |", "1` |", "4` |"]
    by_place = {line.rsplit("`", 2)[1]: line for line in lines}
    assert set(by_place) == {f"2026-01-02-0123456.jsonl:{n}" for n in (1, 2, 3, 4)}
    assert "**2.00**" in by_place["2026-01-02-0123456.jsonl:2"]
    assert "**WRONG**" in by_place["2026-01-02-0123456.jsonl:4"]
    assert sum("**2.00**" in line for line in lines) == 1
    assert "`2026-01-02-0123456.jsonl:2`" in tables.by_group(found)


def test_wrong_and_unavailable_rows_are_listed() -> None:
    unavailable = {**row("cublasLt", None), "status": "unavailable", "reason": "nvmath is not installed"}
    words = tables.not_right(gpu(row(), wrong("torch", error_units=7.0), unavailable))
    assert "| WRONG | `torch` |" in words and "error 7.00 times the bound; NaN in 3 outputs" in words
    assert "| unavailable | `cublasLt` | nvmath is not installed | 1 |" in words
    assert "No wrong result" in tables.not_right(gpu(row()))


def test_the_other_tables() -> None:
    best = {"chosen": "gemm_simt 1x1", "us_chosen": 3.0, "best": "gemm_simt 2x2", "us_best": 2.0, "candidates": 4}
    regret = {
        "schema": 1,
        "kind": "regret",
        "run": FIRST,
        "case": CASE.to_json(),
        "name": CASE.name,
        **best,
        **PROVENANCE,
    }
    found = gpu(row(host_us=7.0), row("torch", 20, host_us=5.0), ceiling("copy", 123.0, "GB/s"), regret)
    assert "| 50 % | 4 |" in tables.regret(found)
    assert "| `gpulinear` | 1 | 7.0 | 7.0 | 7.0 |" in tables.host(found)
    assert "| copy | 123 GB/s |" in tables.ceilings(found)
    assert f"| `{FIRST[:8]}` | 2026-01-02 03:04 | `0123456` | stale |" in tables.runs(found, {FIRST: "stale"})
    bare = gpu(row())
    assert tables.regret(bare) == tables.host(bare) == "Not measured." and "No ceiling" in tables.ceilings(bare)


# Age


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=fake", "-c", "user.email=fake@example.invalid"]
    command = ["git", "-C", str(where), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    """A repository, and its first commit."""
    for name in (
        "kernels/gemm.cuh",
        "gpulinear/planner.py",
        "gpulinear/cli.py",
        "gpulinear/emulator/isa/a.py",
        "README.md",
    ):
        put(tmp_path, name, name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path, git(tmp_path, "rev-parse", "HEAD")


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("kernels/gemm.cuh", "stale"), ("gpulinear/planner.py", "stale"), ("gpulinear/cli.py", "current"),
        ("gpulinear/emulator/isa/a.py", "current"), ("README.md", "current"),
    ],
)  # fmt: skip
def test_only_what_a_time_depends_on_makes_a_row_stale(
    name: str, state: str, commit: bool, checkout: tuple[Path, str]
) -> None:
    root, first = checkout
    assert staleness.age(first, False, root).state == "current"
    put(root, name, "changed")
    if commit:
        git(root, "commit", "-q", "-a", "-m", "second")
    found = staleness.age(first, False, root)
    assert found.state == state
    if state == "stale":
        assert found.files == (name,) and found.commits == int(commit)
        assert str(found) == f"stale: 1 files differ ({name}), {int(commit)} commits since"


def test_what_git_cannot_tell(checkout: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, first = checkout
    assert staleness.age("f" * 40, False, root).state == staleness.age("unknown", False, root).state == "unknown"
    assert staleness.age(first, True, root).state == "dirty"
    monkeypatch.setenv("PATH", str(root))
    assert staleness.age(first, False, root).state == "unknown"


# Files


def write_rows(root: Path, rows: Iterable[dict[str, Any]]) -> None:
    for data in rows:
        with Recorder(results_path(root / "bench" / "results", data)) as recorder:
            recorder.write(data)


@pytest.fixture
def tree(checkout: tuple[Path, str]) -> Path:
    """A checkout with empty markers."""
    root, _ = checkout
    for name in ("README.md", "docs/benchmarks.md"):
        put(root, name, f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    files = [root / "README.md", *(root / "docs").rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


def test_without_rows_it_says_that_nothing_was_measured(tree: Path) -> None:
    assert report.main([], tree) == 0
    for name in ("README.md", "docs/benchmarks.md"):
        text = (tree / name).read_text()
        assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
        assert "nothing has been measured yet" in text and all(f"`{group}`" in text for group in GROUPS)
    assert set(snapshot(tree)) == {"README.md", "docs/benchmarks.md"}
    assert report.main(["--check"], tree) == 0


def test_rows_become_pages_and_pictures(tree: Path) -> None:
    write_rows(tree, everything())
    assert report.main(["--check"], tree) == 1
    assert report.main([], tree) == 0 and report.main(["--check"], tree) == 0
    readme = (tree / "README.md").read_text()
    for words in (
        "**Fake GPU**",
        "2026-01-02",
        "`0123456`",
        "`torch`",
        "**0.80** (0 of 3)",
        "1 WRONG",
        "Not measured yet",
    ):
        assert words in readme, words
    wanted = {f"{name}-{theme}.svg" for name in tables.PICTURES for theme in ("light", "dark")}
    assert {path.name for path in (tree / "docs/pictures/fake-gpu").iterdir()} == wanted
    for page in (tree / "README.md", tree / "docs/benchmarks.md"):
        for part in page.read_text().split('srcset="')[1:]:
            assert (page.parent / part.split('"')[0]).is_file()
    assert (tree / "docs/benchmarks/fake-gpu.md").is_file()


@pytest.mark.parametrize(
    "name", ["README.md", "docs/benchmarks.md", "docs/benchmarks/fake-gpu.md", "docs/pictures/fake-gpu/ratio-dark.svg"]
)
def test_check_notices_what_was_changed_by_hand(name: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tree, BEHIND)
    report.main([], tree)
    text = (tree / name).read_text()
    (tree / name).write_text(text.replace("0.80", "1.80").replace("<g", "<g ", 1))
    before = snapshot(tree)
    assert report.main(["--check"], tree) == 1
    assert f"out of date: {name}" in capsys.readouterr().out and snapshot(tree) == before
    (tree / name).unlink()
    assert report.main(["--check"], tree) == 1


def test_check_notices_new_rows_and_pages_of_rows_that_are_gone(tree: Path) -> None:
    write_rows(tree, BEHIND)
    report.main([], tree)
    write_rows(tree, [row(us=1.0, case=CASE, **LATER), row("torch", 2.0, **LATER)])
    assert report.main(["--check"], tree) == 1
    report.main([], tree)
    shutil.rmtree(tree / "bench")
    assert report.main(["--check"], tree) == 1
    assert report.main([], tree) == 0
    assert set(snapshot(tree)) == {"README.md", "docs/benchmarks.md"}


def test_equal_rows_give_equal_bytes(tree: Path) -> None:
    write_rows(tree, BEHIND)
    report.main([], tree)
    before = snapshot(tree)
    shutil.rmtree(tree / "docs" / "pictures")
    report.main([], tree)
    assert snapshot(tree) == before


def test_pictures_of_another_matplotlib_are_held_to_their_origin(tree: Path) -> None:
    write_rows(tree, BEHIND)
    report.main([], tree)
    path = tree / "docs/pictures/fake-gpu/ratio-light.svg"
    other = path.read_bytes().replace(b"Matplotlib v", b"Matplotlib v0.", 1).replace(b"<g", b"<g ", 1)
    path.write_bytes(other)
    assert report.main(["--check"], tree) == 0
    write_rows(tree, [row(us=1.0, **LATER), row("torch", 2.0, **LATER)])
    assert path in report.outdated(
        tree, {path: report.draw(by_gpu(read_all(tree / "bench/results")))["fake-gpu/ratio-light.svg"]}
    )


def test_rows_become_stale_when_a_kernel_changes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = git(tree, "rev-parse", "HEAD")
    write_rows(tree, [row(commit=head), row("torch", 20, commit=head)])
    report.main([], tree)
    assert "stale" not in (tree / "README.md").read_text() and report.main(["--check"], tree) == 0
    put(tree, "kernels/gemm.cuh", "changed")
    assert report.main(["--check"], tree) == 1
    assert "stale: 1 files differ (kernels/gemm.cuh), 0 commits since" in capsys.readouterr().out
    report.main([], tree)
    assert "1 of 1 cases are **stale**" in (tree / "README.md").read_text()
    # Committing it changes nothing; a copy without git keeps what the page says.
    git(tree, "commit", "-q", "-a", "-m", "second")
    assert report.main(["--check"], tree) == 0
    shutil.rmtree(tree / ".git")
    assert report.main(["--check"], tree) == 0


def test_a_row_that_is_refused_stops_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tree, [row()])
    (path,) = (tree / "bench/results/fake-gpu").iterdir()
    path.write_text(path.read_text() + "{}\n")
    before = snapshot(tree)
    assert report.main([], tree) == 1 and snapshot(tree) == before
    assert f"{path.name}:2: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", f"{report.END}\n{report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"])
def test_markers_must_be_there_once(text: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "README.md").write_text(text)
    assert report.main([], tree) == 1 and (tree / "README.md").read_text() == text
    assert "README.md must hold" in capsys.readouterr().err


def test_rows_by_other_hands_are_counted(tree: Path) -> None:
    put(tree, "bench/results/independent/fake-gpu/theirs.jsonl", '{"whatever": 1}\n\nanything\n')
    assert report.main([], tree) == 0
    assert "| `independent/fake-gpu/theirs.jsonl` | 2 |" in (tree / "docs/benchmarks.md").read_text()


def test_what_is_committed_is_what_the_rows_say(capsys: pytest.CaptureFixture[str]) -> None:
    code = report.main(["--check"])
    assert code == 0, capsys.readouterr().out
