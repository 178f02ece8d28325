"""What devices send each other in a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

from ssmd_jax.evaluation.compile_check import hlo
from ssmd_jax.evaluation.compile_check.hlo import Instruction

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


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


def collectives(program: str) -> tuple[list[Collective], int]:
    """Collectives of a program.

    Args:
        program: the text of the optimised program, `compiled.as_text()`.

    Returns:
        A `Collective` for each kind that occurs, and the number of loops with collectives in them whose turns are not
        known and were counted as one.
    """
    computations, entry = hlo.parse(program)
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
                loop_turns = hlo.turns(instruction, computations)
                inside = visit(hlo.attribute("body", instruction.text), turns * (loop_turns or 1))
                unknown_loops += inside and loop_turns is None
                found |= inside
            else:
                for inner in hlo.called(instruction.text):
                    found |= visit(inner, turns)
        return found

    visit(entry, 1)
    return [Collective(kind, *totals[kind]) for kind in KINDS if kind in totals], unknown_loops


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


def _traffic(kind: str, instruction: Instruction) -> tuple[int, int]:
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
