"""How far the tree has moved from the commit of a row, in the files that a time depends on; needs git."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpulinear.measure.provenance import MATTERS, UNKNOWN

# Parts of the package that no call on a GPU goes through, as git's glob has them.
_ELSEWHERE = (
    "emulator/**", "measure/**", "testing/**", "backends/emulator.py", "backends/reference.py", "reference.py",
    "check.py", "cli*.py", "info.py", "ledger.py", "train.py",
)  # fmt: skip


@dataclass(frozen=True)
class Age:
    """``state``: "current", "stale" (files that matter differ), "dirty" (the commit does not hold what ran) or "unknown"
    (no git here, or it lacks the commit). ``files`` that differ, and how many commits changed any."""

    state: str
    files: tuple[str, ...] = ()
    commits: int = 0

    def __str__(self) -> str:
        if self.state != "stale":
            return self.state
        shown = ", ".join(self.files[:4]) + (", ..." if len(self.files) > 4 else "")
        return f"stale: {len(self.files)} files differ ({shown}), {self.commits} commits since"


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def age(commit: str, dirty: bool, root: Path) -> Age:
    """How old a row of ``commit`` is beside the working tree at ``root``."""
    if dirty:
        return Age("dirty")
    paths = ["--", *MATTERS, *(f":(exclude,glob)gpulinear/{name}" for name in _ELSEWHERE)]
    files = None if commit == UNKNOWN else _git(root, "diff", "--name-only", commit, *paths)
    if files is None:
        return Age("unknown")
    count = _git(root, "rev-list", "--count", f"{commit}..HEAD", *paths)
    return Age("stale" if files else "current", tuple(files.splitlines()), int(count or 0))
