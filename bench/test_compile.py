"""Time to a compiled kernel: by NVRTC into an empty cache, from the cache on disk, and from memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gpulinear.compile as compiler
from gpulinear.config import FAMILIES
from gpulinear.errors import BackendError
from gpulinear.measure.static import compiled
from gpulinear.measure.variants import Variant, variants

ARCH = "sm_90a"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, with nothing in it or in memory."""
    try:
        compiler.nvrtc_version()
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "0"))
    monkeypatch.setattr(compiler, "_memory", {})
    return tmp_path


def largest(family: str) -> Variant:
    """The first tile of a family, in the layout of the forward pass."""
    return next(variant for variant in variants(ARCH, [family]) if variant.layout == "NT")


@pytest.mark.parametrize("family", FAMILIES)
def test_cold_compile(benchmark: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    benchmark.group = "compile, empty cache"
    variant, count = largest(family), 0
    benchmark.extra_info["kernel"] = variant.name

    def forget() -> None:
        nonlocal count
        count += 1
        compiler._memory.clear()
        monkeypatch.setenv("GPULINEAR_CACHE", str(cache / str(count)))

    benchmark.pedantic(compiled, (variant,), setup=forget, rounds=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_compile_from_disk(benchmark: Any, cache: Path, family: str) -> None:
    benchmark.group = "compile, cached on disk"
    variant = largest(family)
    compiled(variant)
    benchmark.pedantic(compiled, (variant,), setup=compiler._memory.clear, rounds=20)


def test_compile_from_memory(benchmark: Any, cache: Path) -> None:
    benchmark.group = "compile, cached in memory"
    variant = largest("gemm_simt")
    compiled(variant)
    benchmark(compiled, variant)
