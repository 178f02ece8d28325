"""Cross entropy of the head on the tracks that count: all logits at once, or in chunks without keeping any.

With 50,000 tokens the logits of a batch are gigabytes, written and read several times, and half of the tracks (the
revealed ones) do not count in the loss. The chunked form gathers those that do, and takes loss and gradient of a chunk
while its logits are at hand.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.loss import token_nll
from ssmd_jax.model.config import PADDED_FROM
from ssmd_jax.model.partitioning import constrain
from ssmd_jax.training.sharding import axes_of

# Vocabularies from this size on are taken in chunks; from the same size on the head's columns are padded.
CHUNKED_FROM = PADDED_FROM
# Tracks of a chunk at most, about: products large enough to fill the device, logits small beside the activations.
CHUNK_TRACKS = 4096
# Chunks that half of a device's tracks are taken in, at least. What counts varies around the half, the more the fewer
# rows a device has, and the last chunk may be nearly empty.
FEWEST_CHUNKS = 4


def weighted_nll(
    x_BxDxC: jax.Array,
    kernel_CxV: jax.Array,
    tokens_BxD: jax.Array,
    weights_BxD: jax.Array,
    counted_BxD: jax.Array,
    num_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted negative log likelihood under `softmax(x @ kernel)`; the form is chosen by the vocabulary's size.

    Args:
        x_BxDxC: vectors in the dtype of computation, normed.
        kernel_CxV: the head, float32; its columns behind `num_tokens` are padding.
        tokens_BxD: the true tokens, below `num_tokens`.
        weights_BxD: float32 weight of each track.
        counted_BxD: bool; what is not counted adds nothing, and may not be looked at.
        num_tokens: number of real tokens.

    Returns:
        `sum(weights * nll)` over the counted tracks, the only output with a gradient (to `x` and `kernel`), and
        `nll_BxD`, float32 nats, 0 where not counted.
    """
    form = chunked_nll if num_tokens >= CHUNKED_FROM else direct_nll
    return form(x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens)


def direct_nll(
    x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """`weighted_nll` from the logits of all tracks."""
    logits_BxDxV = jnp.einsum(
        "BDC,CV->BDV", x_BxDxC, kernel_CxV.astype(x_BxDxC.dtype), preferred_element_type=jnp.float32
    )
    logits_BxDxV = constrain(logits_BxDxV, ("batch", None, "vocab"))[..., :num_tokens]
    nll_BxD = token_nll(logits_BxDxV, tokens_BxD)
    nll_BxD = jnp.where(counted_BxD, nll_BxD, 0.0)
    return jnp.sum(weights_BxD * nll_BxD), jax.lax.stop_gradient(nll_BxD)


def chunked_nll(
    x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens: int, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """`weighted_nll` in chunks of counted tracks; every device takes its own rows, and as many chunks as those need.

    Args:
        x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens: as `weighted_nll`.
        chunk: tracks of a chunk; None for a size of about `CHUNK_TRACKS` of which a whole number holds half of a
            device's tracks.

    Raises:
        ValueError: where the devices that share the batch do not divide its rows.
    """
    axes = _axes_in_use("batch")
    ways = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
    if x_BxDxC.shape[0] % ways:
        raise ValueError(
            f"{x_BxDxC.shape[0]} rows cannot be shared out over {ways} devices; choose a multiple of {ways}"
        )
    if chunk is None:
        chunk = chunk_size(x_BxDxC.shape[0] * x_BxDxC.shape[1] // ways)
    return _chunked(x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens, chunk, axes)


def chunk_size(tracks: int) -> int:
    """Tracks of a chunk: a few chunks hold what counts of `tracks`, one half and a little more."""
    half = 1.03 * tracks / 2
    chunks = max(FEWEST_CHUNKS, round(half / CHUNK_TRACKS))
    return min(-(-math.ceil(half / chunks) // 128) * 128, tracks)


def _axes_in_use(logical_axis: str) -> tuple[str, ...]:
    """Mesh axes over which a logical axis is sharded; none outside the trainer."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    return tuple(axis for axis in axes_of(rules.get(logical_axis)) if not mesh.empty and mesh.shape[axis] > 1)


def _over_rows(axes: tuple[str, ...], gradient: bool, **settings):
    """`_run_chunks` on each device's rows; what it sums is summed over the devices."""
    run = functools.partial(_run_chunks, gradient=gradient, **settings)
    if not axes:
        return run
    # The kernel is whole in the loop, since every chunk needs all of it; its gradient is as the parameter lies, in
    # parts over the axes of its rows.
    parted = tuple(axis for axis in _axes_in_use("embed") if axis in axes)
    whole = tuple(axis for axis in axes if axis not in parted)

    def local(*args):
        total, nll_BxD, *gradients = run(*args)
        if gradients:
            dx_BxDxC, dkernel_CxV = gradients
            dkernel_CxV = jax.lax.psum(dkernel_CxV, whole) if whole else dkernel_CxV
            if parted:
                dkernel_CxV = jax.lax.psum_scatter(dkernel_CxV, parted, scatter_dimension=0, tiled=True)
            gradients = [dx_BxDxC, dkernel_CxV]
        return jax.lax.psum(total, axes), nll_BxD, *gradients

    rows = jax.P(axes)
    # Only the batch's axes are taken by hand: the vocabulary may be sharded over the others.
    return jax.shard_map(
        local,
        in_specs=(rows, jax.P(), rows, rows, rows),
        out_specs=(jax.P(), rows, rows, jax.P(parted or None))[: 4 if gradient else 2],
        axis_names=frozenset(axes),
        check_vma=False,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _chunked(x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens: int, chunk: int, axes):
    run = _over_rows(axes, gradient=False, num_tokens=num_tokens, chunk=chunk)
    return run(x_BxDxC, kernel_CxV.astype(x_BxDxC.dtype), tokens_BxD, weights_BxD, counted_BxD)


def _chunked_forward(x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, num_tokens, chunk, axes):
    # The loss is a weighted sum with weights that are known: its gradient is taken here, but for the factor that
    # comes from behind, so that no logits are computed twice.
    run = _over_rows(axes, gradient=True, num_tokens=num_tokens, chunk=chunk)
    total, nll_BxD, *gradients = run(x_BxDxC, kernel_CxV.astype(x_BxDxC.dtype), tokens_BxD, weights_BxD, counted_BxD)
    return (total, nll_BxD), gradients


def _chunked_backward(num_tokens, chunk, axes, gradients, cotangents):
    dx_BxDxC, dkernel_CxV = gradients
    factor = cotangents[0]
    return (factor * dx_BxDxC).astype(dx_BxDxC.dtype), factor * dkernel_CxV, None, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _run_chunks(
    x_BxDxC, kernel_CxV, tokens_BxD, weights_BxD, counted_BxD, *, num_tokens: int, chunk: int, gradient: bool
):
    """Total and `nll`, and where asked for the gradients of the total to `x` and the kernel, the latter float32.

    The kernel is in the dtype of `x`. `N` are the tracks of all rows, `T` those of a chunk.
    """
    shape, dtype = x_BxDxC.shape, x_BxDxC.dtype
    num_tracks, width = shape[0] * shape[1], shape[2]
    x_NxC = x_BxDxC.reshape(num_tracks, width)
    tokens_N, weights_N, counted_N = (x.reshape(num_tracks) for x in (tokens_BxD, weights_BxD, counted_BxD))
    # The counted tracks first; what pads the last chunk points behind the end and is dropped.
    tracks_N = jnp.where(counted_N, jnp.arange(num_tracks), num_tracks)
    tracks = jnp.pad(jnp.sort(tracks_N), (0, -num_tracks % chunk), constant_values=num_tracks)
    num_chunks = -(-jnp.sum(counted_N, dtype=jnp.int32) // chunk)

    def one_chunk(n, carry):
        nll_N, *gradients = carry
        tracks_T = jax.lax.dynamic_slice(tracks, (n * chunk,), (chunk,))
        take = lambda x: x.at[tracks_T].get(mode="clip")
        x_TxC, tokens_T = take(x_NxC), take(tokens_N)
        logits_TxV = jnp.matmul(x_TxC, kernel_CxV, preferred_element_type=jnp.float32)
        token_TxV = jax.lax.broadcasted_iota(jnp.int32, logits_TxV.shape, 1)
        # Nothing of the padding: neither probability nor, since that is 0, gradient.
        logits_TxV = jnp.where(token_TxV < num_tokens, logits_TxV, -jnp.inf)
        normalizer_T = jax.nn.logsumexp(logits_TxV, axis=-1)
        chosen_T = jnp.take_along_axis(logits_TxV, tokens_T[:, None], axis=-1)[:, 0]
        nll_N = nll_N.at[tracks_T].set(normalizer_T - chosen_T, mode="drop")
        if not gradient:
            return (nll_N,)
        dx_NxC, dkernel_CxV = gradients
        weights_T = jnp.where(tracks_T < num_tracks, take(weights_N), 0.0)
        probability_TxV = jnp.exp(logits_TxV - normalizer_T[:, None])
        dlogits_TxV = ((probability_TxV - (token_TxV == tokens_T[:, None])) * weights_T[:, None]).astype(dtype)
        dx_TxC = jnp.matmul(dlogits_TxV, kernel_CxV.T, preferred_element_type=jnp.float32).astype(dtype)
        dkernel_CxV += jnp.matmul(x_TxC.T, dlogits_TxV, preferred_element_type=jnp.float32)
        return nll_N, dx_NxC.at[tracks_T].set(dx_TxC, mode="drop"), dkernel_CxV

    carry = (jnp.zeros(num_tracks, jnp.float32),)
    if gradient:
        carry += (jnp.zeros_like(x_NxC), jnp.zeros(kernel_CxV.shape, jnp.float32))
    nll_N, *gradients = jax.lax.fori_loop(0, num_chunks, one_chunk, carry)
    nll_BxD = nll_N.reshape(shape[:2])
    total = jnp.sum(weights_BxD * nll_BxD)
    return total, nll_BxD, *(g.reshape(shape) if n == 0 else g for n, g in enumerate(gradients))
