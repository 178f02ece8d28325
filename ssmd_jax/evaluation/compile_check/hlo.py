"""The text of a compiled program, as far as we read it: computations, instructions, turns of loops.

XLA's text is no stable format: what is not understood is left out, and a loop whose turns cannot be read says so.
"""

import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "token": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][\w-]*)\(([^)]*)\)")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")


class Instruction(NamedTuple):
    """One line.

    Attributes:
        is_root: whether it is its computation's result.
        name: of what it computes.
        shapes: bytes of each array of the result.
        operation: for example "fusion".
        operands: names.
        text: all behind the equals sign, without layouts.
    """

    is_root: bool
    name: str
    shapes: list[int]
    operation: str
    operands: list[str]
    text: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return sum(self.shapes)


def parse(program: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computations by name, and the name of the one that is the program."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            # Layouts, `{1,0:T(8,128)}`, hold parentheses that are no calls.
            text = re.sub(r"(?<=\])\{[^{}]*\}", "", re.sub(r"/\*.*?\*/", "", found[3]))
            if operation := _OPERATION.search(text):
                shapes = [_num_bytes(array) for array in _ARRAY.finditer(text[: operation.start(1)])]
                operands = re.findall(r"%([\w.-]+)", operation[2])
                current.append(Instruction(bool(found[1]), found[2], shapes, operation[1], operands, text))
    return computations, entry


def _num_bytes(array: re.Match) -> int:
    bits = BITS.get(array[1], int(array[2] or 0))
    return math.prod(int(side) for side in array[3].split(",") if side) * bits // 8


def attribute(name: str, text: str) -> str:
    """The computation that an instruction names as its `body`, its `condition` and the like."""
    return re.search(rf"\b{name}=%?([\w.-]+)", text)[1]


def called(text: str) -> list[str]:
    """The computations that an instruction runs, loops' apart."""
    return [name for group in _CALLED.findall(text) for name in re.findall(r"[\w.-]+", group)]


def turns(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Turns of a loop that counts from 0 up to a constant; None where that cannot be read."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.text):
        return int(known[1])
    condition = {i.name: i for i in computations.get(attribute("condition", loop.text), ())}
    body = {i.name: i for i in computations.get(attribute("body", loop.text), ())}
    compare = next((i for i in condition.values() if i.is_root and i.operation == "compare"), None)
    root = next((i for i in body.values() if i.is_root and i.operation == "tuple"), None)
    if compare is None or root is None or "direction=LT" not in compare.text:
        return None
    counter, bound = (condition.get(name) for name in compare.operands)
    if counter is None or bound is None or counter.operation != "get-tuple-element" or bound.operation != "constant":
        return None
    added = body.get(root.operands[int(re.search(r"index=(\d+)", counter.text)[1])])
    if added is None or added.operation != "add":
        return None
    steps = [body[name] for name in added.operands if name in body and body[name].operation == "constant"]
    return -(-_constant(bound) // _constant(steps[0])) if len(steps) == 1 else None


def _constant(instruction: Instruction) -> int:
    return int(re.search(r"constant\((-?\d+)\)", instruction.text)[1])
