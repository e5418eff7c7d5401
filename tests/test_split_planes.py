"""The pass that splits float32 operands into planes: every bit, against NumPy, for any strides and any float32."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpulinear import reference, testing
from gpulinear.backends.emulator import _Placed
from gpulinear.builder import Builder
from gpulinear.compile import compile_kernel
from gpulinear.configs.split import SPLITS, SplitPlanesConfig
from gpulinear.device import DeviceSpec
from gpulinear.emulator import GlobalMemory, Result, run
from gpulinear.launch import make_template
from gpulinear.plan import WORKSPACE, Options
from gpulinear.problem import Matrix
from gpulinear.source import entry_name, render
from gpulinear.splits import split
from gpulinear.views import alignment, describe, matrix

from .test_kernels_compile import check

Array = np.ndarray[Any, Any]
PLANE = {"bf16x6": np.dtype(ml_dtypes.bfloat16), "tf32x3": np.dtype("float32"), "tf32": np.dtype("float32")}
PRECISIONS = sorted(PLANE)
SPECIAL_BITS = [
    *(0x00000000, 0x00000001, 0x00000FFF, 0x00001000, 0x00001001, 0x00007FFF, 0x00008000, 0x00008001, 0x0000FFFF),
    *(0x007FFFFF, 0x00800000, 0x3F7FFFFF, 0x3F800000, 0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3F801000, 0x3F803000),
    *(0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F7FF000, 0x7F7FEFFF, 0x7F000000, 0x7F800000, 0x7F800001, 0x7FC00000),
]


def from_bits(bits: Any) -> Array:
    return np.array(bits, np.uint32).view(np.float32)


def plan_split(x: Array, precision: str, arch: str, *, transposed: bool = False) -> tuple[Builder, Matrix]:
    view = describe("x", x)
    operand = matrix(view, alignment([view.pointer]))
    builder = Builder(DeviceSpec.preset(arch), Options())
    return builder, split(builder, operand.T if transposed else operand, precision)


def run_split(x: Array, precision: str, arch: str = "sm_90a", schedule: str = "lockstep") -> tuple[Array, list[Result]]:
    """The planes of a matrix, (planes, rows, cols), and what the emulator says of each step; padding must be zero."""
    builder, planes = plan_split(x, precision, arch)
    memory = GlobalMemory()
    source = _Placed(memory, "x", x, False, False)
    workspace = memory.alloc(builder.top, initialised=False, name=WORKSPACE)
    results = []
    for step in builder.steps:
        artifact = compile_kernel(render(step.config), entry=entry_name(step.family), arch=arch)
        block = make_template(step, ["x", WORKSPACE]).fill([source.pointer, workspace]).tobytes()
        results.append(
            run(artifact.ptx, artifact.entry, step.grid, step.threads, 0, [block], memory=memory, schedule=schedule)
        )
        results[-1].report.raise_if_any()
    along_rows = planes.col_stride == 1
    rows, cols, pitch = (
        (planes.rows, planes.cols, planes.row_stride) if along_rows else (planes.cols, planes.rows, planes.col_stride)
    )
    kind, count = PLANE[precision], SPLITS[precision].planes
    assert pitch * kind.itemsize % 32 == 0 and planes.align >= 16 and SPLITS[precision].dtype == planes.dtype
    offset = int(planes.buffer.partition("+")[2])
    raw = memory.view(workspace + offset, count * rows * pitch * kind.itemsize).view(kind).reshape(count, rows, pitch)
    testing.assert_same_bits(raw[:, :, cols:], np.zeros((count, rows, pitch - cols), kind), what="padding")
    got = raw[:, :, :cols].copy()
    return (got if along_rows else got.swapaxes(1, 2)), results


def want_planes(x: Array, precision: str) -> Array:
    """The reference's planes in their own type, NaN with the kernel's payload."""
    kind = PLANE[precision]
    planes = np.stack(reference.planes(x, precision))
    with np.errstate(invalid="ignore"):  # signalling NaN
        want = planes.astype(kind)
        assert (want.astype(np.float32).view(np.uint32) == planes.view(np.uint32))[~np.isnan(planes)].all()  # exact
    bits = want.view(np.uint16 if kind.itemsize == 2 else np.uint32)
    signed = np.signbit(x) & (precision != "tf32")  # cvt.rna has but one NaN
    bits[-1][np.isnan(x) & ~signed] = 0x7FFF if kind.itemsize == 2 else 0x7FFFFFFF
    bits[-1][np.isnan(x) & signed] = 0xFFFF if kind.itemsize == 2 else 0xFFFFFFFF
    return want


# On sm_90a alone tf32 has a plane.
ON_ARCHS = [
    (precision, arch)
    for precision in PRECISIONS
    for arch in ("sm_75", "sm_80", "sm_90a", "sm_120")
    if precision != "tf32" or arch == "sm_90a"
]


@pytest.mark.parametrize(("precision", "arch"), ON_ARCHS)
def test_special_numbers_on_every_arch(precision: str, arch: str, compiled: None) -> None:
    x = from_bits([SPECIAL_BITS, [bits | 0x80000000 for bits in SPECIAL_BITS]])
    got, _ = run_split(x, precision, arch)
    testing.assert_same_bits(got, want_planes(x, precision))


@pytest.mark.parametrize(("precision", "arch"), [pair for pair in ON_ARCHS if pair[1] != "sm_120"])
def test_variants_fit_without_spills(precision: str, arch: str, compiled: None) -> None:
    for config in (
        SplitPlanesConfig(precision, 16),
        SplitPlanesConfig(precision, 4),
        SplitPlanesConfig(precision, 4, True),
    ):
        check(config, arch)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_random_bits(precision: str, compiled: None) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, (61, 1000), dtype=np.uint32).view(np.float32)
    got, _ = run_split(x, precision)
    testing.assert_same_bits(got, want_planes(x, precision))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(SPECIAL_BITS), min_size=1, max_size=40))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_float(precision: str, compiled: None, bits: list[int]) -> None:
    x = from_bits([bits])
    got, _ = run_split(x, precision)
    testing.assert_same_bits(got, want_planes(x, precision))


def rounded_bfloat16(x: Array) -> Array:
    """The nearest bfloat16 by ml_dtypes, another implementation than the reference's."""
    return x.astype(ml_dtypes.bfloat16)


def test_planes_are_what_ml_dtypes_makes_of_them(compiled: None) -> None:
    x = testing.wide((20, 64), "float32", 0, exponent=90)
    first = rounded_bfloat16(x)
    second = rounded_bfloat16(x - first.astype(np.float32))
    third = rounded_bfloat16(x - first.astype(np.float32) - second.astype(np.float32))
    testing.assert_same_bits(run_split(x, "bf16x6")[0], np.stack([first, second, third]))
    total: Array = np.stack([first, second, third]).astype(np.float64).sum(axis=0)
    testing.assert_same_bits(total.astype(np.float32), x)


@pytest.mark.parametrize("view", testing.VIEWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_view_gives_the_planes_of_its_copy(precision: str, view: str, compiled: None) -> None:
    for shape in ((13, 37), (1, 50), (50, 1), (3, 4)):
        x = testing.normal(shape, "float32", 1)
        got, _ = run_split(testing.VIEWS[view](x, np), precision)
        testing.assert_same_bits(got, want_planes(x, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transposed_operand_keeps_its_major_or_lies_along_k(precision: str, compiled: None) -> None:
    """As the precision needs it; in tiles with edges, rows of which a shifted base leaves nothing aligned."""
    for shape in ((65, 130), (64, 64), (3, 70), (70, 2)):
        x = np.asfortranarray(testing.normal((shape[0] + 1, shape[1]), "float32", 1))[1:]
        builder, planes = plan_split(x, precision, "sm_90a")
        assert planes.row_major == SPLITS[precision].along_k
        assert [step.config.transpose for step in builder.steps] == [SPLITS[precision].along_k]  # type: ignore[union-attr]
        testing.assert_same_bits(run_split(x, precision)[0], want_planes(x, precision))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_broadcast_operand_is_read_in_place(axis: int, compiled: None) -> None:
    x = testing.broadcast(testing.normal((9, 21), "float32", 1), axis)
    got, _ = run_split(x, "bf16x6")
    testing.assert_same_bits(got, want_planes(np.ascontiguousarray(x), "bf16x6"))


def test_rows_without_a_single_stride_are_copied_first(compiled: None) -> None:
    x = testing.normal((4, 3, 10), "float32", 1)[:, ::2]
    builder, _ = plan_split(x, "bf16x6", "sm_90a")
    assert [step.family for step in builder.steps] == ["strided_copy", "split_planes"]
    got, _ = run_split(x, "bf16x6")
    testing.assert_same_bits(got, want_planes(x.reshape(8, 10), "bf16x6"))


@pytest.mark.parametrize("schedule", ["warps", "random"])
def test_every_schedule_gives_the_same_planes(schedule: str, compiled: None) -> None:
    x = testing.normal((7, 300), "float32", 1)
    testing.assert_same_bits(run_split(x, "bf16x6", schedule=schedule)[0], want_planes(x, "bf16x6"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_aligned_operands_move_in_whole_sectors(precision: str, compiled: None) -> None:
    raw = np.zeros(64 * 128 + 64, np.float32)  # device memory starts at multiples of 256 bytes
    x = raw[-raw.ctypes.data % 256 // 4 :][: 64 * 128].reshape(64, 128)
    for operand in (x, x.T):  # in the planes that lie along K the second goes through shared memory
        _, (result,) = run_split(operand, precision)
        assert result.counters.sector_ratio == 1.0 and result.counters.wavefront_ratio == 1.0


def test_one_operand_read_both_ways_is_split_once() -> None:
    """dy is A of dgrad and, transposed, of wgrad."""
    x = np.zeros((5, 12), np.float32)
    builder, planes = plan_split(x, "bf16x6", "sm_90a")
    view = describe("x", x)
    again = split(builder, matrix(view, alignment([view.pointer])).T, "bf16x6")
    assert len(builder.steps) == 1 and again.buffer == planes.buffer
    assert (again.rows, again.cols, again.row_stride, again.col_stride) == (12, 5, 1, planes.row_stride)
    split(builder, matrix(view, alignment([view.pointer])), "tf32x3")
    assert len(builder.steps) == 2


def test_what_the_planes_leave_over() -> None:
    """The limits that the bounds and docs/accuracy.md give: exact from 2^-110 on, 2^-134 or less below."""
    bits = np.random.default_rng(1).integers(0, 2**32, 20000, dtype=np.uint32)
    x = from_bits([*bits, *SPECIAL_BITS])
    x = x[np.isfinite(x)]
    rest = np.abs(sum(plane.astype(np.float64) for plane in reference.planes(x, "bf16x6")) - x)
    assert (rest[np.abs(x) >= 2.0**-110] == 0).all() and rest.max() <= 2.0**-134
    assert math.isfinite(rest.max()) and rest.max() > 0
