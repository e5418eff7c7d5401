"""What there is to choose from for a case: the legal variants of its matrix product and their splits, best predicted
first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..builder import Builder
from ..calls import BUILDERS
from ..device import DeviceSpec
from ..errors import BackendError
from ..plan import Options
from ..planner import as_read, considered
from ..problem import Gemm
from ..views import ShapeDtype
from .case import Case
from .operands import dtype_of, names_of, shape_of

# A candidate is left out when its predicted time is more than this many times the least one: the cost model would have
# to be wrong by that factor for it to win. Below a few microseconds launching decides, which the model leaves out.
PRUNED_BEYOND = 3.0
LEAST_US = 5.0
MOST_CANDIDATES = 32


@dataclass(frozen=True)
class Candidate:
    """A variant and a number of K splits, with the microseconds that the cost model predicts."""

    family: str
    tile: str
    splits: int
    predicted_us: float

    @property
    def name(self) -> str:
        """Family, tile and splits."""
        return f"{self.family} {self.tile} splits {self.splits}"

    @property
    def options(self) -> Options:
        """What makes the planner choose it."""
        return Options(family=self.family, tile=self.tile, splits=self.splits)


def tunable(cases: Iterable[Case]) -> list[Case]:
    """The plain products behind cases, once each: tables know neither epilogues nor strides, and backward is two."""
    found: dict[str, Case] = {}
    for case in cases:
        plain = replace(case, bias=False, activation=None, accumulate=False, view="contiguous")
        for op in ("dgrad", "wgrad") if case.op == "backward" else (case.op,):
            # backward's out_dtype is dw's
            out_dtype = None if (case.op, op) == ("backward", "dgrad") else case.out_dtype
            product = replace(plain, op=op, out_dtype=out_dtype)
            found.setdefault(product.name, product)
    return list(found.values())


def problem_of(case: Case, builder: Builder) -> Gemm:
    """The matrix product of a ``tunable`` case on freshly allocated operands, as its kernel reads them."""
    inputs, (output,) = names_of(case)
    operands = {name: ShapeDtype(shape_of(case, name), dtype_of(case, name)) for name in inputs}
    call = BUILDERS[case.op](**operands, precision=case.precision, out_dtype=dtype_of(case, output))
    (gemm,) = call.problems
    assert isinstance(gemm, Gemm)
    return as_read(builder, gemm)


def candidates_of(case: Case, spec: DeviceSpec) -> list[Candidate]:
    """The cost model's choice, then the others by predicted time.

    Left out are those predicted to take more than ``PRUNED_BEYOND`` times as long as the choice or as ``LEAST_US``,
    whichever is longer, and those after the first ``MOST_CANDIDATES``.

    Raises:
        BackendError: no kernel can run the case on ``spec``.
    """
    builder = Builder(spec, Options(tuned=False))
    found, reasons = [], set()
    for choice in considered(builder, problem_of(case, builder)):
        if choice.cost is None:
            reasons.add(choice.refused)
        else:
            config, predicted_us = choice.config, 1e6 * choice.cost.seconds
            found.append(Candidate(config.family, config.tile, choice.splits, predicted_us))
    if not found:
        raise BackendError(f"no kernel can run {case.name} on {spec.arch}: {'; '.join(sorted(map(str, reasons)))}")
    found.sort(key=lambda candidate: candidate.predicted_us)  # stable: the planner's choice among equals stays first
    limit = PRUNED_BEYOND * max(found[0].predicted_us, LEAST_US)
    return [candidate for candidate in found if candidate.predicted_us <= limit][:MOST_CANDIDATES]
