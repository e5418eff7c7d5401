"""The hardware ledger: which kernels, by the hash of their machine code, have passed their tests on which GPU.

Not of the PTX: NVRTC does not always number its registers the same way, while the machine code stays.

``python -m bench.prove`` appends to it; ``info`` and benches list what is absent as "emulated only". The file is a JSON
list of objects with the fields of ``Entry``: tests/ledger.json in a checkout, ledger.json inside an installed package.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import struct
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compile import Artifact


@dataclass(frozen=True)
class Entry:
    """One kernel that passed. ``kernel`` is its family, ``driver`` and ``nvrtc`` are versions like "13.0"."""

    kernel: str
    code_sha256: str
    arch: str
    gpu: str
    driver: str
    nvrtc: str
    date: str  # YYYY-MM-DD
    commit: str


_PATTERNS = {
    "kernel": r"[a-z][a-z0-9_]*",
    "code_sha256": r"[0-9a-f]{64}",
    "arch": r"sm_[0-9]{2,3}[af]?",
    "driver": r"[0-9]+(\.[0-9]+)+",
    "nvrtc": r"[0-9]+\.[0-9]+",
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "commit": r"[0-9a-f]{7,64}",
}
_FIELDS = tuple(field.name for field in fields(Entry))


def default_path() -> Path:
    """Where the ledger is: inside an installed package, else in a checkout's tests."""
    package = Path(__file__).resolve().parent
    installed = package / "ledger.json"
    return installed if installed.is_file() else package.parent / "tests" / "ledger.json"


def _entry(item: Any, place: str) -> Entry:
    """One object of the file, field by field; ValueError says which field is wrong."""
    if not isinstance(item, dict) or set(item) != set(_FIELDS):
        raise ValueError(f"{place} must be an object with the fields {', '.join(_FIELDS)}, got {item!r}")
    for name in _FIELDS:
        value = item[name]
        if not isinstance(value, str) or not re.fullmatch(_PATTERNS.get(name, r"\S(.*\S)?"), value):
            raise ValueError(f"{place}: {name} is {value!r}, which does not match {_PATTERNS.get(name, 'a name')}")
    try:
        datetime.date.fromisoformat(item["date"])
    except ValueError:
        raise ValueError(f"{place}: date is {item['date']!r}, which is no day") from None
    return Entry(**item)


def read(path: Path) -> list[Entry]:
    """The entries of a file. Raises OSError where it cannot be read, ValueError where it is not a ledger."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, list):
        raise ValueError("the ledger must be a list")
    return [_entry(item, f"entry {index}") for index, item in enumerate(data)]


def load(path: Path | None = None) -> list[Entry]:
    """The entries of a ledger; a missing or corrupt file is a warning that names it, and an empty ledger."""
    path = path or default_path()
    try:
        return read(path)
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"the hardware ledger {path} is not used: {error}", RuntimeWarning, stacklevel=2)
        return []


def machine_code(cubin: bytes, entry: str) -> bytes:
    """The instructions of kernel ``entry`` in a cubin: its section ``.text.<entry>``.

    Raises:
        ValueError: this is no 64-bit ELF file with such a section.

    Source: System V ABI, "Object Files" (file header, section header table, string table).
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("a cubin must be a 64-bit ELF file")
    try:
        (table,) = struct.unpack_from("<Q", cubin, 0x28)
        size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", cubin, table + size * index) for index in range(count)]
        strings = headers[names][4]
    except (struct.error, IndexError) as error:
        raise ValueError(f"the cubin's section table is broken: {error}") from None
    wanted = f".text.{entry}\0".encode()
    for name, _, _, _, offset, length in headers:
        if cubin[strings + name : strings + name + len(wanted)] == wanted:
            return cubin[offset : offset + length]
    raise ValueError(f"the cubin holds no section .text.{entry}")


def digest(artifact: Artifact) -> str:
    """What stands for a kernel in the ledger: the SHA-256 of its machine code."""
    return hashlib.sha256(machine_code(artifact.cubin, artifact.entry)).hexdigest()


def lookup(artifact: Artifact, path: Path | None = None) -> Entry | None:
    """The latest entry of a kernel, or None: emulated only."""
    sha = digest(artifact)
    found = [entry for entry in load(path) if entry.code_sha256 == sha]
    return max(found, key=lambda entry: entry.date, default=None)


def append(new: Iterable[Entry], path: Path | None = None) -> list[Entry]:
    """Add entries and write the file in one step; returns all of them.

    An entry replaces an older one of the same code on the same GPU, driver and NVRTC. A missing file is begun.

    Raises:
        ValueError: the file is corrupt (it is left as it is), or an entry is not valid. OSError: it cannot be written.
    """
    path = path or default_path()
    try:
        entries = read(path)
    except FileNotFoundError:
        entries = []
    except ValueError as error:
        raise ValueError(f"the hardware ledger {path} is corrupt and was left as it is: {error}") from error
    known = {(e.code_sha256, e.gpu, e.driver, e.nvrtc): e for e in entries}
    for entry in new:
        known[entry.code_sha256, entry.gpu, entry.driver, entry.nvrtc] = _entry(asdict(entry), "the new entry")
    entries = sorted(known.values(), key=lambda e: (e.kernel, e.arch, e.code_sha256, e.gpu, e.date))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump([asdict(entry) for entry in entries], file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return entries
