"""Programs compiled ahead of time, and what the compiler says of them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        compiled: call it with the arguments it was compiled for.
        compile_seconds: tracing, lowering and compiling.
        compiler_flops: floating-point operations by the compiler's count before it optimises; None where the backend
            does not count. A loop's body is counted once, and a fused kernel of a library not at all.
        temp_bytes: scratch memory; None where the backend does not say.
        program_bytes: arguments, outputs and scratch, what is donated once; None where the backend does not say.
    """

    compiled: Any
    compile_seconds: float
    compiler_flops: float | None
    temp_bytes: int | None
    program_bytes: int | None


def compile_ahead(
    function: Callable, *args, donate: tuple[int, ...] = (), options: dict[str, Any] | None = None
) -> Program:
    """Lowers and compiles a function.

    Args:
        function: of arrays.
        *args: arrays, or their shapes.
        donate: numbers of the arguments that the program may overwrite.
        options: of the compiler.

    Returns:
        A `Program`.
    """
    began = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - began
    counted, memory = _count(lowered), compiled.memory_analysis()
    if memory is None:
        return Program(compiled, seconds, counted, None, None)
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    scratch = int(memory.temp_size_in_bytes)
    return Program(compiled, seconds, counted, scratch, int(total - memory.alias_size_in_bytes))


def count_flops(function: Callable, *args) -> float | None:
    """As `Program.compiler_flops`, without compiling: pass a function without loops and fused kernels.

    Counted as a program for the CPU, since jax counts nothing for GPUs before they have compiled, and what they have
    compiled hides its products in library calls.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    with jax.default_device(cpu):
        return _count(jax.jit(function).lower(*shapes))


def _count(lowered) -> float | None:
    try:
        analysis = lowered.cost_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    return None if not analysis or "flops" not in analysis else float(analysis["flops"])


def peak_bytes(device: jax.Device) -> int | None:
    """Most memory that this process has held on the device so far; None where the device does not say."""
    stats = device.memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use")
