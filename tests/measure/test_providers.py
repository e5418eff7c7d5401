"""Providers against fake libraries: right operands, majors, types and switches, and a sentence where they cannot."""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import reference, testing
from gpulinear.config import FAMILIES
from gpulinear.errors import ArgumentError
from gpulinear.launch import launches
from gpulinear.measure import operands, providers
from gpulinear.measure.case import Case
from gpulinear.measure.operands import OperandSet, operand_sets
from gpulinear.measure.providers import epilogue
from gpulinear.measure.providers.base import BLAS_VIEWS, Product, column_major
from gpulinear.measure.providers.ours import Ours
from gpulinear.views import numpy_dtype

from .fake_blas import array
from .fake_libraries import make_torch

PEERS = tuple(providers.PEERS)
SIZES = (23, 14, 17)  # three sizes, all different, none a multiple of the others


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are overwritten here: no need for millions of random ones."""
    monkeypatch.setattr(operands, "_POOL", 4099)
    operands._pool.cache_clear()


def integer_sets(case: Case, xp: Any, count: int = 2) -> list[OperandSet]:
    """Operand sets with small integers in them: products are exact in every dtype, in any order."""
    sets = operand_sets(case, xp, 0, 1 << 30)[:count]
    for i, one in enumerate(sets):
        for j, (name, values) in enumerate({**one.inputs, **one.outputs}.items()):
            if name in one.inputs or case.accumulate:
                values[...] = testing.integers(values.shape, values.dtype, 10 * i + j)
            else:
                values[...] = np.nan
    return sets


def expected(case: Case, one: OperandSet) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {name: np.array(values, np.float64) for name, values in {**one.inputs, **one.outputs}.items()}
    exact = {
        "y": lambda: reference.activate(arrays["x"] @ arrays["weight"].T + arrays.get("bias", 0.0), case.activation),
        "dx": lambda: arrays["dy"] @ arrays["weight"],
        "dw": lambda: arrays["dy"].T @ arrays["x"] + (arrays["dw"] if case.accumulate else 0.0),
    }
    return {name: reference.round_to(exact[name](), values.dtype) for name, values in one.outputs.items()}


def make(name: str) -> Any:
    return providers.PEERS[name]()


def check(provider: Any, case: Case, xp: Any) -> None:
    sets = integer_sets(case, xp)
    if provider.name == "cublasLt" and case.accumulate:  # it runs each algorithm to choose: outputs hold anything then
        call = provider.prepare(case, sets)
        for one, fresh in zip(sets, integer_sets(case, xp), strict=True):
            for name, values in fresh.outputs.items():
                one.outputs[name][...] = values
    else:
        call = provider.prepare(case, sets)
    wanted = [expected(case, one) for one in sets]
    for i in (1, 0):  # not in the order in which they were prepared
        call(i)
    for one, want in zip(sets, wanted, strict=True):
        for name, values in want.items():
            testing.assert_same_bits(np.array(one.outputs[name]), values)


CASES = [
    *(Case(op, dtype, *SIZES) for op in ("linear", "dgrad", "wgrad", "backward") for dtype in ("float32", "bfloat16")),
    Case("linear", "float64", *SIZES),
    Case("linear", "float16", *SIZES),
    *(Case("linear", "float32", *SIZES, precision=precision) for precision in ("tf32", "tf32x3", "bf16x6")),
    *(
        Case("linear", "float16", *SIZES, bias=bias, activation=act)
        for bias in (False, True)
        for act in (None, "relu", "gelu", "gelu_tanh", "silu")
        if bias or act
    ),
    Case("linear", "float64", *SIZES, bias=True, activation="relu"),
    Case("linear", "float32", *SIZES, bias=True),
    *(
        Case("wgrad", dtype, *SIZES, accumulate=True, out_dtype="float32")
        for dtype in ("float32", "float16", "bfloat16")
    ),
    Case("backward", "bfloat16", *SIZES, accumulate=True, out_dtype="float32"),
    Case("dgrad", "float16", *SIZES, out_dtype="float32"),
    Case("linear", "float32", 1, 14, 17),
    Case("linear", "float32", 23, 1, 17),
    Case("wgrad", "float32", 23, 1, 1),
    Case("linear", "float32", 23, 14, 1),
]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_peer_computes_the_case_or_says_why_not(name: str, case: Case, libraries: Any) -> None:
    provider = make(name)
    reason = provider.why_not(case)
    cannot = name == "cupy.matmul" and (case.accumulate or case.out_dtype is not None)
    assert (reason is not None) == cannot, reason
    if reason is None:
        check(provider, case, libraries.cupy)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("view", sorted(testing.VIEWS))
def test_views_are_read_in_place_or_refused(name: str, view: str, libraries: Any) -> None:
    for op in ("linear", "wgrad"):
        case = Case(op, "float32", *SIZES, view=view)
        provider = make(name)
        refused = {
            "cublasGemmEx": view not in BLAS_VIEWS,
            "cublasLt": view not in BLAS_VIEWS,
            "cupy.matmul": False,
        }.get(name, "reversed" in view)
        assert (provider.why_not(case) is not None) == refused
        if not refused:
            check(provider, case, libraries.cupy)


def test_blas_views_are_exactly_those_with_a_leading_dimension(libraries: Any) -> None:
    xp = libraries.cupy
    for view in testing.VIEWS:
        one = operand_sets(Case("linear", "float32", *SIZES, view=view), xp, 0, 1 << 30)[0]
        product = Product(one.inputs["x"], one.inputs["weight"].T, one.outputs["y"], False)
        if view in BLAS_VIEWS:
            assert column_major(product).ldb >= 1
        else:
            with pytest.raises(ValueError, match="unit stride"):
                column_major(product)


def test_an_output_stored_by_columns_is_refused(libraries: Any) -> None:
    left, right, out = (libraries.cupy.zeros(shape) for shape in ((3, 4), (4, 5), (5, 3)))
    with pytest.raises(ValueError, match="row-major"):
        column_major(Product(left, right, out.T, False))
    assert column_major(Product(left, right, libraries.cupy.zeros((3, 8))[:, :5], False)).ldc == 8


# ---- precision ----


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("stuck", [True, False])
def test_a_switch_without_effect_makes_the_peer_unavailable_for_that_precision(
    name: str, stuck: bool, libraries: Any
) -> None:
    library = {"cupy.matmul": "cupy", "cublasGemmEx": "cublas"}.get(name, name.partition("-")[0])
    libraries.seen.ignore_tf32[library] = stuck
    provider = make(name)
    strict, tf32 = (Case("linear", "float32", 64, 64, 64, precision=p) for p in (None, "tf32"))
    bf16x6 = Case("linear", "float32", 64, 64, 64, precision="bf16x6")
    if stuck:
        assert "still in use" in provider.why_not(strict) and "still in use" in provider.why_not(bf16x6)
        assert provider.why_not(tf32) is None
    else:
        assert provider.why_not(strict) is None and provider.why_not(bf16x6) is None
        assert "no effect" in provider.why_not(tf32)
    assert provider.why_not(Case("linear", "bfloat16", 64, 64, 64)) is None


@pytest.mark.parametrize("name", PEERS)
def test_each_case_runs_in_its_own_precision_whatever_came_before(name: str, libraries: Any) -> None:
    provider = make(name)
    a, b = testing.precision_probe(64, 64, 2, 5)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for precision in (None, "tf32", None, "bf16x6", "tf32", "tf32x3"):
        case = Case("linear", "float32", 64, 64, 2, precision=precision)
        other = Case("linear", "float32", 64, 64, 64, precision=None if precision == "tf32" else "tf32")
        assert provider.why_not(other) is None and provider.why_not(case) is None
        one = integer_sets(case, libraries.cupy, 1)[0]
        one.inputs["x"][...], one.inputs["weight"][...] = a, b.T
        provider.prepare(case, [one])(0)
        assert np.array_equal(np.array(one.outputs["y"], np.float64), exact) == (precision != "tf32")


@pytest.mark.parametrize("modern", [True, False])
def test_torch_before_and_after_fp32_precision(modern: bool, libraries: Any) -> None:
    torch = make_torch(libraries.seen, modern=modern)
    before = vars(torch.backends.cuda.matmul).copy()
    provider = make("torch-cublas")
    assert provider.why_not(Case("linear", "float32", *SIZES)) is None
    assert provider.why_not(Case("linear", "float32", *SIZES, precision="tf32")) is None
    wide = Case("wgrad", "bfloat16", *SIZES, accumulate=True, out_dtype="float32")
    assert (provider.why_not(wide) is None) == modern
    provider.close()
    assert vars(torch.backends.cuda.matmul) == before


# ---- what runs, and what is left behind ----


def test_unfused_sequences_are_named_so_and_epilogues_are_used(libraries: Any) -> None:
    fused = Case("linear", "float16", *SIZES, bias=True, activation="gelu_tanh")
    erf = Case("linear", "float16", *SIZES, bias=True, activation="gelu")
    for name in PEERS:
        provider = make(name)
        for case in (fused, erf):
            provider.prepare(case, integer_sets(case, libraries.cupy))
            epilogue = case is fused and name not in ("cupy.matmul", "cublasGemmEx")
            assert ("unfused" in provider.kernel(case)) != epilogue, (name, case.name, provider.kernel(case))
        plain = Case("linear", "float16", *SIZES)
        provider.prepare(plain, integer_sets(plain, libraries.cupy))
        assert "unfused" not in provider.kernel(plain)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_the_second_kernel_computes_the_activation_in_full_precision(activation: str | None, libraries: Any) -> None:
    case = Case("linear", "float64", 64, 32, 1, bias=True, activation=activation)
    y, bias = array(4 * testing.normal((64, 32), "float64", 1)), array(testing.normal((32,), "float64", 2))
    v = np.array(y + bias)
    out = array(np.full_like(v, np.nan))
    epilogue.make(case, libraries.cupy)(y, bias, out)
    # Of v f(u(v)) with |f'| <= 1/2: four roundings of the result, and those of u, which is at most as large as the argument of
    # the tanh form, with a relative error of four units.
    u = 2 * (2 / np.pi) ** 0.5 * (abs(v) + 0.044715 * abs(v) ** 3)
    bound = 2.0**-53 * abs(v) * (4 + 2 * u)
    testing.assert_within(np.array(out), reference.activate(v, activation), bound)


def test_cublaslt_takes_the_fastest_proposal_that_runs(libraries: Any) -> None:
    lt, seen = libraries.lt, libraries.seen
    provider = make("cublasLt")
    case = Case("linear", "bfloat16", *SIZES)

    def chosen() -> int:
        call = provider.prepare(case, integer_sets(case, libraries.cupy))
        seen.calls.clear()
        call(0)
        (entry,) = seen.calls
        assert f"algorithm {entry[2]}" in provider.kernel(case) and "of 3" in provider.kernel(case)
        return int(entry[2])

    assert chosen() == 1
    lt.speeds = [0.3, 0.2, 0.1]
    assert chosen() == 2
    lt.refused = {2}
    assert chosen() == 1
    lt.speeds = [500.0, 400.0, 100.0]  # ms: seen once, not repeated
    before = seen.clock
    assert chosen() == 1 and seen.clock - before < 2000
    lt.refused = {0, 1, 2}
    with pytest.raises(RuntimeError, match="refused every algorithm"):
        chosen()
    lt.speeds = []
    with pytest.raises(RuntimeError, match="propose no algorithm"):
        chosen()


def test_cublaslt_falls_back_where_it_has_no_such_epilogue(libraries: Any) -> None:
    libraries.lt.no_epilogue = True
    provider = make("cublasLt")
    case = Case("linear", "float32", *SIZES, bias=True, activation="gelu_tanh")
    check(provider, case, libraries.cupy)
    assert "unfused" in provider.kernel(case)


def test_cublaslt_is_told_the_least_alignment(libraries: Any) -> None:
    provider = make("cublasLt")
    for view, wanted in (("contiguous", 256), ("misaligned", 2), ("padded", 32)):
        case = Case("linear", "float16", *SIZES, view=view)
        provider.prepare(case, integer_sets(case, libraries.cupy))
        seen = libraries.lt.alignments[-1]
        least = 256
        for one in integer_sets(case, libraries.cupy):
            least = min(least, one.inputs["x"].data.ptr & -one.inputs["x"].data.ptr)
        assert seen[6] <= least or view == "contiguous"
        assert view != "misaligned" or seen[5] == seen[6] == wanted


def test_everything_is_freed_and_every_switch_is_put_back(libraries: Any) -> None:
    modes = sys.modules["cupy._core._routines_linalg"]
    modes.set_compute_type(np.float32, 7)
    found = [make(name) for name in PEERS]
    for provider in found:
        for case in (Case("linear", "float32", *SIZES, bias=True), Case("backward", "float32", *SIZES)):
            assert provider.why_not(case) is None
            provider.prepare(case, integer_sets(case, libraries.cupy))(0)
    for provider in found:
        provider.close()
        provider.close()  # twice is once
    assert libraries.seen.open == set() and libraries.lt.made == {}
    assert modes.get_compute_type(np.float32) == 7
    assert libraries.torch.backends.cuda.preferred_blas_library() == "default"
    assert libraries.torch.backends.cuda.matmul.fp32_precision == "none"


def test_two_torches_change_the_library_back_and_forth(libraries: Any) -> None:
    one, other = make("torch-cublas"), make("torch-cublaslt")
    case = Case("linear", "bfloat16", *SIZES)
    calls = [provider.prepare(case, integer_sets(case, libraries.cupy)) for provider in (one, other)]
    libraries.seen.calls.clear()
    for i in (0, 1, 0, 0, 1):
        calls[i](0)
    assert [entry[2] for entry in libraries.seen.calls] == ["cublas", "cublaslt", "cublas", "cublas", "cublaslt"]


def test_torch_follows_cupys_stream(libraries: Any) -> None:
    provider, case = make("torch-cublas"), Case("linear", "bfloat16", *SIZES)
    call = provider.prepare(case, integer_sets(case, libraries.cupy))
    libraries.seen.calls.clear()
    call(0)
    libraries.cupy.cuda.stream.ptr = 42
    call(0)
    make("torch-cublaslt").prepare(case, integer_sets(case, libraries.cupy))(0)
    libraries.cupy.cuda.stream.ptr = 0
    call(0)
    assert [entry[3] for entry in libraries.seen.calls] == ["default", "stream 42", "stream 42", "default"]


# ---- finding them ----


def test_discovery_lists_ours_first_and_says_why_others_are_missing(libraries: Any, monkeypatch: Any) -> None:
    found, missing = providers.discover("sm_90a")
    assert [provider.name for provider in found] == ["gpulinear", *PEERS] and missing == {}
    assert [provider.ours for provider in found] == [True, *[False] * len(PEERS)]
    monkeypatch.setitem(sys.modules, "nvmath.bindings", None)
    monkeypatch.delattr(sys.modules["cupy_backends.cuda.libs.cublas"], "gemmEx")
    make_torch(libraries.seen, cuda=False)
    found, missing = providers.discover("sm_90a")
    assert [provider.name for provider in found] == ["gpulinear", "cupy.matmul"]
    assert "nvmath.bindings is not installed" in missing["cublasLt"]
    assert missing["cublasGemmEx"].startswith("this CuPy's cuBLAS bindings are not the expected ones")
    assert missing["torch-cublas"] == "torch is installed without CUDA, or sees no GPU"


def test_without_any_library_only_ours_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "nvmath", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    found, missing = providers.discover("sm_90a")
    assert [provider.name for provider in found] == ["gpulinear"] and set(missing) == set(PEERS)
    assert missing["cupy.matmul"] == "cupy is not installed"


def test_a_peer_that_breaks_on_import_is_a_reason_not_a_crash(libraries: Any, monkeypatch: Any) -> None:
    broken = types.ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", broken)
    _, missing = providers.discover("sm_90a", ["torch-cublas"])
    assert "AttributeError" in missing["torch-cublas"]


def test_families_and_unknown_names() -> None:
    found, _ = providers.discover("sm_90a", ["gpulinear"], ["gemm_simt"])
    assert [provider.name for provider in found] == ["gpulinear", "gpulinear:gemm_simt"]
    everything, _ = providers.discover("sm_90a", ["gpulinear"], ["all"])
    assert [provider.name for provider in everything] == ["gpulinear", *(f"gpulinear:{family}" for family in FAMILIES)]
    for wanted, families in ((["rocblas"], []), ([], ["gemm_magic"])):
        with pytest.raises(ArgumentError, match="cublasGemmEx"):
            providers.discover("sm_90a", wanted, families)


# ---- ours ----


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.precision is None],
    ids=lambda case: case.name,
)
def test_ours_calls_the_public_functions(case: Case) -> None:
    provider = Ours("sm_90a")
    assert provider.why_not(case) is None
    sets = integer_sets(case, np)
    for one in sets:
        wanted = expected(case, one)
        _run_ours(provider, case, one)
        for name, values in wanted.items():
            testing.assert_same_bits(one.outputs[name], values)


def _run_ours(provider: Ours, case: Case, one: OperandSet) -> None:
    """On NumPy arrays the reference answers; what ``prepare`` compiles is another test's subject."""
    from gpulinear.measure.providers import ours

    op, args, kwargs = ours._call(case, {**one.inputs, **one.outputs})
    provider._context.run(ours._FUNCTIONS[op], *args, **kwargs)


def test_ours_runs_the_kernels_in_the_emulator_and_names_them(compiled: None) -> None:
    case = Case("wgrad", "float32", 9, 5, 6, accumulate=True)
    with gl.host_backend("emulator", arch="sm_80"):
        provider = Ours("sm_80", "gemm_simt")
    (one, _) = sets = integer_sets(case, np)
    want = expected(case, one)["dw"]
    call = provider.prepare(case, sets)
    with launches() as launched:
        call(0)
    testing.assert_same_bits(one.outputs["dw"], want)
    # Outside the block, and yet in the emulator: a call runs in the context in which its provider was made.
    assert [name.split()[0] for name in launched] == ["gemm_simt"]
    assert provider.kernel(case).startswith("gemm_simt ")


def test_a_forced_family_is_forced() -> None:
    case = Case("linear", "float16", 64, 64, 64)
    for family in FAMILIES:
        provider = Ours("sm_80", family)
        reason = provider.why_not(case)
        plan = (
            provider._context.run(
                gl.explain,
                "linear",
                gl.ShapeDtype((64, 64), "float16"),
                gl.ShapeDtype((64, 64), "float16"),
                arch="sm_80",
            )
            if reason is None
            else None
        )
        assert plan is None or plan.steps[0].family == family
    assert Ours("sm_80", "gemm_simt").why_not(case) is None


def test_what_the_planner_refuses_is_the_reason() -> None:
    x = gl.ShapeDtype((64, 64), "float32")
    with pytest.raises(gl.BackendError) as refused:
        gl.explain("linear", x, x, precision="bf16x6", arch="sm_75")
    assert Ours("sm_75").why_not(Case("linear", "float32", 64, 64, 64, precision="bf16x6")) == str(refused.value)


def test_fake_arrays_are_what_the_tests_take_them_for() -> None:
    x = array(np.zeros((2, 3), ml_dtypes.bfloat16))
    assert x.T.data.ptr == x.data.ptr == x.ctypes.data and x[1:].data.ptr == x.ctypes.data + 6
    assert numpy_dtype("bfloat16") == x.dtype
