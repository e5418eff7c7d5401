"""Golden bits: what one matrix instruction gives on a GPU, stored with its operands, and compared with the emulator's model.

``python -m bench.golden write --out DIR`` (needs a GPU) runs a micro-kernel of bench/micro for each form on fixed operand
tiles and writes DIR/<arch>/<form>.npz. ``python -m bench.golden check [DIR]`` compares such files with the model, form by
form. Exit codes: 0 all right, 1 a mismatch or a bad file, 3 no GPU.
"""

from __future__ import annotations

import argparse
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpulinear.compile import Artifact, compile_kernel
from gpulinear.device import live_spec, why_no_gpu
from gpulinear.emulator import GlobalMemory, fragments, run, tensorcore
from gpulinear.measure.provenance import provenance

from . import golden_tma

Array = np.ndarray[Any, Any]

MICRO = Path(__file__).parent / "micro"
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SEED = 20260101
FILLS = ("random", "wide", "cancellation", "subnormals", "specials", "zeros")
FIELDS = {"f16": (5, 10), "bf16": (8, 7), "tf32": (8, 23), "f32": (8, 23), "f64": (11, 52)}  # exponent, fraction bits
BITS: dict[str, Any] = {"f16": np.uint16, "bf16": np.uint16, "tf32": np.uint32, "f32": np.uint32, "f64": np.uint64}


@dataclass(frozen=True)
class Form:
    """One instruction form, D[m, n] = A[m, k] B[k, n] + C, and how its micro-kernel is made.

    What only moves elements has no B and C. An ldmatrix: A is four 8x8 matrices, one below the other; D is [register,
    lane]. A copy by TMA: A is a matrix, of which tile i copies the box at
    ``golden_tma.BOXES[i]``; D is shared memory, word by word.
    """

    name: str
    kind: str  # of the operands
    shape: tuple[int, int, int]
    file: str
    threads: int
    defines: tuple[tuple[str, str], ...]
    archs: tuple[str, ...]  # where it exists; the first is the lowest

    @property
    def accumulator(self) -> str:
        """The type of C and D."""
        return "f64" if self.kind == "f64" else "f32"

    @property
    def loads(self) -> bool:
        """Whether it only moves elements."""
        return self.tma or self.file == "ldmatrix.cu"

    @property
    def tma(self) -> bool:
        """Whether it is a copy by TMA."""
        return self.file == "tma.cu"

    @property
    def source(self) -> str:
        """The translation unit of its micro-kernel, whose entry is ``micro``."""
        head = "".join(f"#define {name} {value}\n" for name, value in self.defines)
        return head + (MICRO / self.file).read_text(encoding="utf-8")

    def compiled(self, arch: str) -> Artifact:
        """Its micro-kernel for ``arch``."""
        return compile_kernel(self.source, entry="micro", arch=arch, include_dir=MICRO)

    def status(self, arch: str) -> str:
        """The standing of the model that it is compared with."""
        return "placement of elements only" if self.loads else tensorcore.status(self.name, arch)


_TURING = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


def _mma(kind: str, shape: tuple[int, int, int], archs: tuple[str, ...] = _TURING[1:]) -> Form:
    m, n, k = shape
    words = k // 2 if kind in ("f16", "bf16") else k
    word, acc = ("double", "double") if kind == "f64" else ("u32", "float")
    name = f"m{m}n{n}k{k}"
    defines = {"M": str(m), "WORDS": str(words), "WORD": word, "ACC": acc, "MMA": f"mma_{name}_{kind}"}
    return Form(f"mma.{name}.{kind}", kind, shape, "mma.cu", 32, tuple(defines.items()), archs)


def _wgmma(kind: str, n: int, registers: bool, mn: str = "") -> Form:
    """``mn``: the operands, of "ab", that lie along M or N in shared memory."""
    k = 8 if kind == "tf32" else 16
    a_mn, b_mn = int("a" in mn), int("b" in mn)
    majors = "" if kind == "tf32" else f", {b_mn}" if registers else f", {a_mn}, {b_mn}"
    defines = {
        "N": str(n),
        "KIND": f'"m64n{n}k{k}.f32.{kind}.{kind}"',
        "TRANS": f'"{majors}"',
        "A_FROM_REGISTERS": str(int(registers)),
        "A_MN": str(a_mn),
        "B_MN": str(b_mn),
    }
    name = f"wgmma.m64n{n}k{k}.{'rs' if registers else 'ss'}{f'.{mn}-mn' if mn else ''}.{kind}"
    return Form(name, kind, (64, n, k), "wgmma.cu", 128, tuple(defines.items()), ("sm_90a",))


def _ldmatrix(suffix: str) -> Form:
    defines = (("LOAD", f"ldmatrix_x4{suffix}"),)
    return Form(f"ldmatrix.x4{suffix.replace('_', '.')}", "f16", (32, 0, 8), "ldmatrix.cu", 32, defines, _TURING)


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        _mma("f16", (16, 8, 16)),
        _mma("bf16", (16, 8, 16)),
        _mma("tf32", (16, 8, 8)),
        _mma("f16", (16, 8, 8), _TURING),
        _mma("f64", (8, 8, 4)),
        _mma("f64", (16, 8, 4), ("sm_90a",)),
        *(_wgmma(kind, n, rs) for kind in ("f16", "bf16", "tf32") for n in (8, 64, 128, 256) for rs in (False, True)),
        *(_wgmma("bf16", n, False, mn) for n, mn in ((8, "a"), (64, "b"), (128, "ab"), (256, "b"), (256, "ab"))),
        _wgmma("f16", 256, False, "ab"),
        _ldmatrix(""),
        _ldmatrix("_trans"),
        Form("tma.load.multicast.128B", "bf16", (70, 0, 72), "tma.cu", 128, (), ("sm_90a",)),
    )
}


# Operands


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], kind: str, low: int, high: int) -> Array:
    """Bit patterns with exponents in [low, high] about that of 1, as far as the type goes; every sign and fraction."""
    width, fraction = FIELDS[kind]
    bias = (1 << width - 1) - 1
    exponent = np.clip(rng.integers(low, high + 1, shape) + bias, 0, 2 * bias).astype(np.uint64)
    sign = rng.integers(0, 2, shape, np.uint64) << np.uint64(width + fraction)
    digits = rng.integers(0, 1 << fraction, shape, np.uint64)
    bits: Array = (sign | exponent << np.uint64(fraction) | digits).astype(BITS[kind])
    return bits


def _special(rng: np.random.Generator, bits: Array, kind: str, rate: float) -> None:
    """Puts infinities of both signs and quiet NaNs at some places."""
    width, fraction = FIELDS[kind]
    infinity, sign = ((1 << width) - 1) << fraction, 1 << width + fraction
    values = np.array([infinity, infinity, infinity | sign, infinity | 1 << fraction - 1], BITS[kind])
    where = np.flatnonzero(rng.random(bits.size) < rate)
    bits.flat[where] = rng.choice(values, len(where))


def _tile(rng: np.random.Generator, form: Form, fill: str) -> tuple[Array, Array, Array]:
    """Bit patterns of A [m, k], B [k, n] and C [m, n]. Columns of C repeat every 8, which keeps the files small."""
    m, n, k = form.shape
    width, _ = FIELDS[form.kind]
    bias = (1 << width - 1) - 1
    reach = min(bias - 1, 40) if fill == "wide" else 2
    low = -bias if fill == "subnormals" else -reach
    a = _numbers(rng, (m, k), form.kind, low, low + 2 if fill == "subnormals" else reach)
    b = _numbers(rng, (k, n), form.kind, -reach, reach)
    c = _numbers(rng, (m, min(n, 8)), form.accumulator, *((-127, -120) if fill == "subnormals" else (-reach, reach)))
    if fill == "cancellation":  # every second product cancels most of the one before it
        one = BITS[form.kind](1)
        a[:, 1::2] = a[:, ::2]
        b[1::2] = b[::2] ^ one << BITS[form.kind](width + FIELDS[form.kind][1]) ^ one << BITS[form.kind](1)
    if fill == "specials":
        for bits, kind in ((a, form.kind), (b, form.kind), (c, form.accumulator)):
            _special(rng, bits, kind, 0.02)
    if fill == "zeros":
        for bits, kind in ((a, form.kind), (b, form.kind), (c, form.accumulator)):
            sign = BITS[kind](1 << sum(FIELDS[kind]))
            bits[...] = np.where(rng.random(bits.shape) < 0.8, bits & sign, bits)
    if form.kind == "tf32" and fill != "wide":  # wide: with the 13 bits that the instruction ignores
        a, b = a & np.uint32(0xFFFFE000), b & np.uint32(0xFFFFE000)
    return a, b, np.tile(c, (1, n // 8))


def operands(form: Form) -> dict[str, Array]:
    """The tiles of a form, {"a": [tile, m, k], "b": [tile, k, n], "c": [tile, m, n]}, all of them bit patterns.

    Large forms get one tile of each fill, small ones four.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(form.name.encode())])
    if form.loads:
        m, _, k = form.shape
        return {"a": rng.integers(0, 1 << 16, (len(golden_tma.BOXES) if form.tma else 8, m, k), np.uint16)}
    repeats = 4 if form.shape[1] == 8 else 1
    tiles = [_tile(rng, form, fill) for _ in range(repeats) for fill in FILLS]
    return {name: np.stack([tile[i] for tile in tiles]) for i, name in enumerate("abc")}


# Results


def _result_shape(form: Form, tiles: int) -> tuple[int, ...]:
    if form.loads:
        return (tiles, 2 * 64 if form.tma else 4, 32)
    return (tiles, *form.shape[:2])


def expected(form: Form, given: Mapping[str, Array], arch: str) -> Array:
    """The bits of D by the emulator's model."""
    if form.tma:
        return golden_tma.expected(given["a"])
    if form.loads:
        rows = given["a"].reshape(-1, 4, 8, 8)
        registers = fragments.from_rows(rows, form.name.endswith("trans")).reshape(4, -1, 32)
        return np.ascontiguousarray(registers.swapaxes(0, 1))
    if form.kind == "f64":
        a, b, c = (given[name].view(np.float64) for name in "abc")
        d: Array = np.stack([tensorcore.multiply_add_f64(*tile) for tile in zip(a, b, c, strict=True)])
        return d.view(np.uint64)
    single = tensorcore.multiply_add(given["a"], given["b"], given["c"].view(np.float32), form.kind, arch)
    bits: Array = single.view(np.uint32)
    return bits


def _inputs(form: Form, given: Mapping[str, Array]) -> list[Array]:
    """The arrays in the order and layout that the micro-kernels take: K contiguous in both operands."""
    if form.loads:
        return [given["a"]]
    return [given["a"], np.ascontiguousarray(given["b"].swapaxes(1, 2)), given["c"]]


def execute(form: Form, given: Mapping[str, Array], backend: str, arch: str) -> Array:
    """The bits of D by the form's micro-kernel, run on "cuda" or in the "emulator"."""
    artifact = form.compiled(arch)
    if form.tma:
        return golden_tma.execute(artifact, form.threads, given["a"], backend)
    inputs = _inputs(form, given)
    tiles = len(given["a"])
    out = np.empty(_result_shape(form, tiles), BITS[form.accumulator])
    if backend == "cuda":
        import cupy

        device, result = [cupy.asarray(array) for array in inputs], cupy.empty(out.shape, out.dtype)
        kernel = cupy.RawModule(path=str(artifact.cubin_path)).get_function("micro")
        kernel((tiles,), (form.threads,), (*device, result))
        got: Array = result.get()
        return got
    memory = GlobalMemory()
    params = [memory.alloc(array, name=name, readonly=True) for name, array in zip("ABC", inputs, strict=False)]
    params.append(memory.alloc(out.nbytes, name="D", initialised=False))
    run(artifact.ptx, "micro", tiles, form.threads, 0, params, memory=memory).report.raise_if_any()
    out[...] = memory.view(params[-1], out.nbytes).view(out.dtype).reshape(out.shape)
    return out


# Files


class GoldenError(ValueError):
    """A file of golden bits that cannot be used; the message names it."""


def save(path: Path, form: Form, arch: str, given: Mapping[str, Array], d: Array, where: Mapping[str, Any]) -> None:
    """Write operands and result of a form, with the form, the arch and their provenance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = np.array(json.dumps({"form": form.name, "arch": arch, **where}))
    arrays: dict[str, Any] = {"about": about, "d": d, **given}
    np.savez_compressed(path, **arrays)


def load(path: Path, form: Form, arch: str) -> tuple[dict[str, Array], Array, dict[str, Any]]:
    """Operands, result and provenance; GoldenError for anything but a whole file of this form and arch."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        about = json.loads(str(data.pop("about")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise GoldenError(f"{path} is not a file of golden bits: {error}") from error
    if not isinstance(about, dict) or (about.get("form"), about.get("arch")) != (form.name, arch):
        raise GoldenError(f"{path} must hold {form.name} on {arch}, but says {about}")
    missing = [key for key in ("gpu", "driver", "nvrtc", "commit", "time") if not about.get(key)]
    if missing:
        raise GoldenError(f"{path} does not say where it comes from: no {', '.join(missing)}")
    m, n, k = form.shape
    tiles = len(data["a"]) if "a" in data and data["a"].ndim else 0
    shapes = {"a": ((tiles, m, k), form.kind), "d": (_result_shape(form, tiles), form.accumulator)}
    if not form.loads:
        shapes |= {"b": ((tiles, k, n), form.kind), "c": ((tiles, m, n), form.accumulator)}
    found = {name: (array.shape, array.dtype) for name, array in data.items()}
    if not tiles or found != {name: (shape, np.dtype(BITS[kind])) for name, (shape, kind) in shapes.items()}:
        raise GoldenError(f"{path} must hold the arrays {', '.join(shapes)} of {form.name}, but holds {found}")
    return data, data.pop("d"), about


@dataclass(frozen=True)
class Verdict:
    """How a form stands: "confirmed", "MISMATCH", "corrupt" or "absent"; ``detail`` says more."""

    form: str
    arch: str
    outcome: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.arch} {self.form}: {self.outcome}{f' ({self.detail})' if self.detail else ''}"


def compare(form: Form, arch: str, got: Array, want: Array) -> Verdict:
    """Device bits against the model's, naming the first element that differs."""
    differs = np.argwhere(got != want)
    if not len(differs):
        return Verdict(form.name, arch, "confirmed", f"{got.size} elements")
    tile, row, col = (int(i) for i in differs[0])
    digits = 2 * got.itemsize
    first = f"tile {tile} [{row}, {col}]: device {got[tile, row, col]:#0{digits + 2}x}"
    first += f", model {want[tile, row, col]:#0{digits + 2}x}"
    return Verdict(form.name, arch, "MISMATCH", f"{len(differs)} of {got.size} elements; first {first}")


def check(directory: Path = GOLDEN) -> Iterator[Verdict]:
    """Every form of every arch that has a folder; without any, every form on its lowest arch (absent)."""
    archs = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    for form in FORMS.values():
        for arch in [arch for arch in archs if arch in form.archs] if archs else form.archs[:1]:
            path = directory / arch / f"{form.name}.npz"
            if not path.exists():
                yield Verdict(form.name, arch, "absent")
                continue
            try:
                given, got, about = load(path, form, arch)
            except GoldenError as error:
                yield Verdict(form.name, arch, "corrupt", str(error))
                continue
            verdict = compare(form, arch, got, expected(form, given, arch))
            yield Verdict(form.name, arch, verdict.outcome, f"{verdict.detail}; {about['gpu']}, {about['time']}")


def write(out: Path, arch: str, where: Mapping[str, Any], backend: str = "cuda") -> Iterator[Verdict]:
    """Run every form that ``arch`` has, write its file, and compare it with the model."""
    for form in FORMS.values():
        if arch in form.archs:
            given = operands(form)
            d = execute(form, given, backend, arch)
            save(out / arch / f"{form.name}.npz", form, arch, given, d, where)
            yield compare(form, arch, d, expected(form, given, arch))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.golden", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write", help="run all forms on the GPU and store their bits")
    writer.add_argument("--out", type=Path, required=True, help="directory; files go to OUT/<arch>/<form>.npz")
    checker = commands.add_parser("check", help="compare stored bits with the emulator's model")
    checker.add_argument("directory", type=Path, nargs="?", default=GOLDEN)
    options = parser.parse_args(arguments)
    if options.command == "write":
        why = why_no_gpu()
        if why is not None:
            print(f"bench.golden write needs a GPU: {why}; nothing was written")
            return 3
        verdicts = write(options.out, live_spec(0).arch, provenance())
    else:
        verdicts = check(options.directory)
    bad = 0
    for verdict in verdicts:
        bad += verdict.outcome in ("MISMATCH", "corrupt")
        print(f"{verdict}\n    model: {FORMS[verdict.form].status(verdict.arch)}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
