"""What is shipped: the wheel holds the kernels and finds them, README's extras exist, no file names a machine."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_kernel_and_finds_them(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    for header in (ROOT / "kernels").rglob("*.cuh"):
        assert f"gpulinear/{header.relative_to(ROOT)}" in names
    assert "gpulinear/py.typed" in names and not any(name.startswith(("tests", "bench")) for name in names)
    code = (
        "import gpulinear, gpulinear.compile as c; print(gpulinear.__file__); print(c.kernels_dir());"
        "from gpulinear.config import StridedCopyConfig as S; from gpulinear.source import render, entry_name;"
        "print(c.compile_kernel(render(S(4)), entry=entry_name('strided_copy'), arch='sm_80').resources.spill_stores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "GPULINEAR_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    package, kernels, spills = done.stdout.split()
    assert package.startswith(str(tmp_path)) and kernels == str(tmp_path / "gpulinear" / "kernels") and spills == "0"


def test_readme_names_extras_that_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT / "README.md").read_text()):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_no_committed_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    patterns = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", "pypi" + r"\.org", "/home" + r"/\w")))
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".cuh", ".toml", ".yaml", "") and path.is_file():
            assert not patterns.search(path.read_text(encoding="utf-8")), name
