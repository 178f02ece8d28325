"""What devices send each other in a compiled program, read from its text.

XLA's text is no stable format: what is not understood is left out of the sums rather than guessed, and loops whose
number of turns cannot be read are counted once and named.
"""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "token": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][\w-]*)\(([^)]*)\)")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")


class Collective(NamedTuple):
    """All collectives of a kind.

    Attributes:
        kind: one of `KINDS`.
        count: how often one runs in a call of the program.
        num_bytes: of the results, of one device.
        wire_bytes: that a device sends, each collective done as a ring.
    """

    kind: str
    count: int
    num_bytes: int
    wire_bytes: int


class _Instruction(NamedTuple):
    is_root: bool
    name: str
    shapes: list[int]  # bytes of each array of the result
    operation: str
    operands: list[str]
    text: str


def collectives(program: str) -> tuple[list[Collective], int]:
    """Collectives of a program.

    Args:
        program: the text of the optimised program, `compiled.as_text()`.

    Returns:
        A `Collective` for each kind that occurs, and the number of loops with collectives in them whose turns are not
        known and were counted as one.
    """
    computations, entry = _parse(program)
    totals: dict[str, list[int]] = {}
    unknown_loops = 0

    def visit(name: str, turns: int) -> bool:
        """Adds a computation's collectives, `turns` times; says whether there were any."""
        nonlocal unknown_loops
        found = False
        for instruction in computations.get(name, ()):
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                found = True
                num_bytes, wire_bytes = _traffic(kind, instruction)
                total = totals.setdefault(kind, [0, 0, 0])
                for n, value in enumerate((1, num_bytes, wire_bytes)):
                    total[n] += turns * value
            elif instruction.operation == "while":
                loop_turns = _turns(instruction, computations)
                inside = visit(_attribute("body", instruction.text), turns * (loop_turns or 1))
                unknown_loops += inside and loop_turns is None
                found |= inside
            else:
                for called in _called(instruction.text):
                    found |= visit(called, turns)
        return found

    visit(entry, 1)
    return [Collective(kind, *totals[kind]) for kind in KINDS if kind in totals], unknown_loops


def _parse(program: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
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
                current.append(_Instruction(bool(found[1]), found[2], shapes, operation[1], operands, text))
    return computations, entry


def _num_bytes(array: re.Match) -> int:
    bits = BITS.get(array[1], int(array[2] or 0))
    return math.prod(int(side) for side in array[3].split(",") if side) * bits // 8


def _attribute(name: str, text: str) -> str:
    return re.search(rf"\b{name}=%?([\w.-]+)", text)[1]


def _called(text: str) -> list[str]:
    return [name for group in _CALLED.findall(text) for name in re.findall(r"[\w.-]+", group)]


def _turns(loop: _Instruction, computations) -> int | None:
    """Turns of a loop that counts from 0 up to a constant; None where that cannot be read."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.text):
        return int(known[1])
    condition = {i.name: i for i in computations.get(_attribute("condition", loop.text), ())}
    body = {i.name: i for i in computations.get(_attribute("body", loop.text), ())}
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


def _constant(instruction: _Instruction) -> int:
    return int(re.search(r"constant\((-?\d+)\)", instruction.text)[1])


def _group_size(text: str) -> int | None:
    """Devices that take part in one collective together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.-]+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([\w.-]+)'", mesh[2]))
    return None


def _traffic(kind: str, instruction: _Instruction) -> tuple[int, int]:
    """Bytes of the result on one device, and bytes that the device sends in a ring."""
    shapes = instruction.shapes
    if instruction.operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # The start of these gives what goes in, what comes out, and the permutation's semaphores.
        shapes = shapes[1:2] if kind == "collective-permute" else shapes[len(shapes) // 2 :]
    num_bytes = sum(shapes)
    size = _group_size(instruction.text)
    share = 1.0 if size is None else (size - 1) / size
    if kind == "all-reduce":
        return num_bytes, int(2 * share * num_bytes)
    if kind == "reduce-scatter":
        return num_bytes, num_bytes * ((size or 2) - 1)
    if kind in ("all-gather", "all-to-all"):
        return num_bytes, int(share * num_bytes)
    return num_bytes, num_bytes
