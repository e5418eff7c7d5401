"""The micro-kernels compile and give the model's bits in the emulator, tile by tile; their files are kept honest.

That the bits agree here proves the fragments and layouts of the micro-kernels; a GPU then speaks about the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import golden
from bench.golden import FORMS, Form
from gpulinear.emulator import isa, tensorcore
from gpulinear.emulator.parser import parse

pytestmark = pytest.mark.usefixtures("compiled")

WHERE = {"gpu": "Fake H200", "driver": "13.0", "nvrtc": "13.0", "commit": "0123abc", "time": "2026-01-02T03:04:05"}
ONE_OF_EACH_ARCH = ("sm_75", "sm_80", "sm_90a", "sm_120")
SMALL = FORMS["mma.m16n8k16.bf16"]


def form_of(name: str) -> Form:
    return FORMS[name]


@pytest.mark.parametrize("name", FORMS)
def test_micro_kernels_compile_without_spills(name: str) -> None:
    form = form_of(name)
    instruction = "cp.async.bulk.tensor" if form.tma else name.split(".")[0]
    for arch in [arch for arch in form.archs if arch in ONE_OF_EACH_ARCH]:
        artifact = form.compiled(arch)
        used = artifact.resources
        assert (used.spill_stores, used.spill_loads, used.stack_frame) == (0, 0, 0), (arch, used)
        (entry,) = parse(artifact.ptx).entries.values()
        found = [
            i
            for i in entry.instructions
            if i.name.startswith((f"{instruction}.sync", f"{instruction}.mma_async", f"{instruction}.2d"))
        ]
        assert len(found) == 1, "a micro-kernel executes one instruction"
        isa.resolve(found[0])


@pytest.mark.parametrize("name", FORMS)
def test_micro_kernels_give_the_models_bits(name: str) -> None:
    form = form_of(name)
    given = golden.operands(form)
    for arch in {form.archs[0], "sm_90a" if "sm_90a" in form.archs else form.archs[0]}:
        verdict = golden.compare(
            form, arch, golden.execute(form, given, "emulator", arch), golden.expected(form, given, arch)
        )
        assert verdict.outcome == "confirmed", verdict


def test_what_is_expected_is_the_model_and_what_ldmatrix_does() -> None:
    given = golden.operands(SMALL)
    d = golden.expected(SMALL, given, "sm_80")
    for tile in range(len(d)):
        a, b, c = (given[x][tile] for x in "abc")
        want = tensorcore.multiply_add(a, b, c.view(np.float32), "bf16", "sm_80")
        assert (d[tile] == want.view(np.uint32)).all()
    for name, trans in (("ldmatrix.x4", False), ("ldmatrix.x4.trans", True)):
        form = FORMS[name]
        given = golden.operands(form)
        got = golden.expected(form, given, "sm_80")
        for tile, matrix, lane in ((0, 0, 0), (1, 2, 5), (7, 3, 31)):
            rows = given["a"][tile, 8 * matrix : 8 * matrix + 8]
            rows = rows.T if trans else rows
            pair = rows[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert got[tile, matrix, lane] == int(pair[0]) | int(pair[1]) << 16


def test_operands_are_fixed_and_reach_what_they_are_for() -> None:
    for form in FORMS.values():
        first, second = golden.operands(form), golden.operands(form)
        assert all((first[name] == second[name]).all() for name in first)
    given = golden.operands(SMALL)
    values = {name: tensorcore.values(given[name], "bf16") for name in "ab"}
    c = given["c"].view(np.float32)
    tiles = {fill: values["a"][index] for index, fill in enumerate(golden.FILLS)}
    assert np.isfinite(tiles["random"]).all() and not np.isfinite(tiles["specials"]).all()
    sizes = np.abs(tiles["wide"])
    assert sizes.max() / sizes.min() > 2.0**50
    assert (np.abs(tiles["subnormals"]) < 2.0**-126).any()
    assert (np.signbit(tiles["zeros"]) & (tiles["zeros"] == 0)).any()
    index = golden.FILLS.index("cancellation")
    a, b = values["a"][index], values["b"][index]
    assert np.abs(a @ b).max() < 0.1 * (np.abs(a) @ np.abs(b)).min()
    specials = golden.expected(SMALL, given, "sm_90a").view(np.float32)[golden.FILLS.index("specials")]
    assert np.isfinite(specials).any() and np.isnan(specials).any() and c.shape == (24, 16, 8)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A directory with the bits of one form, as the model has them."""
    given = golden.operands(SMALL)
    d = golden.expected(SMALL, given, "sm_90a")
    golden.save(tmp_path / "sm_90a" / f"{SMALL.name}.npz", SMALL, "sm_90a", given, d, WHERE)
    return tmp_path


def verdicts(directory: Path) -> dict[str, golden.Verdict]:
    return {verdict.form: verdict for verdict in golden.check(directory)}


def test_stored_bits_are_confirmed_and_the_rest_is_absent(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts(stored)
    assert found.pop(SMALL.name).outcome == "confirmed"
    assert {verdict.outcome for verdict in found.values()} == {"absent"} and len(found) == len(FORMS) - 1
    assert golden.main(["check", str(stored)]) == 0
    shown = capsys.readouterr().out
    assert f"sm_90a {SMALL.name}: confirmed" in shown and tensorcore.status(SMALL.name, "sm_90a") in shown


def rewrite(stored: Path, **changes: Any) -> Path:
    path = stored / "sm_90a" / f"{SMALL.name}.npz"
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: value for name, value in data.items() if value is not None})
    return path


def test_a_flipped_bit_is_a_mismatch_with_form_and_element(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    d = golden.expected(SMALL, golden.operands(SMALL), "sm_90a")
    d[2, 3, 5] ^= 1
    rewrite(stored, d=d)
    verdict = verdicts(stored)[SMALL.name]
    assert verdict.outcome == "MISMATCH" and "1 of 3072 elements; first tile 2 [3, 5]" in verdict.detail
    assert golden.main(["check", str(stored)]) == 1
    assert f"{SMALL.name}: MISMATCH" in capsys.readouterr().out


def about(**changes: Any) -> Any:
    return np.array(json.dumps({"form": SMALL.name, "arch": "sm_90a", **WHERE, **changes}))


CORRUPT: dict[str, dict[str, Any]] = {
    "no result": {"d": None},
    "no about": {"about": None},
    "about is not JSON": {"about": np.array("{")},
    "another form": {"about": about(form="mma.m16n8k16.f16")},
    "another arch": {"about": about(arch="sm_80")},
    "no GPU": {"about": about(gpu=None)},
    "another shape": {"d": np.zeros((24, 16, 4), np.uint32)},
    "another type": {"d": np.zeros((24, 16, 8), np.float32)},
    "an array too many": {"e": np.zeros(3)},
    "a scalar": {"a": np.array(3, np.uint16)},
    "pickled objects": {"a": np.array([print], object)},
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_files_are_refused(case: str, stored: Path) -> None:
    path = rewrite(stored, **CORRUPT[case])
    with pytest.raises(golden.GoldenError, match=SMALL.name):
        golden.load(path, SMALL, "sm_90a")
    assert verdicts(stored)[SMALL.name].outcome == "corrupt"


@pytest.mark.parametrize("keep", [0, 10, -2000])
def test_torn_files_are_refused(stored: Path, keep: int) -> None:
    path = stored / "sm_90a" / f"{SMALL.name}.npz"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert verdicts(stored)[SMALL.name].outcome == "corrupt"
    middle = len(data) // 3
    path.write_bytes(data[:middle] + bytes(b ^ 0x5A for b in data[middle : middle + 200]) + data[middle + 200 :])
    assert verdicts(stored)[SMALL.name].outcome == "corrupt"
    assert golden.main(["check", str(stored)]) == 1


def test_an_empty_directory_lists_every_form_as_absent(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        assert [v.outcome for v in golden.check(directory)] == ["absent"] * len(FORMS)


def test_writing_stores_what_checking_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: FORMS[name] for name in ("mma.m16n8k8.f16", "mma.m8n8k4.f64", "ldmatrix.x4")}
    monkeypatch.setattr(golden, "FORMS", small)
    written = list(golden.write(tmp_path, "sm_75", WHERE, backend="emulator"))  # sm_75 has no mma of float64
    assert [verdict.form for verdict in written] == ["mma.m16n8k8.f16", "ldmatrix.x4"]
    assert all(verdict.outcome == "confirmed" for verdict in written)
    assert [verdict.outcome for verdict in golden.check(tmp_path)] == ["confirmed"] * 2


def test_without_a_gpu_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(["write", "--out", str(tmp_path / "out")]) == 3
    assert "nothing was written" in capsys.readouterr().out and not (tmp_path / "out").exists()
