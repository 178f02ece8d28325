"""How often a program's loops move their bytes, which the compiler counts as if they turned once."""

from ssmd_jax.evaluation.compile_check import hlo
from ssmd_jax.evaluation.compile_check.hlo import Instruction

# These move nothing, or what others have counted.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
# Another view of the same bytes.
VIEWS = ("bitcast", "reshape", "copy", "transpose")


def loop_factor(program: str) -> float:
    """Bytes moved with every loop's turns, over bytes moved with every loop's body once; at least 1.

    Both are rough, operands and results of every instruction outside fusions; their ratio is less so. Of a stacked
    buffer a turn moves its slice alone. A loop whose turns are not known turns once.

    Args:
        program: the text of the optimised program, `compiled.as_text()`.
    """
    computations, entry = hlo.parse(program)

    def moved(name: str, with_turns: bool) -> int:
        instructions = {i.name: i for i in computations.get(name, ())}
        total = 0
        for instruction in instructions.values():
            if instruction.operation == "while":
                turns = hlo.turns(instruction, computations) if with_turns else 1
                total += (turns or 1) * moved(hlo.attribute("body", instruction.text), with_turns)
            elif instruction.operation in ("call", "conditional"):
                total += sum(moved(inner, with_turns) for inner in hlo.called(instruction.text))
            elif instruction.operation not in FREE and not instruction.operation.endswith("-done"):
                total += _moved(instruction, instructions, computations)
        return total

    return max(1.0, moved(entry, True) / max(1, moved(entry, False)))


def _moved(instruction: Instruction, instructions: dict[str, Instruction], computations) -> int:
    """Bytes that one instruction reads and writes."""
    if instruction.operation == "dynamic-slice":
        return 2 * instruction.num_bytes
    if instruction.operation == "dynamic-update-slice":
        return 2 * _size(instruction.operands[1], instructions)
    fused = [] if instruction.operation != "fusion" else hlo.called(instruction.text)
    if not fused:
        return instruction.num_bytes + sum(_size(name, instructions) for name in instruction.operands)
    inside = {i.name: i for i in computations.get(fused[0], ())}
    read = sum(_read(i, inside) for i in inside.values() if i.operation == "parameter")
    return read + sum(_written(i, inside) for i in inside.values() if i.is_root)


def _size(name: str, instructions: dict[str, Instruction]) -> int:
    return instructions[name].num_bytes if name in instructions else 0


def _read(source: Instruction, inside: dict[str, Instruction]) -> int:
    """Bytes that a fusion reads of one of its parameters."""
    total = 0
    for user in inside.values():
        if source.name not in user.operands:
            continue
        if user.operation in VIEWS:
            total += _read(user, inside)
        elif user.operation == "dynamic-slice":
            total += user.num_bytes
        elif user.operation != "dynamic-update-slice" or user.operands[0] != source.name:
            total += source.num_bytes
    return min(total, source.num_bytes)


def _written(result: Instruction, inside: dict[str, Instruction]) -> int:
    """Bytes that a fusion writes of its result."""
    if result.operation == "tuple":
        return sum(_written(inside[name], inside) for name in result.operands if name in inside)
    if result.operation in VIEWS and result.operands and result.operands[0] in inside:
        return _written(inside[result.operands[0]], inside)
    if result.operation == "dynamic-update-slice":
        return _size(result.operands[1], inside)
    return result.num_bytes
