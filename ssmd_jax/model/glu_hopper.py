"""The gated MLP's first half, `silu(x @ gate) * (x @ up)`, as one kernel for NVIDIA Hopper GPUs (Pallas, Mosaic GPU).

XLA writes both products to memory and reads them again for the elementwise part, which at M 32768, F 2048 costs half as
much time as the products themselves. Here the elementwise part works on the accumulators, and only its result is
written. The kernel is for inference: the backward pass is the reference's, in plain jnp.

Capitals name axes: M rows, C width, F MLP width.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Rows of an output tile: 64 for each of the two warpgroups that compute, whose 64 x 256 float32 sums are 128 registers
# of each thread.
TILE_M = 128
# Columns of an output tile. Its product is twice as wide, gate and up side by side: 256, the widest wgmma.
TILE_F = 128
# Depth of a step of the pipeline: 128 bytes of bfloat16, the widest swizzle of shared memory.
TILE_C = 64
# Steps in flight: 48 KiB each, next to 32 KiB for the output, in the 227 KiB of shared memory.
STAGES = 4
# Registers of a thread that copies and of one that computes; (40 + 2 * 232) * 128 fit into the 65,536.
COPY_REGISTERS, COMPUTE_REGISTERS = 40, 232
# Fewer rows leave most of the GPU idle, and XLA's kernels are as fast or faster (0.08 ms for 0.12 at 1,056 rows).
FEWEST_ROWS = 8192
# In the interpreter, which simulates the GPU on the CPU: multiprocessors, few so that each has several tiles.
INTERPRETED_CORES = 2


def check_widths(width: int, mlp_width: int) -> None:
    """Raises ValueError where the kernel's tiles do not divide `C` and `F`."""
    if width % TILE_C or mlp_width % TILE_F:
        raise ValueError(
            f"the Hopper MLP needs a width divisible by {TILE_C} and an MLP width divisible by {TILE_F}, "
            f"got {width} and {mlp_width}: choose others (model.width, mlp_width, causal_mlp_width), or model.mlp 'xla'"
        )


def gated_linear_unit_reference(x_MxC: jax.Array, up_Cx2xF: jax.Array) -> jax.Array:
    """What the kernel computes, in jnp: products and activation in float32, `[M, F]` in the dtype of `x`."""
    gate_up_Mx2xF = jnp.einsum("MC,CGF->MGF", x_MxC, up_Cx2xF, preferred_element_type=jnp.float32)
    return (silu_by_tanh(gate_up_Mx2xF[:, 0]) * gate_up_Mx2xF[:, 1]).astype(x_MxC.dtype)


def silu_by_tanh(gate: jax.Array) -> jax.Array:
    """`gate * sigmoid(gate)`, the sigmoid by tanh: one instruction of the GPU where exp and division are many."""
    half = 0.5 * gate
    return half + half * jnp.tanh(half)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated_linear_unit(x_MxC: jax.Array, up_Cx2xF: jax.Array, interpret=None) -> jax.Array:
    """`silu(x @ up[:, 0]) * (x @ up[:, 1])` by the kernel; gradients recompute it by the reference.

    Not partitioned by the compiler: on several devices, call it under `jax.shard_map`.

    Args:
        x_MxC: bfloat16; rows are padded to a multiple of 128, a multiple of 256 is fastest.
        up_Cx2xF: bfloat16 weights of gate (0) and up (1); `C` a multiple of 64, `F` of 128.
        interpret: Pallas' parameters of its GPU interpreter, which simulates the kernel on the CPU (slow, for tests).

    Returns:
        bfloat16 `[M, F]`. The sigmoid is the GPU's approximate one, off by at most 2.5e-4.

    Raises:
        ValueError: shapes that the tiles do not divide, or another dtype.
        NotImplementedError: another device than a GPU of compute capability 9.0.
    """
    (rows, width), mlp_width = x_MxC.shape, up_Cx2xF.shape[2]
    if up_Cx2xF.shape != (width, 2, mlp_width):
        raise ValueError(f"weights of shape {up_Cx2xF.shape} do not fit rows of width {width}")
    check_widths(width, mlp_width)
    if not x_MxC.dtype == up_Cx2xF.dtype == jnp.bfloat16:
        raise ValueError(f"the Hopper MLP computes in bfloat16, got {x_MxC.dtype} and {up_Cx2xF.dtype}")
    x_MxC = jnp.pad(x_MxC, ((0, -rows % TILE_M), (0, 0)))
    # A tile's gate and up columns side by side: one wgmma computes both. XLA can fuse this with a cast.
    w_Cx2F = up_Cx2xF.reshape(width, 2, -1, TILE_F).swapaxes(1, 2).reshape(width, -1)
    return _kernel(x_MxC, w_Cx2F, interpret)[:rows]


def _forward(x_MxC, up_Cx2xF, interpret):
    return gated_linear_unit(x_MxC, up_Cx2xF, interpret), (x_MxC, up_Cx2xF)


def _backward(interpret, saved, gradient_MxF):
    return jax.vjp(gated_linear_unit_reference, *saved)[1](gradient_MxF)


gated_linear_unit.defvjp(_forward, _backward)


def is_hopper(device: jax.Device) -> bool:
    """Whether the kernel runs on the device: a GPU of compute capability 9.0."""
    return getattr(device, "compute_capability", None) == "9.0"


def _hopper_cores() -> int:
    """Multiprocessors of the device; NotImplementedError where it is no Hopper GPU."""
    device = jax.local_devices()[0]
    if not is_hopper(device):
        raise NotImplementedError(f"the Hopper MLP needs a GPU of compute capability 9.0, not {device.device_kind}")
    return device.core_count


def _kernel(x_MxC: jax.Array, w_Cx2F: jax.Array, interpret) -> jax.Array:
    """Runs the kernel over rows that fill whole tiles; the weights' columns alternate by tile, gate then up."""
    # Not at the top: pure CPU installations of jax need not have it.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    (rows, width), mlp_width = x_MxC.shape, w_Cx2F.shape[1] // 2
    # Two blocks one below the other share their weights: each copies half and sends it to both.
    cluster = 2 if rows % (2 * TILE_M) == 0 else 1
    steps = width // TILE_C
    stages = min(STAGES, steps)
    tiles_m, tiles_f = rows // (cluster * TILE_M), mlp_width // TILE_F

    def body(x_gmem, w_gmem, out_gmem, x_smem, w_smem, out_smem, filled, emptied):
        warpgroup, member = lax.axis_index("warpgroup"), lax.axis_index("cluster")

        def for_each_tile(visit):
            """`visit(first row, tile of F, steps before it, whether it is the last)` for each tile of this block."""

            # Tiles of the same rows follow each other, so that `x` is read from memory once and the weights from L2.
            @plgpu.nd_loop((tiles_m, tiles_f), collective_axes="block")
            def _(info):
                tile_m, tile_f = info.index
                first_row = (tile_m * cluster + member) * TILE_M
                is_last = info.local_index == info.num_local_steps - 1
                visit(first_row, tile_f, info.local_index * steps, is_last)

        def copy():
            plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

            def visit(first_row, tile_f, before, is_last):
                def step(c, _):
                    stage = lax.rem(before + c, stages)

                    @pl.when(before + c >= stages)
                    def _():
                        plgpu.barrier_wait(emptied.at[stage])

                    depth = pl.ds(c * TILE_C, TILE_C)
                    columns = pl.ds(tile_f * (2 * TILE_F), 2 * TILE_F)
                    plgpu.copy_gmem_to_smem(
                        x_gmem.at[pl.ds(first_row, TILE_M), depth], x_smem.at[stage], filled.at[stage]
                    )
                    plgpu.copy_gmem_to_smem(
                        w_gmem.at[depth, columns],
                        w_smem.at[stage],
                        filled.at[stage],
                        collective_axes="cluster" if cluster > 1 else None,
                    )

                lax.fori_loop(0, steps, step, None)

                # A block that ends while its partner still sends to it or waits for it would take its memory along.
                @pl.when(is_last)
                def _():
                    drain = lambda s, _: plgpu.barrier_wait(emptied.at[lax.rem(before + steps + s, stages)])
                    lax.fori_loop(0, stages, drain, None)

            for_each_tile(visit)

        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            half_m = TILE_M // 2
            my_rows = pl.ds(warpgroup * half_m, half_m)

            def visit(first_row, tile_f, before, is_last):
                def accumulate(sums):
                    def step(c, _):
                        stage = lax.rem(before + c, stages)
                        plgpu.barrier_wait(filled.at[stage])
                        plgpu.wgmma(sums, x_smem.at[stage].at[my_rows], w_smem.at[stage])
                        plgpu.wgmma_wait(0)
                        plgpu.barrier_arrive(emptied.at[stage])

                    lax.fori_loop(0, steps, step, None)
                    return sums[...]

                sums = pl.run_scoped(accumulate, plgpu.ACC((half_m, 2 * TILE_F), jnp.float32))
                hidden = silu_by_tanh(sums[:, :TILE_F]) * sums[:, TILE_F:]
                # The tile before has left shared memory: this one may take its place.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out_smem[warpgroup] = hidden.astype(out_gmem.dtype)
                plgpu.commit_smem()
                out_rows = pl.ds(first_row + warpgroup * half_m, half_m)
                out_columns = pl.ds(tile_f * TILE_F, TILE_F)
                plgpu.copy_smem_to_gmem(out_smem.at[warpgroup], out_gmem.at[out_rows, out_columns])

            for_each_tile(visit)
            plgpu.wait_smem_to_gmem(0)

        lax.cond(warpgroup < 2, compute, copy)

    transforms = (plgpu.TilingTransform((8, TILE_C)), plgpu.SwizzleTransform(128))
    in_smem = lambda *shape: plgpu.SMEM(shape, x_MxC.dtype, transforms=transforms)
    if cluster > 1:
        emptied = plgpu.ClusterBarrier(collective_axes=("cluster",), num_arrivals=2, num_barriers=stages)
    else:
        emptied = plgpu.Barrier(num_arrivals=2, num_barriers=stages)
    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((rows, mlp_width), x_MxC.dtype),
        scratch_types=[
            in_smem(stages, TILE_M, TILE_C),
            in_smem(stages, TILE_C, 2 * TILE_F),
            in_smem(2, TILE_M // 2, TILE_F),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            emptied,
        ],
        grid=((INTERPRETED_CORES if interpret else _hopper_cores()) // cluster,),
        grid_names=("block",),
        cluster=(cluster,),
        cluster_names=("cluster",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(x_MxC, w_Cx2F)
