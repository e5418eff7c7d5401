"""NVRTC to artifacts: what is compiled, from which files, by which threads and processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import gpulinear.compile as compiler
from gpulinear.compile import compile_kernel, include_closure, parse_resources
from gpulinear.errors import BackendError, CompileError

from .kernel_builds import SOURCE, build, forget, fresh, refuse_nvrtc

__all__ = ["fresh"]

ROOT = Path(compiler.__file__).parent.parent


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
    with pytest.raises(BackendError, match="cannot compile for sm_35"):
        build(tmp_path, arch="sm_35")
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


def build_in_a_thread(tmp_path: Path, source: str) -> None:
    """A thread other than the one that forked must get all locks too."""
    done: list[compiler.Artifact] = []
    thread = threading.Thread(target=lambda: done.append(build(tmp_path, source)), daemon=True)
    thread.start()
    thread.join(30)
    assert len(done) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_waits_for_a_compilation(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Event()
    real = compiler._compile

    def slow(source: str, headers: dict[str, str], arch: str) -> dict[str, bytes]:
        inside.set()
        time.sleep(0.2)
        return real(source, headers, arch)

    monkeypatch.setattr(compiler, "_compile", slow)
    thread = threading.Thread(target=build, args=(tmp_path,))
    thread.start()
    assert inside.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork in a process with threads
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(60)
            monkeypatch.setattr(compiler, "_compile", real)
            build(tmp_path)
            build_in_a_thread(tmp_path, SOURCE.replace("2.f", "3.f"))
            os._exit(0)
        os._exit(1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    monkeypatch.setattr(compiler, "_compile", real)
    build_in_a_thread(tmp_path, SOURCE.replace("2.f", "4.f"))  # the parent goes on too


def test_a_fork_inside_a_compilation_does_not_wait_for_itself() -> None:
    code = (
        "import os; import gpulinear.compile as c\n"
        "with c._no_fork():\n"
        "    child = os.fork()\n"
        "    if child == 0: os._exit(0)\n"
        "print(os.waitpid(child, 0)[1], c._compiling)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0 set()\n", done.stderr


HERE = """
import hashlib, os, sys
from pathlib import Path
from gpulinear.compile import compile_kernel
if sys.argv[1] == "gone":
    os.rmdir(os.getcwd())
artifact = compile_kernel(sys.argv[2], entry="tiny", arch="sm_80", include_dir=Path(sys.argv[3]))
files = [line for line in artifact.ptx.splitlines() if line.strip().startswith(".file")]
print(hashlib.sha256(artifact.ptx.encode()).hexdigest(), hashlib.sha256(artifact.cubin).hexdigest(), files)
print(sys.argv[4].encode() in artifact.cubin + artifact.ptx.encode())
"""


def test_ptx_and_cubin_do_not_depend_on_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "two.cuh").write_text("__device__ inline float two(float x) {\n  return x + 2.f;\n}\n")
    source = '#include "sub/two.cuh"\n' + SOURCE.replace("2.f, 1.f", "two(x[1]), 1.f")
    answers = set()
    for name in ("here", "there", "gone"):
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", HERE, name, source, str(tmp_path), str(tmp_path)],
            cwd=place,
            env={**os.environ, "GPULINEAR_CACHE": str(tmp_path / f"cache-{name}"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    (answer,) = answers
    assert '"kernel.cu"' in answer and '"sub/two.cuh"' in answer and answer.endswith("False\n")


def test_includes_in_comments_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.cuh").write_text("")
    (tmp_path / "b.cuh").write_text("")
    source = (
        '/* usage:\n#include "missing.cuh"\n*/\n// a note /*\n#include "a.cuh"\n// */\n'
        'const char* kText = "/*";\n/* c */ #include "b.cuh" // as it is\nconst char* kEnd = "*/";\n'
    )
    assert list(include_closure(source, tmp_path)) == ["a.cuh", "b.cuh"]
    assert include_closure('#include "\u0661.cuh"\n', tmp_path) == {}


def test_names_are_ascii_and_the_entry_must_exist(fresh: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="arch must look like"):
        build(tmp_path, arch="sm_\u0668\u0660")
    with pytest.raises(CompileError, match="C identifier"):
        compile_kernel(SOURCE, entry="t\u00efny", arch="sm_80", include_dir=tmp_path)
    for entry in ("other", "tin", "tiny2"):
        with pytest.raises(CompileError, match=f"__global__ {entry}"):
            compile_kernel(SOURCE, entry=entry, arch="sm_80", include_dir=tmp_path)
    assert list(fresh.glob("*/*")) == []


def test_refusals_name_the_header_and_its_line(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.cuh").write_text("\nnonsense;\n")
    with pytest.raises(CompileError, match=r"(?m)^bad\.cuh\(2\): error"):
        build(tmp_path, '#include "bad.cuh"\n' + SOURCE)
