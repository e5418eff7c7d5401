"""CUDA source to an Artifact: one NVRTC program gives the PTX, the cubin and the resource report.

NVRTC is reached through NVIDIA's cuda.bindings and needs no driver. Headers are handed over by name, so that the cache
key covers exactly what was compiled, and under a fixed directory, so that no path of a machine enters PTX or cubin.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import cache
from .errors import BackendError, CompileError

# --fmad=false: bits may not depend on what a compiler contracts; kernels write FMAs themselves. No fast-math option:
# subnormals, division and square root stay IEEE (NVRTC's defaults, stated here because the contract rests on them).
OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "-lineinfo",
    "--ptxas-options=-v",
)

# The directory that line tables name. NVRTC would put the working directory there, in PTX and cubin, and the same source
# would give other bytes elsewhere. Nothing is read from it.
_DIRECTORY = "/gpulinear/"

_ARCH = re.compile(r"sm_([0-9]{2,3})([af]?)")
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([A-Za-z0-9_./]+)"', re.MULTILINE)
# A comment, or a string or character that may hold what looks like one.
_COMMENT = re.compile(r"""//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.DOTALL)
_INSTALL = "pip install 'gpulinear[cuda13]' (or [cuda12] for a driver older than 580)"


@dataclass(frozen=True)
class Resources:
    """What ptxas reports for the kernel; sizes in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack_frame: int
    static_smem: int
    barriers: int


@dataclass(frozen=True)
class Artifact:
    """One compiled kernel. ``cubin_path`` is the cubin as a file, for CuPy; ``ptx`` is for the emulator."""

    key: str
    entry: str
    arch: str
    nvrtc: str
    source: str
    ptx: str
    cubin: bytes
    cubin_path: Path
    log: str
    resources: Resources


@lru_cache(maxsize=1)
def kernels_dir() -> Path:
    """Where the .cuh files are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for place in (package / "kernels", package.parent / "kernels"):
        if (place / "gemm_simt.cuh").is_file():
            return place
    raise BackendError(
        f"the kernels directory is missing beside or inside {package.name}/; install gpulinear from its wheel or run it "
        f"from a checkout"
    )


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise BackendError(f"compiling kernels needs cuda-bindings, which is not installed; {_INSTALL}") from error
    except Exception as error:
        raise BackendError(
            f"compiling kernels needs cuda-bindings, which fails to import ({error}); {_INSTALL}"
        ) from error
    return nvrtc


def _call(function: Any, *args: Any) -> Any:
    """One NVRTC call; BackendError for anything but success (the compile itself is checked by its caller)."""
    try:
        status, *values = function(*args)
    except (RuntimeError, OSError) as error:  # cuda.bindings raises when libnvrtc cannot be found or loaded
        raise BackendError(f"NVRTC could not be loaded ({error}); {_INSTALL}") from error
    if int(status) != 0:
        raise BackendError(f"NVRTC failed in {getattr(function, '__name__', 'a call')}: {status}; {_INSTALL}")
    return values[0] if len(values) == 1 else values


@lru_cache(maxsize=1)
def nvrtc_version() -> tuple[int, int]:
    """(major, minor) of the NVRTC in use."""
    major, minor = _call(_nvrtc().nvrtcVersion)
    return int(major), int(minor)


@lru_cache(maxsize=1)
def supported_archs() -> tuple[int, ...]:
    """The architectures NVRTC can compile for, as 75, 80, ... 120."""
    return tuple(int(arch) for arch in _call(_nvrtc().nvrtcGetSupportedArchs))


def _includes(text: str) -> list[str]:
    """The names that ``text`` includes outside comments."""
    found: list[str] = _INCLUDE.findall(_COMMENT.sub(lambda match: match.group(1) or " ", text))
    return found


def include_closure(source: str, directory: Path) -> dict[str, str]:
    """Every project header that ``source`` includes, directly or not: name -> text, in order of first use."""
    found: dict[str, str] = {}
    pending = _includes(source)
    while pending:
        name = pending.pop(0)
        if name in found:
            continue
        path = (directory / name).resolve()
        if not path.is_relative_to(directory.resolve()) or not path.is_file():
            raise CompileError(f"the header {name!r} is not in the kernels directory")
        found[name] = path.read_text(encoding="utf-8")
        pending += _includes(found[name])
    return found


def parse_resources(log: str) -> Resources:
    """Read ptxas -v. Raises CompileError where the log has no register count."""

    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match.group(1)) if match else 0

    if not re.search(r"Used [0-9]+ registers", log):
        raise CompileError(f"NVRTC gave no resource report; its log was: {log}")
    return Resources(
        registers=number(r"Used ([0-9]+) registers"),
        spill_stores=number(r"([0-9]+) bytes spill stores"),
        spill_loads=number(r"([0-9]+) bytes spill loads"),
        stack_frame=number(r"([0-9]+) bytes stack frame"),
        static_smem=number(r"([0-9]+) bytes smem"),
        barriers=number(r"used ([0-9]+) barriers"),
    )


def _text(nvrtc: Any, program: Any, size: str, get: str) -> bytes:
    buffer = b"\0" * int(_call(getattr(nvrtc, size), program))  # NVRTC writes into it
    _call(getattr(nvrtc, get), program, buffer)
    return buffer


def _plain(text: bytes) -> bytes:
    """PTX or a log that names headers as they are included."""
    return text.rstrip(b"\0 ").replace(_DIRECTORY.encode(), b"")


def _compile(source: str, headers: dict[str, str], arch: str) -> dict[str, bytes]:
    nvrtc = _nvrtc()
    names = [name.encode() for name in headers]
    texts = [f'#line 1 "{_DIRECTORY}{name}"\n{text}'.encode() for name, text in headers.items()]
    name = f"{_DIRECTORY}kernel.cu".encode()
    program = _call(nvrtc.nvrtcCreateProgram, source.encode(), name, len(names), texts, names)
    try:
        options = [f"-arch={arch}".encode(), *(option.encode() for option in OPTIONS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _plain(_text(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog"))
        if int(status) != 0:
            shown = log.decode(errors="replace")
            raise CompileError(f"NVRTC refused a kernel for {arch} with {' '.join(OPTIONS)}:\n{shown}\n{source}")
        return {
            "kernel.cu": source.encode(),
            "kernel.ptx": _plain(_text(nvrtc, program, "nvrtcGetPTXSize", "nvrtcGetPTX")),
            "kernel.cubin": _text(nvrtc, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            "build.log": log,
        }
    finally:
        nvrtc.nvrtcDestroyProgram(program)


_private: Path | None = None


def _private_dir() -> Path:
    """A directory of this process for cubins when the cache cannot be written: CuPy loads a cubin from a path."""
    global _private
    with _lock:
        if _private is None or not _private.is_dir():
            path = Path(tempfile.mkdtemp(prefix="gpulinear-"))
            atexit.register(_remove, path, os.getpid())
            _private = path
        return _private


def _remove(path: Path, owner: int) -> None:
    """At exit; a forked child must not remove what its parent still uses."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


def _private_entry(key: str, files: cache.Files) -> tuple[cache.Files, Path]:
    """An entry that only this process sees, with nothing but the cubin in it."""
    try:
        entry = _private_dir() / key
        entry.mkdir(exist_ok=True)
        (entry / "kernel.cubin").write_bytes(files["kernel.cubin"])
    except OSError as error:
        raise BackendError(
            f"a compiled kernel must be written to a file, from which CuPy loads it, but neither the kernel cache "
            f"({cache.cache_dir()}) nor the temporary directory could be written ({error}); free space there, or set "
            f"GPULINEAR_CACHE or TMPDIR to a place that can be written"
        ) from error
    return files, entry


_lock = threading.Lock()
_key_locks: dict[str, threading.Lock] = {}
_memory: dict[str, Artifact] = {}

# A fork waits for the compilations of other threads: the child would inherit their locks, ours and NVRTC's, with
# nobody left to release them.
_idle = threading.Condition()
_compiling: set[int] = set()


@contextmanager
def _no_fork() -> Iterator[None]:
    """Keep other threads from forking inside the block."""
    me = threading.get_ident()
    with _idle:
        _compiling.add(me)
    try:
        yield
    finally:
        with _idle:
            _compiling.discard(me)
            _idle.notify_all()


def _before_fork() -> None:
    _idle.acquire()
    while _compiling - {threading.get_ident()}:
        _idle.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_idle.release, after_in_child=_idle.release)


def compile_kernel(source: str, *, entry: str, arch: str, include_dir: Path | None = None) -> Artifact:
    """Compile one kernel, or find it: in memory, then on disk, then by NVRTC.

    Args:
        source: a CUDA translation unit that defines ``extern "C" __global__`` ``entry``.
        arch: an sm_XX name, such as "sm_80" or "sm_90a".
        include_dir: where ``#include "..."`` looks; the project's kernels by default.

    Raises:
        BackendError: NVRTC is missing or does not know ``arch``, or no place can be written. CompileError: NVRTC refused
            the source, or the source does not define ``entry``.
    """
    match = _ARCH.fullmatch(arch)
    if match is None:
        raise BackendError(f"arch must look like sm_80 or sm_90a, got {arch!r}")
    if not _ENTRY.fullmatch(entry):
        raise CompileError(f"a kernel's name must be a C identifier, got {entry!r}")
    version = nvrtc_version()
    if int(match.group(1)) not in supported_archs():
        known = ", ".join(f"sm_{a}" for a in supported_archs())
        raise BackendError(f"NVRTC {version[0]}.{version[1]} cannot compile for {arch}; it knows {known}")
    headers = include_closure(source, include_dir or kernels_dir())
    parts = [str(cache.SCHEMA), _DIRECTORY, entry, arch, repr(version), repr(OPTIONS), source]
    parts += [f"{name}\0{text}" for name, text in headers.items()]
    key = hashlib.sha256("\0\0".join(parts).encode()).hexdigest()

    with _no_fork():
        with _lock:
            lock = _key_locks.setdefault(key, threading.Lock())
        with lock:  # 16 threads that want one kernel compile it once
            artifact = _memory.get(key)
            if artifact is None or not _on_disk(artifact):
                artifact = _obtain(key, source, headers, entry, arch, f"{version[0]}.{version[1]}", artifact)
                _memory[key] = artifact
            return artifact


def _on_disk(artifact: Artifact) -> bool:
    """Whether the cubin still lies where the artifact says: somebody may have emptied the cache."""
    try:
        return artifact.cubin_path.stat().st_size == len(artifact.cubin)
    except OSError:
        return False


def _read(files: cache.Files, entry: str) -> tuple[str, str, Resources]:
    """PTX, log and resources of an entry; CompileError where it does not hold the kernel."""
    try:
        ptx, log = files["kernel.ptx"].decode(), files["build.log"].decode()
    except UnicodeDecodeError as error:
        raise CompileError(f"PTX and log of the kernel {entry} must be UTF-8: {error}") from error
    if not re.search(rf"\.entry\s+{entry}(?![A-Za-z0-9_$])", ptx):
        raise CompileError(f'the source must define extern "C" __global__ {entry}, but its PTX has no such entry')
    return ptx, log, parse_resources(log)


def _obtain(
    key: str, source: str, headers: dict[str, str], entry: str, arch: str, version: str, known: Artifact | None
) -> Artifact:
    """An artifact whose cubin lies on disk: from the cache, else written anew from ``known`` or from NVRTC."""

    def usable(files: cache.Files) -> bool:
        try:
            _read(files, entry)
        except CompileError:
            return False
        return files["kernel.cu"] == source.encode()

    files: cache.Files
    found = cache.load(key, usable)
    if found is None:
        files = _compile(source, headers, arch) if known is None else _files(known)
        _read(files, entry)
        found = cache.store(key, files, usable) or _private_entry(key, files)
    files, directory = found
    ptx, log, resources = _read(files, entry)
    cubin_path = directory / "kernel.cubin"
    return Artifact(key, entry, arch, version, source, ptx, files["kernel.cubin"], cubin_path, log, resources)


def _files(artifact: Artifact) -> dict[str, bytes]:
    """The cache entry of an artifact."""
    return {
        "kernel.cu": artifact.source.encode(),
        "kernel.ptx": artifact.ptx.encode(),
        "kernel.cubin": artifact.cubin,
        "build.log": artifact.log.encode(),
    }
