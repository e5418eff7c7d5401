"""The pictures of the report: what is drawn of which rows, in both themes, and the words on them.

All rows here are fakes of a GPU that does not exist.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from bench import pictures, tables
from gpulinear.measure import pairs

from .report_rows import (
    CASE,
    ceiling,
    everything,
    gpu,
    row,
)


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([row(us=None)], set()),
        ([row()], {"squares"}),
        ([row(), row("torch", 20)], {"squares", "ratio"}),
        ([row(host_us=1.0)], {"squares", "host"}),
        ([row(), ceiling("copy", 9.0, "GB/s")], {"squares", "roofline"}),
        ([row("torch", 20)], set()),
        ([row(case=replace(CASE, tokens=1, out_features=2, group="tiny")), ceiling("copy", 9.0, "GB/s")], set()),
        (everything(), {"ratio", "squares", "roofline", "share", "host"}),
    ],
)  # fmt: skip
def test_pictures_are_drawn_of_what_there_is(rows: list[dict[str, Any]], drawn: set[str]) -> None:
    found = pictures.draw(gpu(*rows))
    assert set(found) == {f"{name}-{theme}.svg" for name in drawn for theme in ("light", "dark")}
    for data in found.values():
        ET.fromstring(data)


def test_every_picture_has_words_and_both_themes_have_every_colour() -> None:
    assert set(pictures.DRAWINGS) == set(tables.PICTURES)
    for theme in pictures.THEMES:
        assert len(set(theme.series)) == len(pairs.ARITHMETIC) >= len(pairs.OPS)


def test_a_caption_names_gpu_day_and_commit() -> None:
    figure = pictures.ratio(gpu(*everything()), pictures.THEMES[0])
    assert figure is not None
    assert "Fake GPU · 2026-01-02 · gpulinear at commit 0123456" in [text.get_text() for text in figure.texts]
    for axis in figure.axes:
        if axis.get_visible() and axis.get_subplotspec().is_first_col():
            assert axis.get_ylabel()


def test_the_share_of_cases_falls_from_all_to_none() -> None:
    cases = [replace(CASE, tokens=tokens) for tokens in (512, 1024)]
    rows = [
        row(provider, us, case) for case, us in zip(cases, (10, 40), strict=True) for provider in ("gpulinear", "torch")
    ]
    found = gpu(*rows, ceiling("copy", 1e9, "GB/s"), ceiling("matmul bfloat16", 1e3))
    figure = pictures.share(found, pictures.THEMES[0])
    assert figure is not None
    ours = figure.axes[0].lines[-1]
    shares = sorted(100 * (pair.share(pair.timed) or 0.0) for pair in found.pairs)
    assert list(ours.get_xdata()) == [0, *shares, shares[-1]] and list(ours.get_ydata()) == [100, 100, 50, 0]


@pytest.mark.parametrize("bandwidth", [1.0, 1e3, 1e6])
def test_the_slope_of_the_roof_ends_in_its_corner(bandwidth: float) -> None:
    found = gpu(row(), ceiling("copy", bandwidth, "GB/s"), ceiling("matmul bfloat16", 500.0))
    figure = pictures.roofline(found, pictures.THEMES[0])
    assert figure is not None
    (x, corner), (y, top) = figure.axes[0].lines[0].get_data()
    low, high = figure.axes[0].get_xlim()
    assert low <= x < corner < high and top == 500 and y < top
