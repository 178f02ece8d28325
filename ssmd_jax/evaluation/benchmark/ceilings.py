"""What this device can do at most, measured: a matrix product, and moving memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmd_jax.evaluation.benchmark import timing
from ssmd_jax.evaluation.benchmark.program import compile_ahead
from ssmd_jax.training.flops import peak_flops

GIGA = 1 << 30


class Ceilings(NamedTuple):
    """Rates of one device.

    Attributes:
        matmul_flops: FLOP/s of a square product on random data.
        matmul_size: its side.
        matmul_dtype: of operands and result.
        copy_bytes: bytes/s, read and written.
        copy_size: bytes of the array that is copied.
        published_flops: dense bfloat16 peak, FLOP/s; None where it is not known.
    """

    matmul_flops: float
    matmul_size: int
    matmul_dtype: str
    copy_bytes: float
    copy_size: int
    published_flops: float | None


def measure_ceilings(device: jax.Device, dtype: str, *, runs: int, max_seconds: float) -> Ceilings:
    """Measures them: an 8192-cube bfloat16 product and a gigabyte on an accelerator.

    A CPU gets a 768-cube product in the network's own dtype (it has no fast bfloat16) and 64 MiB.
    """
    on_cpu = device.platform == "cpu"
    size, dtype, num_bytes = (768, dtype, GIGA // 16) if on_cpu else (8192, "bfloat16", GIGA)
    keys = jax.random.split(jax.random.key(0), 3)
    left, right = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys[:2])
    product = compile_ahead(jnp.matmul, left, right)
    matmul = timing.measure(
        lambda: product.compiled(left, right), "the matrix ceiling", runs=runs, max_seconds=max_seconds
    )
    x = jax.random.normal(keys[2], (num_bytes // 4,), jnp.float32)
    # With the sign flipped: a plain copy may be elided.
    copy = compile_ahead(jnp.negative, x)
    moved = timing.measure(lambda: copy.compiled(x), "the copy ceiling", runs=runs, max_seconds=max_seconds)
    return Ceilings(2 * size**3 / matmul.median, size, dtype, 2 * x.nbytes / moved.median, x.nbytes, peak_flops(device))
