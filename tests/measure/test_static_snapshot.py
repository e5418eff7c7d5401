"""No kernel gets worse unseen: compiled kernels against bench/static_snapshot.json, which says what each figure was.

By default the kernels that other tests compile anyway, and the first tile of each kind: their resources, and on sm_90a
machine code and emulated requests of those that are planned. GPULINEAR_TEST_ALL_VARIANTS=1 compares everything, as ``python
-m bench.static --check`` does. With another NVRTC than the snapshot's only what no kernel may have is judged, and a skip
says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench import snapshot, static
from gpulinear.device import ARCHS
from gpulinear.measure.static import Row, examine
from gpulinear.source import HEADERS

from .test_static import made_up

EVERYTHING = os.environ.get("GPULINEAR_TEST_ALL_VARIANTS") == "1"
DETAILED = "sm_90a"
# tests/test_kernels_compile.py compiles every tile of these.
SHARED = (("sm_90a", "gemm_simt", "float32"), ("sm_90a", "gemm_simt", "float64"), ("sm_80", "gemm_mma", "bfloat16"))
# Everything of an arch together, but family by family where there is the most to do.
PARTS = [(arch, "") for arch in ARCHS if arch != DETAILED] + [(DETAILED, family) for family in HEADERS]


@cache
def kept(arch: str) -> list[static.Kept]:
    return static.kept(arch)


@cache
def committed() -> snapshot.Snapshot:
    return snapshot.load()


def of_arch(arch: str) -> snapshot.Snapshot:
    """The part of the snapshot that is about an arch."""
    kernels = {name: kernel for name, kernel in committed().kernels.items() if name.endswith(f" {arch}")}
    return snapshot.Snapshot(committed().nvrtc, kernels)


def look(one: static.Kept) -> Row | None:
    """The row of a kernel, as closely as this run looks at it."""
    variant = one.variant
    if EVERYTHING:
        return examine(variant)
    if (variant.arch, variant.config.family, variant.call.dtype) not in SHARED and not one.first:
        return None
    if variant.arch != DETAILED:
        few = variant.layout != "" and variant.precision in (None, "tf32")
        return examine(variant, resources_only=True) if few else None
    if variant.layout and variant.call.dtype == "float16":
        return None  # bfloat16's, but for conversions
    telling = (variant.layout != "" or variant.call.dtype == "float32") and not variant.long  # K > S: slow to emulate
    return examine(variant, resources_only=not (one.first and one.planned and telling))


@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_is_new_or_gone(arch: str) -> None:
    names = [one.variant.name for one in kept(arch)]
    assert not snapshot.strangers(of_arch(arch), names), snapshot.strangers(of_arch(arch), names)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("arch", "family"), PARTS)
def test_no_kernel_got_worse(arch: str, family: str) -> None:
    chosen = [one for one in kept(arch) if family in ("", one.variant.config.family)]
    rows = [row for one in chosen if (row := look(one)) is not None]
    assert rows
    defects = [f"{row.name}: {defect}" for row in rows for defect in row.defects]
    assert not defects, "\n".join(defects)
    if rows[0].compiler != committed().nvrtc:
        pytest.skip(
            f"no defect; figures not compared: the snapshot's NVRTC is {committed().nvrtc}, this {rows[0].compiler}"
        )
    problems = snapshot.verdict(of_arch(arch), rows)
    assert not problems, "\n" + problems
    notes = sorted({note for row in rows for note in row.notes})
    if notes:
        pytest.skip(f"compared without what could not be had: {'; '.join(notes)}")


# ---- what a comparison says ----


def taken(**changes: Any) -> snapshot.Snapshot:
    row = made_up(**changes)
    return snapshot.Snapshot(row.compiler, {row.name: snapshot.entry(row)})


def test_nothing_to_say_of_what_has_not_changed() -> None:
    assert snapshot.verdict(taken(), [made_up()]) == ""
    assert snapshot.strangers(taken(), [made_up().name]) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registers": 48}, "registers 40 -> 48 (+8)"),
        ({"static_smem": 16}, "smem 1024 -> 1040 (+16)"),
        ({"dynamic_smem": 2048}, "smem 1024 -> 2048 (+1024)"),
        ({"blocks_per_sm": 3}, "blocks_per_sm 4 -> 3 (-1)"),
        ({"warps_per_sm": 6}, "warps_per_sm 8 -> 6 (-2)"),
        ({"bank_ratio": 1.5}, "bank_ratio 1.25 -> 1.5 (+0.25)"),
        ({"sector_ratio": 2.0}, "sector_ratio 1.0 -> 2.0 (+1)"),
        ({"loop": {"FFMA": 8, "LDS.128": 4, "address": 8}}, "loop instructions per FFMA 2.0 -> 2.5 (+0.5)"),
        ({"loop": {"FFMA": 8, "LDS.64": 8, "address": 4}}, "loop instructions per FFMA 2.0 -> 2.5 (+0.5)"),
    ],
)
def test_what_is_worse_is_named_with_both_figures(changes: dict[str, Any], words: str) -> None:
    said = snapshot.verdict(taken(), [made_up(**changes)])
    assert said.startswith("worse than the committed snapshot:")
    assert f"{made_up().name}: {words}" in said
    assert snapshot.FRESH in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registers": 32}, "registers 40 -> 32 (-8)"),
        ({"blocks_per_sm": 5, "limits": ("threads",)}, "limited by registers, block slots -> threads"),
        # Unrolled twice: as many instructions per FMA.
        ({"loop": {"FFMA": 16, "LDS.128": 8, "address": 8}}, "FFMA in the loop 8 -> 16 (+8)"),
        ({"loop": {"FFMA": 8, "LDS.128": 4, "move": 4}}, "address in the loop 4 -> 0 (-4)"),
    ],
)
def test_what_is_better_or_only_different_asks_for_a_fresh_snapshot(changes: dict[str, Any], words: str) -> None:
    said = snapshot.verdict(taken(), [made_up(**changes)])
    assert "worse" not in said and f"{made_up().name}: {words}" in said and snapshot.FRESH in said


def test_figures_that_one_side_lacks_are_not_compared() -> None:
    unseen = {"loop": None, "local_accesses": None, "bank_ratio": None, "sector_ratio": None}
    assert snapshot.verdict(taken(), [made_up(**unseen)]) == ""
    assert snapshot.verdict(taken(), [made_up(**unseen, registers=41)]) != ""


def test_new_and_vanished_kernels_ask_for_a_fresh_snapshot() -> None:
    said = snapshot.strangers(taken(), ["gemm_simt NN float32 sm_90a"])
    assert "gemm_simt NN float32 sm_90a: new" in said and f"{made_up().name}: gone" in said and snapshot.FRESH in said


# ---- the file ----


def test_the_file_is_one_sorted_line_per_kernel_and_reads_back(tmp_path: Path) -> None:
    rows = [made_up(name=f"gemm_simt NT {tile} float32 sm_90a") for tile in ("b", "a", "c")]
    snapshot.save(rows, tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    assert [line.split('"')[1] for line in text.splitlines()[1:-1]] == sorted(row.name for row in rows)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.json"]
    read = snapshot.load(tmp_path / "s.json")
    assert read.nvrtc == "13.0.1" and snapshot.verdict(read, rows) == ""


def test_one_snapshot_is_of_one_compiler() -> None:
    with pytest.raises(ValueError, match="one version of NVRTC"):
        snapshot.dump([made_up(), made_up(name="other", compiler="13.1.0")])
    with pytest.raises(ValueError, match="one version of NVRTC"):
        snapshot.dump([])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registers": -1}, "registers must be of minimum 0"),
        ({"registers": "40"}, "registers must be of type 'integer'"),
        ({"bank_ratio": 0.5}, "bank_ratio must be of minimum 1"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"loop": {"FFMA": "8"}}, "FFMA must be of type 'integer'"),
        ({"loop": []}, "loop must be of type 'object'"),
    ],
)
def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path, changes: Mapping[str, Any], words: str) -> None:
    data = json.loads(snapshot.dump([made_up()]))
    data["kernels"][made_up().name].update(changes)
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=words):
        snapshot.load(tmp_path / "s.json")


@pytest.mark.parametrize("text", ["[]", "{}", '{"nvrtc": 13, "kernels": {}}', '{"nvrtc": "13", "kernels": []}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match="must hold an object with nvrtc"):
        snapshot.load(tmp_path / "s.json")


def test_the_committed_snapshot_has_no_time() -> None:
    for name, kernel in committed().kernels.items():
        assert kernel["blocks_per_sm"] >= 1 and not any("time" in key or key.endswith("_us") for key in kernel), name
