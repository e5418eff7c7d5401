"""gpulinear itself: as a caller gets it, or with one kernel family forced."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import GpuLinearError
from ...explain import explain, warmup
from ...gemm import planning
from ...linear import dgrad, linear, linear_backward, wgrad
from ...params import PARAM_BLOCKS
from ...plan import Options, Plan, Step
from ...views import ShapeDtype
from ..case import Case
from ..operands import OperandSet, dtype_of, names_of, shape_of

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "dgrad": dgrad,
    "wgrad": wgrad,
    "linear_backward": linear_backward,
}


class Ours:
    """gpulinear's public functions with ``out=``. ``arch`` is what cases are planned for before arrays exist."""

    ours = True

    def __init__(self, arch: str, family: str | None = None, options: Options | None = None) -> None:
        """Force a family, or, with ``options``, whatever the planner can be told."""
        self.name = f"gpulinear:{family}" if family else "gpulinear"
        self._arch = arch
        with planning(options or Options(family=family)):
            self._context = contextvars.copy_context()  # calls run in it: a forced family costs them nothing
        self._kernel = ""

    def why_not(self, case: Case) -> str | None:
        """The planner's refusal, if it refuses the case."""
        inputs, outputs = names_of(case)
        arrays = {name: ShapeDtype(shape_of(case, name), dtype_of(case, name)) for name in inputs + outputs}
        op, args, kwargs = _call(case, arrays)
        try:
            self._context.run(explain, op, *args, arch=self._arch, **kwargs)
        except GpuLinearError as error:
            return str(error)
        return None

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """Compiles and loads; each call goes the way a user's call goes."""
        calls = [_call(case, {**one.inputs, **one.outputs}) for one in sets]
        op, args, kwargs = calls[0]
        self._kernel = _describe(self._context.run(warmup, op, *args, **kwargs))
        function = _FUNCTIONS[op]
        run = self._context.run

        def call(i: int) -> None:
            _, args, kwargs = calls[i]
            run(function, *args, **kwargs)

        return call

    def kernel(self, case: Case) -> str:
        """Family, tile and number of splits of each launch."""
        return self._kernel

    def close(self) -> None:
        """Nothing is held."""


def _call(case: Case, arrays: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """(function, arguments, keyword arguments) of the public API."""
    common: dict[str, Any] = {} if case.precision is None else {"precision": case.precision}
    if case.op == "linear":
        args = (arrays["x"], arrays["weight"], arrays.get("bias"))
        return "linear", args, {**common, "activation": case.activation, "out": arrays["y"]}
    if case.op == "dgrad":
        return "dgrad", (arrays["dy"], arrays["weight"]), {**common, "out": arrays["dx"]}
    common["accumulate"] = case.accumulate
    if case.op == "wgrad":
        return "wgrad", (arrays["dy"], arrays["x"]), {**common, "out": arrays["dw"]}
    outputs = {"needs": ("dx", "dw"), "dx_out": arrays["dx"], "dw_out": arrays["dw"]}
    return "linear_backward", (arrays["dy"], arrays["x"], arrays["weight"]), {**common, **outputs}


def _describe(plan: Plan) -> str:
    return " + ".join(map(_describe_step, plan.steps))


def _describe_step(step: Step) -> str:
    words = [step.family]
    tile = getattr(step.config, "tile", None)
    words += [tile] if tile else []
    # One value an element: the pointers come first, and a field with a count has as many.
    names = [name for name, _, count in PARAM_BLOCKS[step.family].fields for _ in range(count)]
    # Of each problem that the launch is for.
    splits = [value for name, value in zip(names, step.values, strict=True) if name.rpartition(".")[2] == "splits"]
    words += [f"{' and '.join(map(str, splits))} splits"] if set(splits) - {1} else []
    return " ".join(words)
