"""The contract check itself: the kernels keep D1 to D6 in the emulator, and each promise broken on purpose is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench.contract import SMALL, Contract
from gpulinear import gemm

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_keep_every_promise(dtype: str) -> None:
    rows = list(Contract(np, dtype, None, SMALL).rows())
    assert [row for row in rows if row["status"] != "ok"] == []
    assert {row["promise"] for row in rows} == {"D1", "D2", "D3", "D4", "D5", "D6"}


def off_by_a_bit(result: Array) -> Array:
    """The result with the last bit of its last element turned over."""
    result = result.copy()
    result.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
    return result


def nth_call() -> Callable[..., bool]:
    calls = iter(range(1000))
    return lambda *_: next(calls) == 2


# promise, check, op, and when the sabotaged call gives other bits: by its operands and its options
SABOTAGE: dict[str, tuple[str, str, Callable[[], Callable[..., bool]]]] = {
    "D1 a call that is not the first": ("run_to_run", "linear", nth_call),
    "D2 a batch of two": ("rows_of_a_batch", "linear", lambda: lambda x, w: len(x) == 2),
    "D2 the weight's gradient path": ("rows_of_a_batch", "dgrad", lambda: lambda dy, w: len(dy) == 17),
    "D3 few outputs": ("slices_of_the_weight", "linear", lambda: lambda x, w: len(w) < 4),
    "D4 a split": ("configurations", "wgrad", lambda: lambda *_: gemm._options.get().splits == 3),
    "D4 a pointer": ("alignments", "linear", lambda: lambda x, w: x.ctypes.data % 16 != 0),
    "D5 few SMs": ("numbers_of_sms", "dgrad", lambda: lambda *_: gemm._options.get().num_sms == 1),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_broken_promise_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, op, make = SABOTAGE[name]
    real, bad = getattr(gl, op), make()

    def sabotaged(*operands: Array, **options: Any) -> Array:
        result = real(*operands, **options)
        return off_by_a_bit(result) if bad(*operands) else result

    monkeypatch.setattr(gl, op, sabotaged)
    contract = Contract(np, "float32", None, SMALL)
    with contract._planned():
        bits = getattr(contract, check)(op)
    assert bits.compared > 0 and bits.differs


def test_micro_batches_that_forget_the_buffer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gl.bgrad
    monkeypatch.setattr(gl, "bgrad", lambda dy, **o: real(dy, **{**o, "accumulate": False}))
    assert Contract(np, "float32", None, SMALL).micro_batches("bgrad").differs == "micro-batches of 4096"


def test_a_call_that_fails_is_a_row_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(gl, "bgrad", broken)
    monkeypatch.setattr(Contract, "configurations", Contract.run_to_run)  # quick stand-ins: other tests run these
    monkeypatch.setattr(Contract, "numbers_of_sms", Contract.run_to_run)
    rows = list(Contract(np, "float32", None, SMALL).rows())
    failed = {(row["promise"], row["op"]) for row in rows if row["status"] == "error"}
    assert failed == {("D1", "bgrad"), ("D6", "bgrad")}
    assert all("illegal" in row["error"] for row in rows if row["status"] == "error")


def test_a_check_that_compares_nothing_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.contract import Bits

    monkeypatch.setattr(Contract, "_checks", lambda self: iter([("D1", "linear", lambda op: Bits())]))
    assert [row["status"] for row in Contract(np, "float32").rows()] == ["error"]
