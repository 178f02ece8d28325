"""What every sampler starts from and writes to: rows in order space, their counters and their history."""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion import orders
from ssmd_jax.sampling import keys

# Values of `status`.
GIVEN, ACCEPTED, REPLACED, UNVERIFIED = range(4)


@flax.struct.dataclass
class SampleResult:
    """Samples and what they cost.

    `ssmd_jax.sampling.policy` says what the history means where a sampler masks tokens again.

    Attributes:
        tokens: int32 `[batch, length]`, in sequence order; the mask id at positions past a row's length.
        order: int32 `[batch, length]`, positions in the order revealed, given ones first, left-over positions last.
        nfe: float32 `[batch]`, function evaluations: trunk passes and verify rounds by their costs.
        trunk_passes: int32 `[batch]`.
        verify_rounds: int32 `[batch]`.
        accepted: int32 `[batch]`, drafts accepted.
        rejected: int32 `[batch]`, drafts rejected; each reveals its replacement.
        unverified: int32 `[batch]`, drafts taken without verification. The three sum to the tokens generated.
        status: int32 `[batch, length]` by track (`order` gives its position): 0 given or padding, 1 accepted,
            2 replaced, 3 unverified.
        revealed_in: int32 `[batch, length]` by track: the trunk pass that revealed it, from 1; 0 given or padding.
        rejected_token: int32 `[batch, length]` by track: the draft that was rejected there, the mask id where none.
        settled_in: int32 `[batch, length]` by track: the verify round within its pass that settled it, from 1; 0 given,
            padding, unverified, and throughout in samplers without rounds on a window.
        rows_computed: int32, one entry for each loop that ran: its trunk passes times the rows of each, finished ones
            included. `trunk_passes.sum() / rows_computed.sum()` is the share that was needed.
    """

    tokens: jax.Array
    order: jax.Array
    nfe: jax.Array
    trunk_passes: jax.Array
    verify_rounds: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    unverified: jax.Array
    status: jax.Array
    revealed_in: jax.Array
    rejected_token: jax.Array
    settled_in: jax.Array
    rows_computed: jax.Array


@flax.struct.dataclass
class Canvas:
    """State of a sampling loop, in order space. `B` rows, `D` tracks.

    Attributes:
        tokens_BxD: revealed tokens, the mask id from track `num_revealed` on.
        positions_BxD: position of each track.
        num_revealed_B: length of the revealed prefix.
        passes_B: trunk passes so far.
        rounds_B: verify rounds so far.
        status_BxD, revealed_in_BxD, rejected_BxD, settled_in_BxD: history by track, see `SampleResult`.
    """

    tokens_BxD: jax.Array
    positions_BxD: jax.Array
    num_revealed_B: jax.Array
    passes_B: jax.Array
    rounds_B: jax.Array
    status_BxD: jax.Array
    revealed_in_BxD: jax.Array
    rejected_BxD: jax.Array
    settled_in_BxD: jax.Array


def check_count(name: str, value) -> None:
    """Raises `ValueError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_rows(model, batch_size, length, prompt, prompt_mask, lengths, name="batch_size"):
    """Validates what a user passes to a sampler; `name` is what the user knows `batch_size` by.

    Returns:
        NumPy `prompt_BxD` (int32, the mask id where not given), `given_BxD` (bool), `lengths_B` (int32).

    Raises:
        ValueError: one sentence that names the argument.
    """
    check_count(name, batch_size)
    check_count("length", length)
    shape = (batch_size, length)
    lengths_B = np.full(batch_size, length, np.int32) if lengths is None else np.asarray(lengths)
    if lengths_B.shape != (batch_size,) or not np.issubdtype(lengths_B.dtype, np.integer):
        raise ValueError(f"lengths must be {batch_size} integers, one a row, got {lengths_B.dtype} {lengths_B.shape}")
    if lengths_B.min() < 1 or lengths_B.max() > length:
        raise ValueError(f"lengths must lie between 1 and length = {length}, got {lengths_B.min()}..{lengths_B.max()}")
    if prompt is None:
        if prompt_mask is not None:
            raise ValueError("prompt_mask is given without a prompt")
        return np.full(shape, model.num_tokens, np.int32), np.zeros(shape, bool), lengths_B.astype(np.int32)
    prompt_BxD = np.asarray(prompt)
    if prompt_BxD.ndim == 2 and prompt_BxD.shape[1] > length:
        raise ValueError(
            f"prompt has {prompt_BxD.shape[1]} tokens, more than length = {length}; raise length or cut it"
        )
    if prompt_BxD.shape != shape or not np.issubdtype(prompt_BxD.dtype, np.integer):
        raise ValueError(f"prompt must be integers of shape {shape}, got {prompt_BxD.dtype} {prompt_BxD.shape}")
    if prompt_mask is None:
        raise ValueError("prompt needs prompt_mask, True where a token is given")
    given_BxD = np.asarray(prompt_mask)
    if given_BxD.shape != shape or given_BxD.dtype != bool:
        raise ValueError(f"prompt_mask must be booleans of shape {shape}, got {given_BxD.dtype} {given_BxD.shape}")
    if (given_BxD & (np.arange(length)[None] >= lengths_B[:, None])).any():
        raise ValueError("prompt gives a token past its row's length; raise lengths or cut the prompt")
    bad = given_BxD & ((prompt_BxD < 0) | (prompt_BxD >= model.num_tokens))
    if bad.any():
        row, position = (int(x[0]) for x in np.nonzero(bad))
        raise ValueError(
            f"prompt token {prompt_BxD[row, position]} at row {row}, position {position} is outside the vocabulary "
            f"0..{model.num_tokens - 1}"
        )
    return np.where(given_BxD, prompt_BxD, model.num_tokens).astype(np.int32), given_BxD, lengths_B.astype(np.int32)


def unless_full(lengths_B: np.ndarray, length: int) -> np.ndarray | None:
    """What a compiled loop is given as lengths: None where all rows are full; see `known_lengths`."""
    return None if (lengths_B == length).all() else lengths_B


def known_lengths(lengths_B: jax.Array | None, batch_size: int, length: int) -> jax.Array | np.ndarray:
    """Inside a compiled loop: the lengths, as a NumPy array where all rows are full.

    A NumPy array is known while tracing: the model then needs no key lengths.
    """
    return np.full(batch_size, length, np.int32) if lengths_B is None else lengths_B


def start(row_keys_B, prompt_BxD, given_BxD, lengths_B, mask_id: int, order) -> Canvas:
    """Rows before the first pass: the given tokens are the revealed prefix. `order` as in `SpeculativeConfig`."""
    length = prompt_BxD.shape[1]
    draws = {"random": orders.uniform_order, "dilated": orders.dilated_order, "spread": orders.spread_order}
    if order in draws:
        order_BxD = draws[order](keys.stream(row_keys_B, keys.ORDER), lengths_B, length, given_BxD)
    else:
        order_BxD = orders.ascending_order(lengths_B, length, given_BxD)
    zeros_B = jnp.zeros(lengths_B.shape, jnp.int32)
    zeros_BxD = jnp.zeros(prompt_BxD.shape, jnp.int32)
    return Canvas(
        tokens_BxD=orders.to_order_space(prompt_BxD, order_BxD),
        positions_BxD=order_BxD,
        num_revealed_B=jnp.sum(given_BxD, axis=1).astype(jnp.int32),
        passes_B=zeros_B,
        rounds_B=zeros_B,
        status_BxD=zeros_BxD,
        revealed_in_BxD=zeros_BxD,
        rejected_BxD=jnp.full_like(zeros_BxD, mask_id),
        settled_in_BxD=zeros_BxD,
    )


def write(x_BxD: jax.Array, values_BxS: jax.Array, start_B: jax.Array, count_B: jax.Array) -> jax.Array:
    """`x` with `values[b, s]` on tracks `start[b] + s`, `s < count[b]`."""
    offset_BxD = jnp.arange(x_BxD.shape[1])[None] - start_B[:, None]
    inside_BxD = (offset_BxD >= 0) & (offset_BxD < count_B[:, None])
    index_BxD = jnp.clip(offset_BxD, 0, values_BxS.shape[1] - 1)
    return jnp.where(inside_BxD, jnp.take_along_axis(values_BxS, index_BxD, axis=1), x_BxD)


def reveal(canvas: Canvas, tokens_BxS, status_BxS, rejected_BxS, settled_in_BxS, count_B) -> Canvas:
    """Reveals `count` tracks from `num_revealed` on, with their history; `settled_in` may be 0 for all."""
    at = lambda x_BxD, values_BxS: write(x_BxD, values_BxS, canvas.num_revealed_B, count_B)
    passes_BxS = jnp.broadcast_to(canvas.passes_B[:, None], tokens_BxS.shape)
    settled_in_BxS = jnp.broadcast_to(jnp.asarray(settled_in_BxS, jnp.int32), tokens_BxS.shape)
    return canvas.replace(
        tokens_BxD=at(canvas.tokens_BxD, tokens_BxS),
        status_BxD=at(canvas.status_BxD, status_BxS),
        revealed_in_BxD=at(canvas.revealed_in_BxD, passes_BxS),
        rejected_BxD=at(canvas.rejected_BxD, rejected_BxS),
        settled_in_BxD=at(canvas.settled_in_BxD, settled_in_BxS),
        num_revealed_B=canvas.num_revealed_B + count_B,
    )


def finish(canvas: Canvas, trunk_cost: float, verify_cost: float, rows_computed: jax.Array) -> SampleResult:
    """Back to sequence order, with the totals; `rows_computed` is a scalar, that of one loop."""
    count = lambda status: jnp.sum(canvas.status_BxD == status, axis=1).astype(jnp.int32)
    return SampleResult(
        tokens=orders.to_sequence_order(canvas.tokens_BxD, canvas.positions_BxD),
        order=canvas.positions_BxD,
        nfe=canvas.passes_B * trunk_cost + canvas.rounds_B * verify_cost,
        trunk_passes=canvas.passes_B,
        verify_rounds=canvas.rounds_B,
        accepted=count(ACCEPTED),
        rejected=count(REPLACED),
        unverified=count(UNVERIFIED),
        status=canvas.status_BxD,
        revealed_in=canvas.revealed_in_BxD,
        rejected_token=canvas.rejected_BxD,
        settled_in=canvas.settled_in_BxD,
        rows_computed=rows_computed[None],
    )
