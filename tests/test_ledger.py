"""The hardware ledger: field by field, never trusted when corrupt, written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from gpulinear import ledger
from gpulinear.compile import Artifact, compile_kernel
from gpulinear.ledger import Entry

SOURCE = 'extern "C" __global__ void f(int* p) { *p = 1; }\nextern "C" __global__ void g(int* p) { *p = 2; }'


@lru_cache(maxsize=8)
def kernel(source: str = SOURCE, name: str = "f") -> Artifact:
    pytest.importorskip("cuda.bindings")
    return compile_kernel(source, entry=name, arch="sm_90a")


def entry(**changes: str) -> Entry:
    good = Entry("gemm_simt", ledger.digest(kernel()), "sm_90a", "NVIDIA H200", "13.0", "13.0", "2026-02-03", "0123abc")
    return replace(good, **changes)


def test_the_committed_ledger_is_valid() -> None:
    ledger.read(Path(__file__).parent / "ledger.json")
    assert ledger.default_path().name == "ledger.json"


def test_a_kernel_is_known_by_its_machine_code() -> None:
    lower = kernel()
    assert len(ledger.machine_code(lower.cubin, "f")) % 16 == 0  # instructions of 16 bytes
    # Other lines and comments, the same code; another constant, another code.
    assert ledger.digest(kernel("// moved\n\n" + SOURCE)) == ledger.digest(lower)
    assert ledger.digest(kernel(SOURCE.replace("= 1", "= 3"))) != ledger.digest(lower)
    assert ledger.digest(kernel(name="g")) != ledger.digest(lower)


@pytest.mark.parametrize("broken", [b"", b"no ELF file", b"\x7fELF\x01" + bytes(100)])
def test_what_is_no_cubin_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="64-bit ELF"):
        ledger.machine_code(broken, "f")
    with pytest.raises(ValueError, match="section"):
        ledger.machine_code(kernel().cubin[:80], "f")
    with pytest.raises(ValueError, match=r"\.text\.h"):
        ledger.machine_code(kernel().cubin, "h")


def test_what_is_appended_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger.append([entry()], path)
    ledger.append([entry(code_sha256="0" * 64, kernel="column_sum")], path)
    assert ledger.lookup(kernel(), path) == entry()
    assert ledger.lookup(kernel(name="g"), path) is None
    assert len(ledger.load(path)) == 2 and list(tmp_path.iterdir()) == [path]


def test_a_later_proof_replaces_only_its_own(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger.append([entry(), entry(gpu="NVIDIA H100", date="2026-01-01")], path)
    later = entry(date="2026-03-01")
    assert len(ledger.append([later], path)) == 2
    assert ledger.lookup(kernel(), path) == later


BAD: dict[str, Any] = {
    "not JSON": "[{",
    "not a list": "{}",
    "not an object": "[3]",
    "field missing": json.dumps([{k: v for k, v in asdict(entry()).items() if k != "gpu"}]),
    "field too many": json.dumps([{**asdict(entry()), "note": "fine"}]),
    "not text": json.dumps([{**asdict(entry()), "gpu": 3}]),
    **{
        name: json.dumps([{**asdict(entry()), name: value}])
        for name, value in {
            "kernel": "gemm simt", "code_sha256": "ABC", "arch": "90", "gpu": "", "driver": "580", "nvrtc": "13",
            "date": "2026-02-30", "commit": "unknown",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_corrupt_ledger_is_a_warning_and_empty(case: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(BAD[case])
    with pytest.warns(RuntimeWarning, match=r"ledger\.json is not used") as caught:
        assert ledger.load(path) == []
    if case in ledger._FIELDS:
        assert case in str(caught[0].message)
    with pytest.raises(ValueError, match="left as it is"):
        ledger.append([entry()], path)
    assert path.read_text() == BAD[case]


def test_a_missing_ledger_is_a_warning_and_empty(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"none\.json"):
        assert ledger.lookup(kernel(), tmp_path / "none.json") is None


def test_a_bad_entry_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with pytest.raises(ValueError, match="commit"):
        ledger.append([entry(commit="unknown")], path)
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    ledger.append([entry()], path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        ledger.append([entry(gpu="NVIDIA H100")], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
