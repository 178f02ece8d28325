"""Bounds on the likelihood of held-out text: draft, target and sampler (METHOD.md sections 4 and 6).

Every function returns one value a sequence, in nats, so that standard errors are over sequences. Row `(n, m)`, draw `m`
for sequence `n`, has a key of its own: the results do not depend on the batch size.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.diffusion import loss, masking, orders
from ssmd_jax.diffusion.window import checked_table
from ssmd_jax.evaluation.statistics import Estimate, mean, ratio
from ssmd_jax.sampling import likelihood
from ssmd_jax.sampling.config import Laws, SpeculativeConfig

# Draft logits are reduced in chunks of so many tracks: no array of batch x length x vocabulary exists.
CHUNK = 128
# Fewer rows than asked for are scored at a time where one array of float32 logits would otherwise take more than this.
LOGITS_BYTES = 1 << 30


class Bounds(NamedTuple):
    """Upper bounds on the negative log likelihood of held-out text, in bits per `unit`.

    Attributes:
        unit: "character", or "byte" (of the decoded text).
        draft: of the order-agnostic model that draws every token from the draft alone.
        target: of the sampler that drafts everything in one pass and verifies it all, the term at `i = 0`.
        sampler: of the sampler with the settings in question, `-E_sigma[log L_0]`; infinite where its temperature or
            top-p make some sequence impossible.
        expected_nfe: mean NFE of the runs of that sampler that return the held-out text.
        tokens_per_unit: bits per token are bits per unit divided by this.
    """

    unit: str
    draft: Estimate
    target: Estimate
    sampler: Estimate
    expected_nfe: Estimate
    tokens_per_unit: float


def draft_nats(model, tokens_NxD: np.ndarray, key: jax.Array, *, draws: int, batch_size: int) -> np.ndarray:
    """The masked-diffusion bound of each sequence: `draws` pairs of an order and a number of revealed tokens.

    The numbers are stratified over the draws of a sequence, which lowers the variance.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens_NxD: int, full sequences in sequence order.
        key: a typed key.
        draws: pairs a sequence.
        batch_size: rows a call at most; large vocabularies take fewer.

    Returns:
        float64 `[N]`, nats.
    """
    count, length = tokens_NxD.shape
    order_RxD = _orders(jax.random.fold_in(key, 0), count, draws, length)
    keys_N = _fold(jax.random.fold_in(key, 1), count)
    lengths_M = jnp.full((draws,), length, jnp.int32)
    revealed_NxM = jax.vmap(lambda key: masking.stratified_num_revealed(key, lengths_M))(keys_N)
    rows = (np.repeat(tokens_NxD, draws, axis=0), order_RxD, np.asarray(revealed_NxM).reshape(-1))
    batch_size = rows_at_a_time(batch_size, min(CHUNK, length), model.num_tokens)
    return _by_row(functools.partial(_draft_rows, model), rows, batch_size).reshape(count, draws).mean(axis=1)


def target_nats(
    model, tokens_NxD: np.ndarray, key: jax.Array, *, num_orders: int, batch_size: int, tie_first: bool = False
) -> np.ndarray:
    """The target's bound of each sequence, `E_sigma[-sum_k log q_{0,k}]`, over random orders.

    The orders are those of `sampler_nats` with the same key. Arguments otherwise as `draft_nats`; `tie_first` as in
    `SpeculativeConfig`.

    Returns:
        float64 `[N]`, nats.
    """
    count, length = tokens_NxD.shape
    rows = (np.repeat(tokens_NxD, num_orders, axis=0), _orders(key, count, num_orders, length))
    score = functools.partial(_target_rows, model, tie_first=tie_first)
    batch_size = rows_at_a_time(batch_size, length, model.num_tokens)
    return _by_row(score, rows, batch_size).reshape(count, num_orders).mean(axis=1)


def sampler_nats(
    model, tokens_NxD: np.ndarray, key: jax.Array, config: SpeculativeConfig, *, num_orders: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The sampler's exact bound of each sequence, `-E_sigma[log L_0]`, over random orders; `D` trunk passes a batch.

    Arguments as `target_nats`; `config.budget_nfe` must be None.

    Returns:
        float64 `[N]` nats, and `[N]` the mean expected NFE.

    Raises:
        ValueError: if `config` has a budget.
    """
    count, length = tokens_NxD.shape
    rows = (np.repeat(tokens_NxD, num_orders, axis=0), _orders(key, count, num_orders, length))
    score = lambda tokens_BxD, order_BxD: likelihood.log_likelihood(model, tokens_BxD, order_BxD, config)
    largest_window = int(checked_table(config.window, length).max())
    batch_size = rows_at_a_time(batch_size, largest_window, model.num_tokens)
    log_prob_R, nfe_R = _by_row(score, rows, batch_size)
    by_sequence = lambda values_R: values_R.reshape(count, num_orders).mean(axis=1)
    return -by_sequence(log_prob_R), by_sequence(nfe_R)


def bounds(
    model,
    tokenizer: Tokenizer,
    tokens_NxD: np.ndarray,
    key: jax.Array,
    config: SpeculativeConfig,
    *,
    num_orders: int,
    batch_size: int,
    draws: int = 64,
) -> Bounds:
    """All three bounds of the same sequences.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokenizer: decodes the sequences, to count their bytes.
        tokens_NxD: int, full sequences in sequence order.
        key: a typed key.
        config: the sampler's settings; `order` is ignored and random, `budget_nfe` must be None.
        num_orders: random orders a sequence, for target and sampler.
        batch_size: rows a call.
        draws: pairs of an order and a number of revealed tokens a sequence, for the draft.

    Returns:
        `Bounds`, deterministic given the key.
    """
    draft_key, order_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    draft_N = draft_nats(model, tokens_NxD, draft_key, draws=draws, batch_size=batch_size)
    sizes = {"num_orders": num_orders, "batch_size": batch_size}
    target_N = target_nats(model, tokens_NxD, order_key, tie_first=config.tie_first, **sizes)
    sampler_N, nfe_N = sampler_nats(model, tokens_NxD, order_key, config, **sizes)
    unit, units_N = count_units(tokenizer, tokens_NxD)
    bits = lambda nats_N: ratio(nats_N / math.log(2), units_N)
    tokens_per_unit = tokens_NxD.size / float(units_N.sum())
    return Bounds(unit, bits(draft_N), bits(target_N), bits(sampler_N), mean(nfe_N), tokens_per_unit)


def count_units(tokenizer: Tokenizer, tokens_NxD: np.ndarray) -> tuple[str, np.ndarray]:
    """What bits are counted per, and how many of it each sequence holds, `[N]`.

    Characters for text8; otherwise bytes: tokens of the byte tokenizer, else of the decoded text in UTF-8 (a symbol
    that a sequence's end cuts decodes to U+FFFD and counts as that).
    """
    count, length = tokens_NxD.shape
    if tokenizer.kind in ("text8", "bytes"):
        return {"text8": "character", "bytes": "byte"}[tokenizer.kind], np.full(count, length)
    return "byte", np.array([len(tokenizer.decode(row).encode()) for row in tokens_NxD])


def _fold(key: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count))


def _orders(key: jax.Array, count: int, draws: int, length: int) -> np.ndarray:
    """Uniformly random orders `[count * draws, length]`; draw `m` of sequence `n` is row `n * draws + m`."""
    keys_NxM = jax.vmap(lambda key: _fold(key, draws))(_fold(key, count))
    lengths_R = jnp.full((count * draws,), length, jnp.int32)
    return np.asarray(orders.uniform_order(keys_NxM.reshape(-1), lengths_R, length))


def rows_at_a_time(batch_size: int, tracks: int, num_tokens: int) -> int:
    """At most `batch_size`, so that float32 logits of so many rows and tracks stay within `LOGITS_BYTES`."""
    return max(1, min(batch_size, LOGITS_BYTES // (4 * tracks * num_tokens)))


def _by_row(score, rows: tuple[np.ndarray, ...], batch_size: int) -> np.ndarray:
    """Scores rows batch by batch, and gathers at the end, so that the host never waits in between.

    The last batch repeats its last row, so that one compiled program serves all.

    Returns:
        float64, the rows' scores along the last axis.
    """
    count = len(rows[0])
    batch_size = min(batch_size, count)
    scores = []
    for start in range(0, count, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        scores.append(score(*(row[index] for row in rows)))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(scores))
    return np.asarray(joined, np.float64)[..., :count]


@jax.jit
def _draft_rows(model, tokens_BxD, order_BxD, num_revealed_B):
    """`D * sum_{k >= i} -log p_k / (D - i)` of each row."""
    batch, length = tokens_BxD.shape
    # A NumPy array is known while tracing: the model then needs no key lengths.
    lengths_B = np.full(batch, length, np.int32)
    true_BxD = orders.to_order_space(tokens_BxD, order_BxD)
    context = model.trunk(true_BxD, order_BxD, num_revealed_B, lengths_B)
    size = min(CHUNK, length)

    def chunk(first):
        start_B = num_revealed_B + first
        index_BxS = jnp.minimum(start_B[:, None] + jnp.arange(size)[None], length - 1)
        chosen_BxS = jnp.take_along_axis(true_BxD, index_BxS, axis=1)
        return loss.token_nll(model.draft_logits(context, start_B, size), chosen_BxS)

    chunks_CxBxS = jax.lax.map(chunk, jnp.arange(0, length, size))
    by_offset = jnp.moveaxis(chunks_CxBxS, 0, 1).reshape(batch, -1)
    offset_BxD = jnp.maximum(jnp.arange(length)[None] - num_revealed_B[:, None], 0)
    nll_BxD = jnp.take_along_axis(by_offset, offset_BxD, axis=1)
    one_row = lambda *row: loss.diffusion_loss(*(x[None] for x in row))
    return length * jax.vmap(one_row)(nll_BxD, num_revealed_B, jnp.asarray(lengths_B))


@functools.partial(jax.jit, static_argnames="tie_first")
def _target_rows(model, tokens_BxD, order_BxD, *, tie_first: bool):
    """`-sum_k log q_{0,k}` of each row."""
    batch, length = tokens_BxD.shape
    start_B = jnp.zeros((batch,), jnp.int32)
    true_BxD = orders.to_order_space(tokens_BxD, order_BxD)
    context = model.trunk(true_BxD, order_BxD, start_B, np.full(batch, length, np.int32))
    target_BxDxV = model.target_logits(context, true_BxD, order_BxD, start_B, length)
    laws = Laws(temperature=1.0, top_p=1.0, draft_temperature=1.0, order="random", tie_first=tie_first)
    log_q_BxDxV = laws.target(target_BxDxV, model.draft_logits(context, start_B, length))
    return -jnp.sum(jnp.take_along_axis(log_q_BxDxV, true_BxD[..., None], axis=-1), axis=(1, 2))
