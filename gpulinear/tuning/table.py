"""Finds the measured winners that serve a problem: in the user's table first, then in the one that ships.

Tables are read once per process and arch, when the first GEMM is planned. ``gemm.reload_tuning`` reads them again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..cache import open_root, read_regular
from ..config import NUMERICS_VERSION
from ..configs.base import pitch_a, pitch_b, vector_bytes
from ..device import DeviceSpec
from ..errors import TuningWarning
from ..problem import Gemm
from .entry import TOKEN_DIM, Entry, Key, Table, TableError, make_key, parse

Index = dict[Key, tuple[Entry, ...]]


def shipped_path(arch: str) -> Path:
    """Where the package's own table of an arch lies; it need not exist."""
    return Path(__file__).parent / f"{arch}.json"


def user_path(arch: str) -> Path | None:
    """Where the user's table of an arch lies, in the cache directory; None where that cannot be used."""
    root = open_root()
    return None if root is None else root / "tuning" / f"{arch}.json"


def read(path: Path) -> Table | None:
    """The table in a file; None where there is none.

    Raises:
        TableError: the file cannot be read or breaks a rule.
    """
    try:
        # What ships may be a symlink, as some installers make them; it is trusted as the code beside it is.
        data = path.read_bytes() if path == shipped_path(path.stem) else read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TableError(f"it cannot be read ({error})") from None
    return parse(data)


def _index(path: Path | None, arch: str) -> Index:
    """The entries of a file that count on ``arch`` now, by key. A bad file counts nothing, and says so once."""
    try:
        table = None if path is None else read(path)
    except TableError as error:
        warnings.warn(f"the tuning table {path} is ignored: {error}; mend or remove it", TuningWarning, stacklevel=2)
        return {}
    if table is None or table.arch != arch or table.numerics_version != NUMERICS_VERSION:
        return {}
    index: Index = {}
    for entry in table.entries:
        index[entry.key] = (*index.get(entry.key, ()), entry)
    return index


@lru_cache(maxsize=64)
def _indexes(arch: str) -> tuple[Index, Index]:
    return _index(user_path(arch), arch), _index(shipped_path(arch), arch)


def forget() -> None:
    """Read the tables again when they are next needed."""
    _indexes.cache_clear()


def layout_of(gemm: Gemm) -> str:
    """The majors of A and B as BLAS names them."""
    return ("N" if gemm.a.row_major else "T") + ("T" if gemm.b.col_major else "N")


def loads_of(gemm: Gemm) -> tuple[int, int]:
    """The bytes that one load of A and one of B may take."""
    return vector_bytes(gemm.a, pitch_a(gemm)), vector_bytes(gemm.b, pitch_b(gemm))


def key_of(gemm: Gemm) -> Key:
    """What an entry must share with a problem whose operands lie as a kernel reads them."""
    extents = {"m": gemm.m, "n": gemm.n, "k": gemm.k}
    return make_key(gemm.op, layout_of(gemm), gemm.dtype, gemm.d.dtype, gemm.precision, *loads_of(gemm), extents)


def serving(gemm: Gemm, spec: DeviceSpec, num_sms: int) -> Iterator[Entry]:
    """The entries that may decide for a problem, best first.

    An entry serves problems of its op, layout, dtypes, precision, load widths and weight, on as many SMs as it was
    measured on, with at most sqrt(2) times more or fewer tokens. The user's table comes before the shipped one; in each,
    entries of this very GPU come first, then the nearest count of tokens (as a ratio).
    """
    if num_sms != spec.sm_count:
        return
    key = key_of(gemm)
    tokens = int(getattr(gemm, TOKEN_DIM[gemm.op]))
    for index in _indexes(spec.arch):
        near = [
            entry
            for entry in index.get(key, ())
            if entry.sms == num_sms and max(entry.tokens, tokens) ** 2 <= 2 * min(entry.tokens, tokens) ** 2
        ]
        yield from sorted(
            near,
            key=lambda entry: (entry.gpu != spec.name, max(entry.tokens, tokens) / min(entry.tokens, tokens)),
        )
