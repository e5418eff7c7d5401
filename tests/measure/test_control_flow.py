"""Loops of machine code, on made-up listings with the shapes that ptxas gives them."""

from __future__ import annotations

import pytest

from gpulinear.measure.control_flow import Instruction, loops
from gpulinear.measure.sass import parse


def found(listing: str) -> list[list[int]]:
    """The loops of lines such as "L: @P0 BRA M", instructions numbered from 0, sorted."""
    text = ""
    for number, line in enumerate(line.strip() for line in listing.strip().splitlines()):
        label, _, rest = line.rpartition(": ")
        if label:
            text += f".L_{label}:\n"
        words = rest.split()
        if words[-1].isupper() and len(words[-1]) == 1:
            words[-1] = f"`(.L_{words[-1]})"
        text += f"        /*{16 * number:04x}*/    {' '.join(words)} ;\n"
    code, labels = parse(text)
    return sorted(sorted(body) for body in loops(code, labels))


def test_straight_code_has_no_loop() -> None:
    assert found("MOV R1, R2\n@P0 BRA A\nFADD R1, R2\nA: EXIT") == []
    assert loops([], {}) == []


def test_nested_loops() -> None:
    assert found("A: MOV R0, R1\nB: FFMA R0, R1\n@P0 BRA B\n@P1 BRA A\nEXIT") == [[0, 1, 2, 3], [1, 2]]


def test_a_block_that_lies_behind_the_code_belongs_to_the_loop_that_it_returns_to() -> None:
    # How ptxas lays out a wait that has to be repeated: the retry is out of line and jumps back into the loop. It is no
    # loop from there to the end of the code.
    listing = """
        A: SYNCS R1
        @!P0 BRA C
        B: HGMMA R0
        @P1 BRA A
        FADD R0, R1
        EXIT
        C: SYNCS R1
        @!P0 BRA C
        BRA B
    """
    assert found(listing) == [[0, 1, 2, 3, 6, 7, 8], [6, 7]]


def test_two_ways_back_are_one_loop() -> None:
    assert found("A: MOV R0, R1\n@P0 BRA A\nFADD R0, R1\n@P1 BRA A\nEXIT") == [[0, 1, 2, 3]]


def test_what_leaves_a_loop_for_good_is_not_part_of_it() -> None:
    # The jump out by CALL is how sm_80 code leaves a main loop.
    assert found("A: FFMA R0, R1\n@P1 CALL.REL.NOINC B\nBRA A\nB: FADD R0, R1\nEXIT") == [[0, 1, 2]]
    assert found("A: FFMA R0, R1\n@P1 EXIT\nBRA A\nEXIT") == [[0, 1, 2]]
    # What stands behind an end or a jump is not reached from it.
    assert found("A: FFMA R0, R1\nEXIT\n@P0 BRA A\nEXIT") == []
    assert found("A: FFMA R0, R1\n@P0 BRA B\nCALL.REL.NOINC B\nFADD R0, R1\nBRA A\nB: EXIT") == []


def test_a_condition_may_be_an_operand() -> None:
    assert found("A: FFMA R0, R1\nBRA P4, A\nEXIT") == [[0, 1]]
    # Were it unconditional, nothing would come after it, and there were no way from here to the second loop's end.
    assert found("BRA P4, B\nA: FFMA R0, R1\n@P0 BRA A\nB: EXIT") == [[1, 2]]


def test_a_call_of_a_subroutine_comes_back() -> None:
    assert found("A: MOV R0, R1\nCALL.REL.NOINC `($__internal_0_$division)\nFADD R0, R1\n@P0 BRA A\nEXIT") == [
        [0, 1, 2, 3]
    ]


def test_loops_of_code_that_nothing_reaches_are_found() -> None:
    # A subroutine is reached by a call that names no label.
    assert found("EXIT\nA: FADD R0, R1\n@P0 BRA A\nRET.REL.NODEC R20") == [[1, 2]]


@pytest.mark.parametrize(
    ("opcode", "operands", "conditional", "target", "falls_through"),
    [
        ("BRA", " `(.L_x_1)", False, ".L_x_1", False),
        ("BRA.U", " UP0, `(.L_x_1)", False, ".L_x_1", True),
        ("BRA", " `(.L_x_1)", True, ".L_x_1", True),
        ("BSSY", " B0, `(.L_x_1)", False, None, True),
        ("EXIT", "", False, None, False),
        ("EXIT", "", True, None, True),
        ("RET.REL.NODEC", " R20 `(gpulinear)", False, None, False),
        ("CALL.REL.NOINC", " `($__internal_0_$division)", False, None, True),
    ],
)
def test_where_an_instruction_goes(
    opcode: str, operands: str, conditional: bool, target: str | None, falls_through: bool
) -> None:
    one = Instruction(opcode, operands, conditional)
    assert (one.target, one.falls_through) == (target, falls_through)
