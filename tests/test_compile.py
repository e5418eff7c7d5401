"""NVRTC to artifacts, and the disk cache under races, damage and attack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpulinear.compile as compiler
from gpulinear import cache
from gpulinear.compile import compile_kernel, include_closure, parse_resources
from gpulinear.errors import BackendError, CompileError

SOURCE = 'extern "C" __global__ void tiny(float* x) { x[threadIdx.x] = __fmaf_rn(x[threadIdx.x], 2.f, 1.f); }\n'


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory and an empty in-process memo."""
    root = tmp_path / "cache"
    monkeypatch.setenv("GPULINEAR_CACHE", str(root))
    monkeypatch.setattr(compiler, "_memory", {})
    return root


def build(tmp_path: Path, source: str = SOURCE, arch: str = "sm_80") -> compiler.Artifact:
    return compile_kernel(source, entry="tiny", arch=arch, include_dir=tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_memory", {})


def refuse_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, bytes]:
        raise AssertionError("NVRTC was called")

    monkeypatch.setattr(compiler, "_compile", fail)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_one_program_gives_everything(fresh: Path, tmp_path: Path, arch: str) -> None:
    artifact = build(tmp_path, arch=arch)
    assert f".target {arch}" in artifact.ptx and "fma.rn.f32" in artifact.ptx
    assert artifact.cubin[:4] == b"\x7fELF" and artifact.cubin_path.read_bytes() == artifact.cubin
    assert artifact.resources.registers > 0 and artifact.resources.spill_stores == 0


def test_a_hit_does_not_call_nvrtc(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path)
    forget(monkeypatch)
    refuse_nvrtc(monkeypatch)
    again = build(tmp_path)
    assert (again.key, again.ptx, again.cubin) == (first.key, first.ptx, first.cubin)


def test_every_input_is_in_the_key(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text("constexpr float kTwo = 2.f;\n")
    source = '#include "a.cuh"\n' + SOURCE.replace("2.f", "kTwo")
    keys = {build(tmp_path, source).key, build(tmp_path, source, "sm_90a").key, build(tmp_path).key}
    (tmp_path / "b.cuh").write_text("constexpr float kTwo = 3.f;\n")
    changed = build(tmp_path, source)
    assert len(keys | {changed.key}) == 4
    assert list(include_closure(source, tmp_path)) == ["a.cuh", "b.cuh"]


def test_headers_stay_inside_the_directory(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="not in the kernels directory"):
        include_closure('#include "../secret.cuh"\n', tmp_path / "kernels")


@pytest.mark.parametrize("arch", ["sm_80; rm", "compute_80", "80", "", "sm_1"])
def test_bad_arch(fresh: Path, tmp_path: Path, arch: str) -> None:
    with pytest.raises(BackendError, match="arch must look like"):
        build(tmp_path, arch=arch)


def test_unknown_arch_and_entry_and_source(fresh: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot compile for sm_60"):
        build(tmp_path, arch="sm_60")
    with pytest.raises(CompileError, match="C identifier"):
        compile_kernel(SOURCE, entry="a b", arch="sm_80", include_dir=tmp_path)
    with pytest.raises(CompileError, match="error"):
        build(tmp_path, 'extern "C" __global__ void tiny() { nonsense; }')
    with pytest.raises(CompileError, match="no resource report"):
        parse_resources("nothing")


def test_missing_nvrtc_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"pip install 'gpulinear\[cuda13\]'"):
        compiler._nvrtc()


def entry_of(artifact: compiler.Artifact) -> Path:
    return artifact.cubin_path.parent


def damage_truncate(entry: Path) -> None:
    (entry / "kernel.cubin").write_bytes((entry / "kernel.cubin").read_bytes()[:-9])


def damage_empty(entry: Path) -> None:
    (entry / "kernel.ptx").write_bytes(b"")


def damage_garbage(entry: Path) -> None:
    (entry / "meta.json").write_bytes(b"\xff{[")


def damage_missing(entry: Path) -> None:
    (entry / "build.log").unlink()


def damage_symlink(entry: Path) -> None:
    moved = entry.parent / "moved.cubin"
    os.rename(entry / "kernel.cubin", moved)
    (entry / "kernel.cubin").symlink_to(moved)


def damage_foreign(entry: Path) -> None:
    meta = json.loads((entry / "meta.json").read_text())
    meta["key"] = "0" * 64
    (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_empty, damage_garbage, damage_missing, damage_symlink, damage_foreign],
)
def test_a_damaged_entry_is_a_miss_and_is_replaced(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object
) -> None:
    first = build(tmp_path)
    damage(entry_of(first))  # type: ignore[operator]
    assert cache.load(first.key) is None
    forget(monkeypatch)
    again = build(tmp_path)
    assert again.cubin == first.cubin
    assert cache.load(first.key) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_meta_but_a_whole_one_is_accepted(text: bytes) -> None:
    assert cache.parse_meta(text, "0" * 64) is None


def test_deep_nesting_is_a_miss() -> None:
    assert cache.parse_meta(b"[" * 100_000, "0" * 64) is None


def test_a_world_writable_directory_is_refused(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="chmod 700"):
        artifact = build(tmp_path)
    assert list(fresh.iterdir()) == []
    assert artifact.cubin_path.read_bytes() == artifact.cubin


def test_an_unusable_directory_works_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(compiler, "_memory", {})
    artifact = build(tmp_path)
    assert artifact.cubin_path.read_bytes() == artifact.cubin


def test_a_read_only_directory_works_from_memory(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permission bits do not stop root, so the failing call is simulated.
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    assert cache.store("0" * 64, {name: b"" for name in cache.FILES}) is None


CHILD = """
import sys
from pathlib import Path
from gpulinear.compile import compile_kernel
artifact = compile_kernel(sys.argv[1], entry="tiny", arch="sm_80", include_dir=Path(sys.argv[2]))
print(artifact.key, artifact.cubin_path.exists())
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, SOURCE, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sixteen_processes_on_a_cold_cache(fresh: Path, tmp_path: Path) -> None:
    children = [start(tmp_path) for _ in range(16)]
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 16, answers
    assert len({out for out, _ in answers}) == 1
    entries = [path for path in fresh.glob("*/*")]
    assert len(entries) == 1 and not entries[0].name.startswith(".")


def test_kill_during_a_write_leaves_nothing_that_is_served(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = (
        """
import os, signal, sys
from gpulinear import cache
real = cache._write
def write(path, data):
    real(path, data[: len(data) // 2])
    if path.name == "kernel.cubin":
        os.kill(os.getpid(), signal.SIGKILL)
cache._write = write
"""
        + CHILD
    )
    done = subprocess.run([sys.executable, "-c", child, SOURCE, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    refuse = [path for path in fresh.glob("*/*") if not path.name.startswith(".new-")]
    assert refuse == []
    artifact = build(tmp_path)
    assert cache.load(artifact.key) is not None


def test_sixteen_threads_compile_once(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = compiler._compile

    def counted(source: str, headers: dict[str, str], arch: str) -> dict[str, bytes]:
        calls.append(1)
        time.sleep(0.05)
        return real(source, headers, arch)

    monkeypatch.setattr(compiler, "_compile", counted)
    results: list[compiler.Artifact] = []
    threads = [threading.Thread(target=lambda: results.append(build(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len({id(result) for result in results}) == 1
