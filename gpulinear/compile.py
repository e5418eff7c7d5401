"""CUDA source to an Artifact: one NVRTC program gives the PTX, the cubin and the resource report.

NVRTC is reached through NVIDIA's cuda.bindings and needs no driver. Headers are handed over by name, so that no path
of a machine enters the PTX and the cache key covers exactly what was compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
import threading
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

_ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
_ENTRY = re.compile(r"[A-Za-z_]\w{0,127}")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([\w./]+)"', re.MULTILINE)
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


def include_closure(source: str, directory: Path) -> dict[str, str]:
    """Every project header that ``source`` includes, directly or not: name -> text, in order of first use."""
    found: dict[str, str] = {}
    pending = _INCLUDE.findall(source)
    while pending:
        name = pending.pop(0)
        if name in found:
            continue
        path = (directory / name).resolve()
        if not path.is_relative_to(directory.resolve()) or not path.is_file():
            raise CompileError(f"the header {name!r} is not in the kernels directory")
        found[name] = path.read_text(encoding="utf-8")
        pending += _INCLUDE.findall(found[name])
    return found


def parse_resources(log: str) -> Resources:
    """Read ptxas -v. Raises CompileError where the log has no register count."""

    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match.group(1)) if match else 0

    if not re.search(r"Used \d+ registers", log):
        raise CompileError(f"NVRTC gave no resource report; its log was: {log}")
    return Resources(
        registers=number(r"Used (\d+) registers"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack_frame=number(r"(\d+) bytes stack frame"),
        static_smem=number(r"(\d+) bytes smem"),
        barriers=number(r"used (\d+) barriers"),
    )


def _text(nvrtc: Any, program: Any, size: str, get: str) -> bytes:
    buffer: bytes = b" " * int(_call(getattr(nvrtc, size), program))
    _call(getattr(nvrtc, get), program, buffer)
    return buffer


def _relative_files(ptx: bytes) -> bytes:
    """PTX whose .file lines name headers as they are included; NVRTC puts the working directory before them."""
    return ptx.replace(b'"' + os.fsencode(os.getcwd()) + b"/", b'"')


def _compile(source: str, headers: dict[str, str], arch: str) -> dict[str, bytes]:
    nvrtc = _nvrtc()
    names = [name.encode() for name in headers]
    texts = [text.encode() for text in headers.values()]
    program = _call(nvrtc.nvrtcCreateProgram, source.encode(), b"kernel.cu", len(names), texts, names)
    try:
        options = [f"-arch={arch}".encode(), *(option.encode() for option in OPTIONS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0 ").decode()
        if int(status) != 0:
            raise CompileError(f"NVRTC refused a kernel for {arch} with {' '.join(OPTIONS)}:\n{log}\n{source}")
        return {
            "kernel.cu": source.encode(),
            "kernel.ptx": _relative_files(_text(nvrtc, program, "nvrtcGetPTXSize", "nvrtcGetPTX").rstrip(b"\0 ")),
            "kernel.cubin": _text(nvrtc, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            "build.log": log.encode(),
        }
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@lru_cache(maxsize=1)
def _private_dir() -> Path:
    """A directory of this process for cubins when the cache cannot be written: CuPy loads a cubin from a path."""
    path = Path(tempfile.mkdtemp(prefix="gpulinear-"))
    owner = os.getpid()
    # A forked child must not remove what its parent still uses.

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove)
    return path


def _cubin_file(key: str, cubin: bytes) -> Path:
    path = _private_dir() / f"{key}.cubin"
    path.write_bytes(cubin)
    return path


_lock = threading.Lock()
_key_locks: dict[str, threading.Lock] = {}
_memory: dict[str, Artifact] = {}


def compile_kernel(source: str, *, entry: str, arch: str, include_dir: Path | None = None) -> Artifact:
    """Compile one kernel, or find it: in memory, then on disk, then by NVRTC.

    Args:
        source: a CUDA translation unit that defines ``extern "C" __global__`` ``entry``.
        arch: an sm_XX name, such as "sm_80" or "sm_90a".
        include_dir: where ``#include "..."`` looks; the project's kernels by default.

    Raises:
        BackendError: NVRTC is missing or does not know ``arch``. CompileError: NVRTC refused the source.
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
    parts = [str(cache.SCHEMA), entry, arch, repr(version), repr(OPTIONS), source]
    parts += [f"{name}\0{text}" for name, text in headers.items()]
    key = hashlib.sha256("\0\0".join(parts).encode()).hexdigest()

    with _lock:
        lock = _key_locks.setdefault(key, threading.Lock())
    with lock:  # 16 threads that want one kernel compile it once
        artifact = _memory.get(key)
        if artifact is None:
            artifact = _load_or_compile(key, source, headers, entry, arch, f"{version[0]}.{version[1]}")
            _memory[key] = artifact
        return artifact


def _load_or_compile(key: str, source: str, headers: dict[str, str], entry: str, arch: str, version: str) -> Artifact:
    hit = cache.load(key)
    if hit is not None:
        files, directory = hit
        cubin_path = directory / "kernel.cubin"
    else:
        files = _compile(source, headers, arch)
        stored = cache.store(key, files)
        cubin_path = stored / "kernel.cubin" if stored else _cubin_file(key, files["kernel.cubin"])
    log = files["build.log"].decode()
    return Artifact(
        key,
        entry,
        arch,
        version,
        source,
        files["kernel.ptx"].decode(),
        files["kernel.cubin"],
        cubin_path,
        log,
        parse_resources(log),
    )
