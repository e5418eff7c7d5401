"""Every mutant stands where it says, once: also those that a run of the suite leaves out (tests/kill_matrix.py)."""

from __future__ import annotations

import pytest

import gpulinear.compile as compiler

from . import (
    test_joint_mutants,
    test_kernel_mutants,
    test_mma_mutants,
    test_mma_turing_mutants,
    test_split_mutants,
    test_wgmma_mutants,
    test_wgmma_planes_mutants,
)
from .kill_matrix import Mutant

MATRICES = (
    test_joint_mutants,
    test_kernel_mutants,
    test_mma_mutants,
    test_mma_turing_mutants,
    test_split_mutants,
    test_wgmma_mutants,
    test_wgmma_planes_mutants,
)
MUTANTS = [mutant for matrix in MATRICES for mutant in matrix.MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_stands_once_in_its_file(mutant: Mutant) -> None:
    text = (compiler.kernels_dir() / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.new != mutant.old
