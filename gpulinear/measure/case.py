"""What one measurement is of: an op of a linear layer with its sizes, dtypes and layout."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..errors import ArgumentError
from ..problem import ACTIVATION_CODES, ITEMSIZE, PRECISIONS, accumulator_dtype
from ..testing import VIEWS

OPS = ("linear", "dgrad", "wgrad", "backward")


@dataclass(frozen=True)
class Case:
    """One timed unit. Two cases with equal names are the same work.

    op: linear, dgrad, wgrad, or backward (dgrad and wgrad of one layer as one unit).
    tokens, out_features, in_features: x is (tokens, in), weight (out, in), y and dy (tokens, out); all at least 1.
    precision: float32 only; None is "ieee".
    bias, activation: linear only.
    accumulate: wgrad and backward only: dw += dyᵀ x.
    out_dtype: None is ``dtype``; of backward's two outputs it is dw's.
    view: a key of ``gpulinear.testing.VIEWS``, applied to every matrix input.
    group, source: why the case is measured and where its sizes come from; no part of the name.

    Raises:
        ArgumentError: a field is outside these rules.
    """

    op: str
    dtype: str
    tokens: int
    out_features: int
    in_features: int
    precision: str | None = None
    bias: bool = False
    activation: str | None = None
    accumulate: bool = False
    out_dtype: str | None = None
    view: str = "contiguous"
    group: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        # One spelling of each default, so that equal work has one name.
        if self.precision == "ieee":
            object.__setattr__(self, "precision", None)
        if self.out_dtype == self.dtype:
            object.__setattr__(self, "out_dtype", None)
        for name, value, known in (
            ("op", self.op, OPS),
            ("dtype", self.dtype, tuple(ITEMSIZE)),
            ("precision", self.precision, (None, *PRECISIONS)),
            ("activation", self.activation, tuple(ACTIVATION_CODES)),
            ("out_dtype", self.out_dtype, (None, accumulator_dtype(self.dtype))),
            ("view", self.view, tuple(VIEWS)),
        ):
            if value not in known:
                raise ArgumentError(f"{name} of a case must be one of {known}, got {value!r}")
        if min(self.tokens, self.out_features, self.in_features) < 1:
            sizes = (self.tokens, self.out_features, self.in_features)
            raise ArgumentError(f"a case is timed and needs sizes of at least 1, got {sizes}")
        for rule, given, allowed in (
            ("precision is for float32", self.precision is not None, self.dtype == "float32"),
            ("bias and activation are linear's", self.bias or self.activation is not None, self.op == "linear"),
            ("accumulate is for wgrad and backward", self.accumulate, self.op in ("wgrad", "backward")),
        ):
            if given and not allowed:
                raise ArgumentError(f"{rule}, got op {self.op!r} with dtype {self.dtype!r}")

    @property
    def name(self) -> str:
        """Stable and unique, such as "linear bfloat16 4096x11008x4096 +bias +gelu" (tokens x out x in)."""
        words = [self.op, self.dtype + (f"->{self.out_dtype}" if self.out_dtype else "")]
        words += [self.precision] if self.precision else []
        words.append(f"{self.tokens}x{self.out_features}x{self.in_features}")
        words += ["+bias"] * self.bias + ([f"+{self.activation}"] if self.activation else [])
        words += ["+accumulate"] * self.accumulate
        words += [self.view] if self.view != "contiguous" else []
        return " ".join(words)

    @property
    def flops(self) -> int:
        """Two for each product of the matrix multiplication, twice that for backward; bias and activation are free."""
        return 2 * self.tokens * self.out_features * self.in_features * (2 if self.op == "backward" else 1)

    @property
    def least_bytes(self) -> int:
        """Bytes that must move: each input read once, each output written once (accumulating: read as well)."""
        sizes = {
            "x": self.tokens * self.in_features,
            "y": self.tokens * self.out_features,
            "w": self.out_features * self.in_features,
        }
        read, written = {
            "linear": ("xw", "y"),
            "dgrad": ("yw", "x"),
            "wgrad": ("yx", "w"),
            "backward": ("yxw", "xw"),
        }[self.op]
        item = ITEMSIZE[self.dtype]
        total = item * (sum(sizes[key] for key in read) + self.out_features * self.bias)
        for key in written:
            converted = self.out_dtype is not None and (self.op != "backward" or key == "w")
            width = ITEMSIZE[self.out_dtype] if converted and self.out_dtype else item
            total += width * sizes[key] * (2 if self.accumulate and key == "w" else 1)
        return total

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their default, as JSON values; ``from_json`` undoes it."""
        required = {f.name for f in fields(self) if f.default is MISSING}
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if k in required or v != defaults[k]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Case:
        """The case that ``to_json`` wrote.

        Raises:
            ArgumentError: a key is missing or unknown, or a value has the wrong type or breaks a rule.
        """
        types = {"tokens": int, "out_features": int, "in_features": int, "bias": bool, "accumulate": bool}
        names = [f.name for f in fields(Case)]
        for key, item in value.items():
            kind = types.get(key, str)
            if key not in names or type(item) is not kind:
                raise ArgumentError(f"a case has the fields {', '.join(names)}; {key} = {item!r} is none of them")
        missing = [f.name for f in fields(Case) if f.default is MISSING and f.name not in value]
        if missing:
            raise ArgumentError(f"a case lacks {', '.join(missing)}")
        return Case(**value)
