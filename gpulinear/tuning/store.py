"""Writes tuning tables: new winners replace older ones of the same problem and GPU, and readers see a whole file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..config import NUMERICS_VERSION
from .entry import Entry, Table, parse
from .table import read


def _identity(entry: Entry) -> tuple[object, ...]:
    """Entries that agree in this are measurements of the same thing."""
    return (*entry.key, entry.tokens, entry.gpu, entry.sms)


def _place(entry: Entry) -> tuple[object, ...]:
    """Where an entry stands in its file: an order that does not depend on what was measured first."""
    kind = (entry.op, entry.layout, entry.dtype, entry.out_dtype, entry.precision or "")
    return (*kind, entry.n, entry.k, entry.m, entry.vec_a, entry.vec_b, entry.gpu, entry.sms)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time, where the system can lock a directory: a second one would lose the first one's entries."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would follow a shipped table into every install
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def save(path: Path, arch: str, entries: Iterable[Entry]) -> Table:
    """Add ``entries`` to the table in ``path`` and return it. Entries of another NUMERICS_VERSION are dropped.

    Raises:
        TableError: what lies there is no table, or an entry breaks a rule; the file is left as it is.
        OSError: the directory cannot be made or written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.parent):
        old = read(path)
        current = old is not None and (old.arch, old.numerics_version) == (arch, NUMERICS_VERSION)
        kept = {_identity(entry): entry for entry in (old.entries if old and current else ())}
        kept |= {_identity(entry): entry for entry in entries}
        table = Table(arch, NUMERICS_VERSION, tuple(sorted(kept.values(), key=_place)))
        text = table.to_json()
        parse(text.encode())  # nothing is written that would not be read
        _replace(path, text)
    return table
