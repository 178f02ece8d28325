"""Adaptive orders: the masked suffix re-ordered at every trunk pass (METHOD.md section 5).

The order comes from the draft's distributions, never from drawn tokens: sorting by the confidence of a drawn token
would change the law of the sampler.
"""

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.orders import sort_order
from ssmd_jax.diffusion.speculation import shape_log_prob
from ssmd_jax.sampling import keys
from ssmd_jax.sampling.canvas import write

# Scores are compared in steps of one over this. Where nothing is revealed all tracks look alike to a network, and
# rounding errors, which depend on the batch, would choose among them.
STEPS = 2**12


def draft_scores(model, context, num_revealed_B, lengths_B, length: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Largest probability and entropy (nats) of the draft at every masked track, `[B, D]` each; 0 elsewhere.

    The distributions are the network's own, at temperature 1. Logits are reduced in chunks of the static `size`, so
    that no array of batch x length x vocabulary exists.
    """
    zeros_BxD = jnp.zeros((num_revealed_B.shape[0], length))

    def more(carry):
        start_B, *_ = carry
        return jnp.any(start_B < lengths_B)

    def chunk(carry):
        start_B, confidence_BxD, entropy_BxD = carry
        log_prob_BxSxV = shape_log_prob(model.draft_logits(context, start_B, size))
        prob_BxSxV = jnp.exp(log_prob_BxSxV)
        entropy_BxS = -jnp.sum(jnp.where(prob_BxSxV > 0, prob_BxSxV * log_prob_BxSxV, 0.0), axis=-1)
        count_B = jnp.clip(lengths_B - start_B, 0, size)
        return (
            jnp.minimum(start_B + size, length),
            write(confidence_BxD, jnp.max(prob_BxSxV, axis=-1), start_B, count_B),
            write(entropy_BxD, entropy_BxS, start_B, count_B),
        )

    _, confidence_BxD, entropy_BxD = jax.lax.while_loop(more, chunk, (num_revealed_B, zeros_BxD, zeros_BxD))
    return confidence_BxD, entropy_BxD


def reorder_suffix(model, context, canvas, order, row_keys_B, lengths_B, size: int):
    """Sorts the masked tracks of every row by priority, highest first; ties keep their present order.

    Confidences and entropies are compared in steps of 1 / `STEPS`.

    Args:
        model: the model that made `context`.
        context: of this trunk pass.
        canvas: the rows; their tokens from `num_revealed` on are masks.
        order: "confidence", "entropy" or a callable, see `SpeculativeConfig`.
        row_keys_B: keys of the rows.
        lengths_B: lengths of the rows.
        size: tracks per chunk of logits.

    Returns:
        The context and the positions in the new order.
    """
    length = canvas.positions_BxD.shape[1]
    num_revealed_B = canvas.num_revealed_B
    confidence_BxD, entropy_BxD = draft_scores(model, context, num_revealed_B, lengths_B, length, size)
    if order == "confidence":
        priority_BxD = jnp.round(STEPS * confidence_BxD)
    elif order == "entropy":
        priority_BxD = -jnp.round(STEPS * entropy_BxD)
    else:
        # One row at a time: a row's order must not depend on its batch mates.
        one_row = lambda key, *row: order(key, *(x[None] for x in row))[0]
        key_B = keys.fold(keys.stream(row_keys_B, keys.SUFFIX_ORDER), canvas.passes_B)
        rows = (confidence_BxD, entropy_BxD, canvas.positions_BxD, num_revealed_B)
        priority_BxD = jax.vmap(one_row)(key_B, *rows).astype(jnp.float32)
    revealed_BxD = jnp.arange(length)[None] < num_revealed_B[:, None]
    # Revealed tracks all have one priority: the sort is stable and leaves them in place.
    ascending_BxD = jnp.where(revealed_BxD, 0.0, -priority_BxD)
    permutation_BxD = sort_order(ascending_BxD, lengths_B, revealed_BxD)
    positions_BxD = jnp.take_along_axis(canvas.positions_BxD, permutation_BxD, axis=1)
    return model.reorder(context, permutation_BxD), positions_BxD
