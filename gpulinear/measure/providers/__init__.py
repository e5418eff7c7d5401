"""What is timed: gpulinear, and the libraries it is measured against. ``discover`` finds those that work here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config import FAMILIES
from ...errors import ArgumentError
from .base import Provider, Unavailable

# name -> what makes it; imports happen inside, and fail there.
OURS = "gpulinear"


def _cupy_matmul() -> Provider:
    from .cupy_matmul import CupyMatmul

    return CupyMatmul()


def _cublas() -> Provider:
    from .cublas import CublasGemmEx

    return CublasGemmEx()


def _cublaslt() -> Provider:
    from .cublaslt import CublasLt

    return CublasLt()


def _torch_cublas() -> Provider:
    from .torch_ import Torch

    return Torch("cublas")


def _torch_cublaslt() -> Provider:
    from .torch_ import Torch

    return Torch("cublaslt")


PEERS: dict[str, Callable[[], Provider]] = {
    "cupy.matmul": _cupy_matmul,
    "cublasGemmEx": _cublas,
    "cublasLt": _cublaslt,
    "torch-cublas": _torch_cublas,
    "torch-cublaslt": _torch_cublaslt,
}


def discover(
    arch: str, wanted: Sequence[str] = (), families: Sequence[str] = ()
) -> tuple[list[Provider], dict[str, str]]:
    """The providers that work here, gpulinear first, and why the others do not.

    Args:
        arch: of the GPU at hand, such as "sm_90a".
        wanted: names from ``PEERS``, "gpulinear", or "gpulinear:FAMILY"; empty: gpulinear and all peers.
        families: kernel families to time on their own as well, as "gpulinear:FAMILY"; "all" means every one.

    Raises:
        ArgumentError: an unknown provider or family.
    """
    from .ours import Ours

    names = list(wanted) or [OURS, *PEERS]
    names += [f"{OURS}:{family}" for family in (list(FAMILIES) if "all" in families else families)]
    known = [OURS, *(f"{OURS}:{family}" for family in FAMILIES), *PEERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArgumentError(f"providers are {', '.join(known)}; unknown: {', '.join(unknown)}")
    found: list[Provider] = []
    missing: dict[str, str] = {}
    for name in sorted(dict.fromkeys(names), key=lambda name: not name.startswith(OURS)):
        if name.startswith(OURS):
            found.append(Ours(arch, name.partition(":")[2] or None))
            continue
        try:
            found.append(PEERS[name]())
        except Unavailable as error:
            missing[name] = str(error)
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is not installed"
        except Exception as error:  # a peer that fails to start, in whatever way, must not cost the run
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing
