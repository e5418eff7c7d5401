"""The disk cache of compiled kernels under races, damage and attack, and on disks that are full or gone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpulinear.compile as compiler
from gpulinear import cache
from gpulinear.errors import BackendError

from .kernel_builds import SOURCE, build, forget, fresh, refuse_nvrtc

__all__ = ["fresh"]


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


def change_meta(entry: Path, **fields: object) -> None:
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, **fields}))


def damage_foreign(entry: Path) -> None:
    change_meta(entry, key="0" * 64)


def damage_schema(entry: Path) -> None:
    change_meta(entry, schema=True)


def damage_extra_field(entry: Path) -> None:
    change_meta(entry, comment="?")


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_garbage,
        damage_missing,
        damage_symlink,
        damage_foreign,
        damage_schema,
        damage_extra_field,
    ],
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("build.log", b"\xff Used 8 registers"),
        ("build.log", "Used \u0668 registers".encode()),  # a digit, but not ASCII
        ("build.log", b"nothing"),
        ("kernel.ptx", b"\xff .entry tiny("),
        ("kernel.ptx", b".visible .entry tiny2("),
        ("kernel.cu", b"another source"),
    ],
)
def test_an_entry_that_is_whole_but_unusable_is_a_miss_and_is_replaced(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    first = build(tmp_path)
    entry = entry_of(first)
    (entry / name).write_bytes(content)
    change_meta(entry, sha256={f: hashlib.sha256((entry / f).read_bytes()).hexdigest() for f in cache.FILES})
    assert cache.load(first.key) is not None
    forget(monkeypatch)
    again = build(tmp_path)
    assert (again.ptx, again.cubin_path) == (first.ptx, first.cubin_path)
    assert (entry / name).read_bytes() != content
    forget(monkeypatch)
    refuse_nvrtc(monkeypatch)
    assert build(tmp_path).resources == first.resources


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
    with pytest.warns(RuntimeWarning, match="chmod 700") as warned:
        warnings.simplefilter("always")
        artifact = build(tmp_path)
    assert len(warned) == 1
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


def test_an_emptied_cache_gets_the_cubin_again(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path)
    refuse_nvrtc(monkeypatch)
    shutil.rmtree(fresh)
    again = build(tmp_path)
    assert again.cubin_path.read_bytes() == again.cubin == first.cubin
    again.cubin_path.write_bytes(b"\x7fELF")
    assert build(tmp_path).cubin_path.read_bytes() == first.cubin


def test_an_emptied_temporary_directory_gets_the_cubin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(compiler, "_memory", {})
    first = build(tmp_path)
    shutil.rmtree(compiler._private_dir())
    refuse_nvrtc(monkeypatch)
    assert build(tmp_path).cubin_path.read_bytes() == first.cubin


def test_a_full_disk_works_from_the_temporary_directory_and_two_full_ones_say_so(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    artifact = build(tmp_path)
    assert artifact.cubin_path.read_bytes() == artifact.cubin and not artifact.cubin_path.is_relative_to(fresh)
    assert list(fresh.glob("*/*")) == []
    forget(monkeypatch)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BackendError, match=r"No space left.*set GPULINEAR_CACHE or TMPDIR"):
        build(tmp_path)
    monkeypatch.setattr(compiler, "_private", None)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(BackendError, match=r"No space left.*set GPULINEAR_CACHE or TMPDIR"):
        build(tmp_path)


def test_no_home_directory_works_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    for name in ("GPULINEAR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler, "_memory", {})
    artifact = build(tmp_path)
    assert cache.cache_dir() is None and artifact.cubin_path.read_bytes() == artifact.cubin


def test_what_killed_writers_left_is_swept_after_an_hour(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".new-old", ".old-old", ".new-young"):
        (fresh / "ab" / name).mkdir(parents=True)
        (fresh / "ab" / name / "kernel.cu").write_text("")
    fresh.chmod(0o700)
    target = tmp_path / "elsewhere"
    target.mkdir()
    (fresh / "ab" / ".new-link").symlink_to(target)
    hours_ago = time.time() - 7200
    for name in (".new-old", ".old-old", ".new-link"):
        os.utime(fresh / "ab" / name, (hours_ago, hours_ago), follow_symlinks=False)
    build(tmp_path)
    assert {path.name for path in (fresh / "ab").iterdir()} - {".new-link"} == {".new-young"}
    assert target.is_dir()
