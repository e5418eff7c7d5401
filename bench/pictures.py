"""The report's pictures, as SVG for a light and a dark page: equal rows give equal bytes.

Each function draws one GPU's rows on a matplotlib figure, or says None where it has none. Colours are Okabe and Ito's,
which the colour-blind can tell apart (Color Universal Design, 2008), and no series is told by colour alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from gpulinear.measure.cases import ARITHMETIC, arithmetic
from gpulinear.measure.pairs import OPS, OURS, GpuRows, Pair, tflops
from gpulinear.measure.records import Row

from .tables import days

WIDTH = 9.0  # inches of 96 pixels: the width of a README
SMALL = 1e6  # operations of a call below which it is nothing but a launch
FEW = 64  # tokens up to which a layer is bound by its weight's bytes
_SALT = "gpulinear"


@dataclass(frozen=True)
class Theme:
    """Colours of a page, which shows through: ``ink`` for words, ``faint`` for grids, ``series`` for data."""

    name: str
    ink: str
    faint: str
    series: tuple[str, ...]

    def of(self, name: str) -> str:
        """The colour of an arithmetic or of an op."""
        names = list(ARITHMETIC) if name in ARITHMETIC else list(OPS)
        return self.series[names.index(name)]


THEMES = (
    Theme("light", "#1f2328", "#d1d9e0", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#444444")),
    Theme("dark", "#e6edf3", "#3d444d", ("#56A8E8", "#FF8A3D", "#2FC79A", "#E49AC4", "#A5D8FF", "#F0C541", "#D0D0D0")),
)
_MARKERS = dict(zip((*ARITHMETIC, *OPS), "osD^vPXosD^", strict=True))


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    """matplotlib's own defaults and these, whatever the user's settings are."""
    ours: dict[Any, Any] = {
        "svg.hashsalt": _SALT, "svg.fonttype": "path", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.ink, "xtick.color": theme.ink,
        "ytick.color": theme.ink, "axes.grid": True, "grid.color": theme.faint, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(ours)
        yield


# Ticks


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def _times(value: float, _: Any = None) -> str:
    return f"{value:g}x"


def _size(value: float, _: Any = None) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _power(value: float, _: Any = None) -> str:
    return f"$10^{{{round(np.log10(value))}}}$"


def _power_from_small(value: float, _: Any = None) -> str:
    return f"$\\leq${_power(value)}" if value <= SMALL else _power(value)


def _log(axes: Axes, which: str, low: float, high: float, base: int, words: Callable[..., str], most: int = 8) -> None:
    """A logarithmic x or y axis from ``low`` to ``high`` with ticks at powers of ``base``, about ``most`` of them.

    Where no power lies between, the axis begins at the one below.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    last = int(np.floor(np.log(high) / np.log(base)))
    first = min(last, int(np.ceil(np.log(low) / np.log(base))))
    axes.set(**{f"{which}scale": "log", f"{which}lim": (min(low, float(base) ** first), high)})
    powers = range(first, last + 1, 1 + (last - first) // most)
    axis.set_major_locator(FixedLocator([float(base) ** power for power in powers]))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_major_formatter(FuncFormatter(words))
    axis.set_minor_formatter(NullFormatter())


# Parts that pictures share


def _series(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Pairs apart by arithmetic, in the order of the tables, without empty ones."""
    found: dict[str, list[Pair]] = {name: [] for name in ARITHMETIC}
    for pair in pairs:
        found[arithmetic(pair.case)].append(pair)
    return {name: some for name, some in found.items() if some}


def _panels(titles: Sequence[str], share_y: bool, xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A panel for each title, up to four in a row; axes are named at the edges."""
    columns = min(4, len(titles))
    lines = -(-len(titles) // columns)
    height = 1.45 + 1.95 * lines
    figure = Figure(figsize=(WIDTH, height))
    grid = list(figure.subplots(lines, columns, sharey=share_y, squeeze=False).ravel())
    figure.subplots_adjust(
        left=0.07,
        right=0.985,
        bottom=0.72 / height,
        top=1 - 0.87 / height,
        wspace=0.1 if share_y else 0.24,
        hspace=0.42,
    )
    for index, axis in enumerate(grid):
        if index >= len(titles):
            axis.set_visible(False)
            continue
        axis.set_title(titles[index], loc="left")
        if index % columns == 0:
            axis.set_ylabel(ylabel)
        if index + columns >= len(titles):
            axis.set_xlabel(xlabel)
    return figure, grid[: len(titles)]


def _finish(figure: Figure, gpu: GpuRows, title: str, theme: Theme, handles: Sequence[Line2D]) -> Figure:
    """Title and legend above; below, where and when the numbers are from."""
    height = figure.get_figheight()
    shown = [gpu.any_of(run) for run in gpu.runs]
    commits = ", ".join(list(dict.fromkeys(data["commit"][:7] for data in shown))[:3])
    figure.text(0.01, 1 - 0.08 / height, title, fontsize=12, fontweight="bold", va="top")
    caption = f"{gpu.gpu} · {days(data['time'] for data in shown)} · gpulinear at commit {commits}"
    figure.text(0.01, 0.06 / height, caption, fontsize=8, alpha=0.85, va="bottom")
    if handles:
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.0, 1 - 0.3 / height), ncols=len(handles),
            columnspacing=1.2, handletextpad=0.4, borderaxespad=0.2,
        )  # fmt: skip
    return figure


def _dots(name: str, theme: Theme, hollow: bool = False) -> dict[str, Any]:
    """How the points of an arithmetic or an op look."""
    color = theme.of(name)
    return {
        "linestyle": "none", "marker": _MARKERS[name], "color": color, "markersize": 4, "markeredgewidth": 0.8,
        "markerfacecolor": "none" if hollow else color,
    }  # fmt: skip


# The pictures


def ratio(gpu: GpuRows, theme: Theme) -> Figure | None:
    """Peer's time / ours against the work of a case: a panel for each arithmetic, a marker for each op."""
    series = _series(pair for pair in gpu.pairs if pair.ratio is not None)
    if not series:
        return None
    everything = [pair for some in series.values() for pair in some]
    values = [pair.ratio or 1.0 for pair in everything]
    low, high = min(0.5, *values) / 1.15, max(2.0, *values) * 1.15
    most = max(10 * SMALL, *(pair.case.flops for pair in everything))
    figure, grid = _panels(list(series), True, "operations of a call", "peer's time / ours")
    for axis, some in zip(grid, series.values(), strict=True):
        axis.axhline(1, color=theme.ink, linewidth=1.1)
        for op in OPS:
            for hollow in (False, True):
                dots = [pair for pair in some if pair.case.op == op and (pair.case.tokens <= FEW) is hollow]
                work = [max(SMALL, pair.case.flops) for pair in dots]
                axis.plot(work, [pair.ratio or 1.0 for pair in dots], **_dots(op, theme, hollow))
        _log(axis, "x", SMALL / 2, most * 2, 10, _power_from_small, 4)
        _log(axis, "y", low, high, 2, _times)
    for y, side, words in ((0.97, "top", "gpulinear ahead"), (0.03, "bottom", "behind")):
        grid[0].text(0.03, y, words, transform=grid[0].transAxes, fontsize=8, va=side, style="italic")
    shown = [op for op in OPS if any(pair.case.op == op for pair in everything)]
    handles = [Line2D([], [], label=OPS[op], **_dots(op, theme)) for op in shown]
    if any(pair.case.tokens <= FEW for pair in everything):
        handles.append(
            Line2D(
                [], [], label=f"hollow: {FEW} tokens or fewer", **{**_dots(shown[0], theme, True), "color": theme.ink}
            )
        )
    return _finish(figure, gpu, "Time of the fastest right peer / ours, case by case", theme, handles)


def squares(gpu: GpuRows, theme: Theme) -> Figure | None:
    """TFLOP/s of square layers by size: a panel for each arithmetic, a line for each op, p20 to p80 as a band."""
    series = _series(pair for pair in gpu.pairs if _square(pair) and pair.timed is not None)
    if not series:
        return None
    ops = [op for op in OPS if any(pair.case.op == op for some in series.values() for pair in some)]
    figure, grid = _panels(list(series), False, "tokens = out = in", "TFLOP/s")
    for axis, some in zip(grid, series.values(), strict=True):
        for op in ops:
            _size_lines(axis, [pair for pair in some if pair.case.op == op], op, theme)
        peaks = [pair.peak for pair in some if pair.peak is not None]
        if peaks:
            axis.axhline(max(peaks), color=theme.ink, linewidth=0.9, linestyle=":")
        sizes = [pair.case.tokens for pair in some]
        _log(axis, "x", min(sizes) / 1.3, max(sizes) * 1.3, 2, _size)
        axis.set_ylim(bottom=0)
    handles = [Line2D([], [], color=theme.of(op), marker=_MARKERS[op], markersize=4, label=OPS[op]) for op in ops]
    handles += [
        Line2D([], [], color=theme.ink, label="gpulinear, p20 to p80"),
        Line2D([], [], color=theme.ink, linestyle="--", label="fastest right peer"),
        Line2D([], [], color=theme.ink, linestyle=":", label="largest product of the run"),
    ]
    return _finish(figure, gpu, "Rate by size, square layers", theme, handles)


def _square(pair: Pair) -> bool:
    case = pair.case
    return case.group == "square" and case.tokens == case.out_features == case.in_features


def _size_lines(axis: Axes, pairs: Sequence[Pair], op: str, theme: Theme) -> None:
    """Ours with its band, the peer dashed."""
    pairs = sorted(pairs, key=lambda pair: pair.case.tokens)
    timed = [(pair.case.tokens, pair.timed) for pair in pairs if pair.timed is not None]
    x, color = [size for size, _ in timed], theme.of(op)
    axis.plot(x, [tflops(row) for _, row in timed], color=color, marker=_MARKERS[op], markersize=3.5, linewidth=1.5)
    low, high = ([row.data["flops"] / row.data[q] * 1e-6 for _, row in timed] for q in ("us_p80", "us_p20"))
    axis.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    beside = [(pair.case.tokens, tflops(pair.peer)) for pair in pairs if pair.peer is not None]
    axis.plot([size for size, _ in beside], [rate for _, rate in beside], color=color, linestyle="--", linewidth=1.1)


def roofline(gpu: GpuRows, theme: Theme) -> Figure | None:
    """Rates of our calls against operations per byte, below the ceilings of the newest run that has them."""
    run = next((run for run in gpu.runs if "copy" in gpu.ceilings[run]), None)
    series = _series(pair for pair in gpu.pairs if pair.timed is not None and pair.case.flops >= SMALL)
    if run is None or not series:
        return None
    copy = gpu.ceilings[run]["copy"].data["value"] * 1e-3
    newest = {name: [p.peak for p in some if p.rows[0].data["run"] == run and p.peak] for name, some in series.items()}
    peaks = {name: found[0] for name, found in newest.items() if found}
    pairs = [pair for some in series.values() for pair in some]
    rates = [tflops(pair.timed) for pair in pairs if pair.timed is not None]
    top = max([*peaks.values(), *rates])
    # Wide enough for the corner, where the copy's slope meets the highest ceiling.
    reach = [top / copy, *(pair.intensity for pair in pairs)]
    figure = Figure(figsize=(WIDTH, 4.7))
    axis = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.86, bottom=0.15, top=0.83)
    _log(axis, "x", min(reach) / 1.5, max(reach) * 1.5, 10, _plain)
    left, right = axis.get_xlim()
    _log(axis, "y", min(rates) / 1.6, top * 1.6, 10, _plain)
    axis.set(xlabel="operations per byte that must move", ylabel="TFLOP/s")
    axis.plot([left, top / copy], [left * copy, top], color=theme.ink, linewidth=1.3)
    for name, some in series.items():
        if name in peaks:
            axis.plot([peaks[name] / copy, right], [peaks[name]] * 2, color=theme.of(name), linewidth=1.3)
        axis.plot(
            [pair.intensity for pair in some], [tflops(pair.timed) for pair in some if pair.timed is not None],
            **_dots(name, theme),
        )  # fmt: skip
    _name_ceilings(axis, peaks)
    handles = [Line2D([], [], label=name, **_dots(name, theme)) for name in series]
    handles.append(Line2D([], [], color=theme.ink, label=f"copy, {1e3 * copy:.0f} GB/s"))
    return _finish(figure, gpu, "Our calls below the ceilings that this GPU reached", theme, handles)


def _name_ceilings(axis: Axes, peaks: dict[str, float]) -> None:
    """The name and height of each ceiling beside its right end, moved down where it would touch the one above."""
    bottom, top = axis.get_ylim()
    above = 2.0
    for name, peak in sorted(peaks.items(), key=lambda item: -item[1]):
        above = min(float(np.log(peak / bottom) / np.log(top / bottom)), above - 0.045)
        axis.annotate(
            f"{name}, {peak:.0f}", (1.0, above), xytext=(4, 0), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, va="center",
        )  # fmt: skip


def share(gpu: GpuRows, theme: Theme) -> Figure | None:
    """How many cases reach how much of the roof, ours beside the fastest right peer: a panel for each arithmetic."""
    series = _series(p for p in gpu.pairs if p.share(p.timed) is not None and p.share(p.peer) is not None)
    if not series:
        return None
    titles = [f"{name}, {len(some)} case{'s' * (len(some) > 1)}" for name, some in series.items()]
    figure, grid = _panels(titles, True, "% of the roof, or more", "% of the cases reach")
    for axis, (name, some) in zip(grid, series.items(), strict=True):
        for ours, color, style, width in ((False, theme.ink, "--", 1.1), (True, theme.of(name), "-", 1.8)):
            reached = sorted(100 * (pair.share(pair.timed if ours else pair.peer) or 0.0) for pair in some)
            left = 100 - 100 * np.arange(len(reached) + 1) / len(reached)  # after 0, 1, ... cases have fallen short
            x = [0.0, *reached, reached[-1]]
            axis.step(x, [100.0, *left], where="pre", linestyle=style, color=color, linewidth=width)
        axis.set(xlim=(0, 110), ylim=(0, 105), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    handles = [
        Line2D([], [], color=theme.ink, linewidth=1.8, label="gpulinear (in colour)"),
        Line2D([], [], color=theme.ink, linestyle="--", linewidth=1.1, label="fastest right peer"),
    ]
    return _finish(figure, gpu, "Share of the roof: of the largest product, or of copy x intensity", theme, handles)


def host(gpu: GpuRows, theme: Theme) -> Figure | None:
    """Host microseconds of a call by provider: median over the cases, with p20 to p80."""
    times: dict[str, list[float]] = {}
    for pair in gpu.pairs:
        for row in pair.rows:
            if "host_us" in row.data and (row.data["provider"] == OURS or not row.data["ours"]):
                times.setdefault(row.data["provider"], []).append(row.data["host_us"])
    if not times:
        return None
    names = sorted(times, key=lambda name: (name == OURS, -float(np.median(times[name]))))
    height = 1.15 + 0.32 * len(names)
    figure = Figure(figsize=(WIDTH, height))
    axis = figure.subplots()
    figure.subplots_adjust(left=0.17, right=0.97, bottom=0.7 / height, top=1 - 0.4 / height)
    for y, name in enumerate(names):
        low, middle, high = (float(np.quantile(times[name], q)) for q in (0.2, 0.5, 0.8))
        color = theme.of("bfloat16") if name == OURS else theme.ink
        axis.barh(y, middle, height=0.62, color=color, alpha=0.9 if name == OURS else 0.4)
        axis.plot([low, high], [y, y], color=theme.ink, linewidth=1.5)
        axis.text(max(high, middle), y, f"  {middle:.1f}", va="center", fontsize=8.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlim(0, 1.12 * max(float(np.quantile(some, 0.8)) for some in times.values()))
    axis.set_xlabel("host microseconds of one call: median of the cases; line: p20 to p80")
    axis.grid(visible=False, axis="y")
    return _finish(figure, gpu, "Host time of a call", theme, [])


DRAWINGS: dict[str, Callable[[GpuRows, Theme], Figure | None]] = {
    "ratio": ratio, "squares": squares, "roofline": roofline, "share": share, "host": host,
}  # fmt: skip


# Files


def digest(gpu: GpuRows) -> str:
    """What a picture is of: the rows, and this file."""
    rows: list[Row] = [row for pair in gpu.pairs for row in pair.rows] + gpu.of_kind("ceiling")
    lines = [json.dumps(row.data, sort_keys=True) for row in rows]
    return hashlib.sha256("\n".join([Path(__file__).read_text(encoding="utf-8"), *lines]).encode()).hexdigest()


def draw(gpu: GpuRows) -> dict[str, bytes]:
    """Name of a file, such as "ratio-dark.svg" -> SVG. What there are no rows for is left out."""
    found = {}
    about = {"Date": None, "Title": _SALT, "Description": f"sha256 of rows and drawing: {digest(gpu)}"}
    for theme in THEMES:
        for name, drawing in DRAWINGS.items():
            with _style(theme):
                figure = drawing(gpu, theme)
                if figure is None:
                    continue
                buffer = io.BytesIO()
                figure.savefig(buffer, format="svg", metadata=about)
            # Indentation is a tenth of the file, and editors' hooks remove blanks at the ends of lines.
            found[f"{name}-{theme.name}.svg"] = re.sub(rb"\s*\n\s*", b"\n", buffer.getvalue())
    return found
