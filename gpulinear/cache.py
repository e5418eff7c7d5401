"""A directory of compiled kernels, found again by content. Everything read from it is untrusted.

An entry is a directory ``<key[:2]>/<key>`` with kernel.cu, kernel.ptx, kernel.cubin, build.log and meta.json, which
holds the sha256 of each. Writers fill a temporary directory and rename it: readers see a whole entry or none. A
truncated, foreign, altered or unusable entry is a miss. What killed writers leave behind is removed after an hour.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

SCHEMA = 1
FILES = ("kernel.cu", "kernel.ptx", "kernel.cubin", "build.log")
_MAX_BYTES = 64 << 20
_KEY = re.compile(r"[0-9a-f]{64}")
_LEFTOVER_SECONDS = 3600  # a write takes far less

Files = Mapping[str, bytes]
Usable = Callable[[Files], bool]

_warned: set[Path] = set()
_swept: set[Path] = set()


def cache_dir() -> Path | None:
    """GPULINEAR_CACHE, or gpulinear/ in the user's cache directory; None for a user without a home directory."""
    chosen = os.environ.get("GPULINEAR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "gpulinear"
    except RuntimeError:
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _trusted(status: os.stat_result) -> bool:
    """Whether the directory is ours alone: nobody else may put a kernel in it."""
    if not stat.S_ISDIR(status.st_mode):
        return False
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return False
    return not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def open_root() -> Path | None:
    """The cache directory, made with mode 0700; None where it cannot be trusted (one warning each) or made."""
    root = cache_dir()
    if root is None:
        return None
    with contextlib.suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        status = root.stat()
    except OSError:
        return None  # a read-only home: work from memory
    if _trusted(status):
        return root
    if root not in _warned:
        _warned.add(root)
        warnings.warn(
            f"the kernel cache {root} is not used: it must be a directory that you own and nobody else can write; set "
            f"GPULINEAR_CACHE to another place or run chmod 700 on it",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


def _entry(root: Path, key: str) -> Path:
    if not _KEY.fullmatch(key):
        raise ValueError(f"a cache key is 64 hexadecimal digits, got {key!r}")
    return root / key[:2] / key


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file of sane size; OSError otherwise (also for a symlink)."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise OSError(f"{path} is not a regular file of at most {_MAX_BYTES} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def parse_meta(text: bytes, key: str) -> dict[str, str] | None:
    """The sha256 of each file as meta.json states it; None unless every field has its type and range."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(meta, dict) or set(meta) != {"schema", "key", "sha256"}:
        return None
    if type(meta["schema"]) is not int or meta["schema"] != SCHEMA or meta["key"] != key:  # true == 1 in Python
        return None
    digests = meta["sha256"]
    if not isinstance(digests, dict) or set(digests) != set(FILES):
        return None
    for digest in digests.values():
        if not isinstance(digest, str) or not _KEY.fullmatch(digest):
            return None
    return digests


def load(key: str, usable: Usable = lambda _: True) -> tuple[Files, Path] | None:
    """The files of an entry and its directory, or None for a miss: absent, broken, or not ``usable``."""
    root = open_root()
    if root is None:
        return None
    entry = _entry(root, key)
    try:
        if entry.is_symlink() or entry.parent.is_symlink():
            return None
        digests = parse_meta(read_regular(entry / "meta.json"), key)
        if digests is None:
            return None
        files = {name: read_regular(entry / name) for name in FILES}
    except OSError:
        return None
    if any(_digest(files[name]) != digest for name, digest in digests.items()) or not usable(files):
        return None
    return files, entry


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(root: Path) -> None:
    """Remove what killed writers left, once per process."""
    if root in _swept:
        return
    _swept.add(root)
    for pattern in ("??/.new-*", "??/.old-*"):
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _LEFTOVER_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def store(key: str, files: Files, usable: Usable = lambda _: True) -> tuple[Files, Path] | None:
    """Write an entry and load it; None where the directory cannot be written (a full or read-only disk).

    Whoever renames first wins, so the files that are returned may be another writer's. A broken entry in the way, or
    one that is not ``usable``, is moved aside and removed.
    """
    root = open_root()
    if root is None:
        return None
    _sweep(root)
    entry = _entry(root, key)
    temporary: Path | None = None
    try:
        entry.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
        for name in FILES:
            _write(temporary / name, files[name])
        meta = {"schema": SCHEMA, "key": key, "sha256": {name: _digest(files[name]) for name in FILES}}
        _write(temporary / "meta.json", json.dumps(meta, indent=1).encode())
        try:
            os.rename(temporary, entry)
        except OSError:
            if load(key, usable) is None:  # broken: replace it
                aside = Path(tempfile.mkdtemp(prefix=".old-", dir=entry.parent))
                with contextlib.suppress(OSError):
                    os.rename(entry, aside / "entry")
                with contextlib.suppress(OSError):
                    os.rename(temporary, entry)
                shutil.rmtree(aside, ignore_errors=True)
        return load(key, usable)
    except OSError:
        return None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
