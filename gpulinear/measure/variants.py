"""Which kernels there are to look at: every legal variant of every family, each with a small call that launches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .. import gemm, testing
from ..calls import BUILDERS
from ..config import FAMILIES, SEGMENT, Config, GemmConfig, JointConfig
from ..device import DeviceSpec
from ..errors import BackendError
from ..plan import Options, Plan
from ..problem import ITEMSIZE, PRECISIONS
from ..views import numpy_dtype

DTYPES = tuple(ITEMSIZE)
_UNTUNED = Options(tuned=False)  # what is looked at may not depend on the tables of this machine
_COPIED = "columns_stepped"  # the view that no kernel reads in place
LAYOUTS = {"NT": "linear", "NN": "dgrad", "TN": "wgrad"}
_BOTH = "NN+TN"  # of a joint launch
_SUMMING = "TN+db"  # of a wgrad that sums db too
# Both 16-bit types have the same such wgrads: one tells. Joint launches put two kernels that are looked at anyway into one:
# of each family one dtype tells whether they fit together.
_JOINT_DTYPES = {"gemm_simt": "float32", "gemm_mma": "bfloat16", "gemm_wgmma": "bfloat16"}

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # by argument name


@dataclass(frozen=True)
class SmallCall:
    """A call of a public function on arrays that it makes itself: aligned to 256 bytes, or seen through a ``view``.

    ``view`` is a key of ``gpulinear.testing.VIEWS``, applied to every matrix input.
    """

    op: str
    dtype: str
    inputs: Shapes
    outputs: Shapes
    settings: tuple[tuple[str, Any], ...] = ()
    view: str = "contiguous"
    options: Options = _UNTUNED

    def build(self, *, random: bool = True) -> gemm.Call:
        """The checked call, with random inputs (zeros are made faster) and outputs full of NaN."""
        dtype = numpy_dtype(self.dtype)
        arrays = {}
        for seed, (name, shape) in enumerate(self.inputs):
            values = testing.normal(shape, dtype, seed) if random else np.zeros(shape, dtype)
            arrays[name] = testing.VIEWS[self.view](values, np)
        outputs = {name: testing.poisoned(shape, dtype).array for name, shape in self.outputs}
        return BUILDERS[self.op](**arrays, **outputs, **dict(self.settings))

    def plan(self, call: gemm.Call, arch: str) -> Plan:
        """What runs on ``arch``. BackendError where no kernel can."""
        with gemm.planning(self.options):
            return gemm.plan_call(call, DeviceSpec.preset(arch))


@dataclass(frozen=True)
class Variant:
    """One kernel: its config, and the step of a small call's plan that launches it."""

    arch: str
    config: Config
    call: SmallCall
    step: int
    layout: str  # a key of LAYOUTS, _SUMMING or _BOTH; empty for kernels that multiply no matrices
    long: bool = False  # launched only where K is longer than a segment

    @property
    def precision(self) -> str | None:
        """Of the matrix product, or of a kernel that has variants for it; None for the default."""
        given = dict(self.call.settings).get("precision") if self.layout else getattr(self.config, "precision", None)
        return None if given == "ieee" else given

    @property
    def tile(self) -> str:
        """The config's short name; of other kernels than matrix products, the switches of their config that are on."""
        if isinstance(self.config, (GemmConfig, JointConfig)):
            return self.config.tile
        return " ".join(one.name for one in fields(self.config) if getattr(self.config, one.name) is True)

    @property
    def name(self) -> str:
        """Stable and unique, as in "gemm_simt NT 128x128x16/8x8 float32 sm_90a"."""
        view = self.call.view if self.call.view not in ("contiguous", _COPIED) else None
        long = "K>S" if self.long else None
        words = (self.config.family, self.layout, self.tile, self.call.dtype, self.precision, long, view, self.arch)
        return " ".join(word for word in words if word)


def _gemm_call(
    layout: str, dtype: str, precision: str | None, view: str, sizes: Sequence[int], options: Options
) -> SmallCall:
    m, n, k = sizes
    inputs: Shapes = {
        "NT": (("x", (m, k)), ("weight", (n, k))),
        "NN": (("dy", (m, k)), ("weight", (k, n))),
        "TN": (("dy", (k, m)), ("x", (k, n))),
    }[layout]
    settings = (("precision", precision),) if precision else ()
    return SmallCall(LAYOUTS[layout], dtype, inputs, (("out", (m, n)),), settings, view, options)


def _gemm_calls(
    arch: str, family: str, dtype: str, precision: str | None, view: str
) -> Iterator[tuple[str, SmallCall, bool]]:
    """For each legal variant of a family its layout and a call of one tile (of a cluster of them), a few k-tiles deep;
    then one of more than a segment of K, for which a family may have another kernel."""
    for layout in LAYOUTS:
        # Four rows of the largest tiles, so that clusters are legal.
        probe = _gemm_call(layout, dtype, precision, view, (512, 512, 128), Options(family=family, tuned=False))
        try:
            choices = probe.plan(probe.build(random=False), arch).choices
        except BackendError:  # the family has nothing for these operands on this arch
            continue
        for choice in choices:
            if choice.refused is None:
                config = choice.config
                options = Options(family=family, tile=config.tile, splits=1, tuned=False)
                rows, depth = config.block_m * config.blocks_per_cluster, max(64, 2 * config.block_k)
                for long in (False, True):
                    sizes = (rows, config.block_n, depth + long * config.segment)
                    yield layout, _gemm_call(layout, dtype, precision, view, sizes, options), long


def _joint_call(arch: str, family: str, dtype: str, view: str) -> SmallCall | None:
    """A call of a tile each of both gradients in one launch, by the first tile that both have; None where there is none."""

    def call(tokens: int, out: int, inner: int, options: Options) -> SmallCall:
        inputs: Shapes = (("dy", (tokens, out)), ("x", (tokens, inner)), ("weight", (out, inner)))
        outputs: Shapes = (("dx_out", (tokens, inner)), ("dw_out", (out, inner)))
        return SmallCall("linear_backward", dtype, inputs, outputs, (("needs", ("dx", "dw")),), view, options)

    options = Options(family=family, splits=1, tuned=False, joint=True)
    try:
        probe = call(512, 512, 512, options)
        choices = probe.plan(probe.build(random=False), arch).choices
    except BackendError:  # the family has nothing for these operands on this arch
        return None
    legal = [choice.config for choice in choices if choice.refused is None]
    times = Counter(config.tile for config in legal)
    config = next(config for config in legal if times[config.tile] == 2)  # dgrad's and wgrad's
    rows = config.block_m * config.blocks_per_cluster
    return call(rows, rows, config.block_n, replace(options, tile=config.tile))


def _summing_calls(arch: str, family: str, dtype: str, view: str) -> Iterator[SmallCall]:
    """A call of one tile for each variant of a wgrad that sums db too."""
    for layout, call, long in _gemm_calls(arch, family, dtype, None, view):
        if layout == "TN" and not long:
            (_, (_, out)), (_, (_, inner)) = call.inputs
            inputs: Shapes = (*call.inputs, ("weight", (out, inner)))
            outputs: Shapes = (("dw_out", (out, inner)), ("db_out", (out,)))
            summing = SmallCall(
                "linear_backward", dtype, inputs, outputs, (("needs", ("dw", "db")),), view, call.options
            )
            if len(summing.plan(summing.build(random=False), arch).steps) == 1:  # else column_sum does it
                yield summing


def _other_calls(dtype: str) -> Iterator[SmallCall]:
    """Calls that launch the kernels beside the matrix products."""
    rows, cols = 128, 64
    yield SmallCall("bgrad", dtype, (("dy", (rows, cols)),), (("out", (cols,)),))
    inputs: Shapes = (("dy", (rows, cols)), ("x", (rows, 16)), ("weight", (cols, 16)), ("preact", (rows, cols)))
    settings = (("needs", ("db",)), ("activation", "silu"))
    yield SmallCall("linear_backward", dtype, inputs, (("db_out", (cols,)),), settings)
    depth = SEGMENT["gemm_simt"] + 16
    split = Options(family="gemm_simt", splits=2, tuned=False)
    yield _gemm_call("NT", dtype, None, "contiguous", (32, 32, depth), split)
    yield _gemm_call("NT", dtype, None, _COPIED, (rows, cols, 64), _UNTUNED)


def variants(
    arch: str,
    families: Iterable[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    views: Sequence[str] = ("contiguous",),
) -> list[Variant]:
    """Every kernel that a plan for ``arch`` may launch, once each, those of matrix products first.

    Args:
        arch: such as "sm_90a".
        families: only these; None: all.
        dtypes: of the operands; float32 in every precision that has a kernel.
        views: how the operands of a matrix product lie, keys of ``gpulinear.testing.VIEWS``. Aligned and misaligned
            operands are served by different variants.
    """
    wanted = None if families is None else set(families)
    found: dict[Config, Variant] = {}

    def add(call: SmallCall, layout: str = "", long: bool = False) -> None:
        for index, step in enumerate(call.plan(call.build(random=False), arch).steps):
            multiplies = isinstance(step.config, (GemmConfig, JointConfig))
            if multiplies and not layout:
                continue  # a bystander, with whatever tile the planner took
            if wanted is None or step.family in wanted:
                variant = Variant(arch, step.config, call, index, layout if multiplies else "", multiplies and long)
                found.setdefault(step.config, variant)

    only_products = wanted is not None and wanted <= set(FAMILIES)  # others may be a step of any product's plan
    for family in FAMILIES:
        if only_products and wanted is not None and family not in wanted:
            continue
        for dtype in dtypes:
            for precision in PRECISIONS if dtype == "float32" else (None,):
                for view in views:
                    for layout, call, long in _gemm_calls(arch, family, dtype, precision, view):
                        add(call, layout, long)
    for family in ("gemm_mma", "gemm_wgmma"):
        if "bfloat16" in dtypes and (wanted is None or family in wanted):
            for view in views:
                for call in _summing_calls(arch, family, "bfloat16", view):
                    add(call, _SUMMING)
    for family, dtype in _JOINT_DTYPES.items():
        if dtype in dtypes and (wanted is None or f"joint_{family}" in wanted):
            for view in views:
                joint = _joint_call(arch, family, dtype, view)
                if joint is not None:
                    add(joint, _BOTH)
    for dtype in () if only_products else dtypes:
        for call in _other_calls(dtype):
            add(call)
    return sorted(found.values(), key=lambda variant: not variant.layout)
