"""What one trunk pass is to every sampler: the pass itself, and taking drafts as they are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import categorical
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling import keys
from ssmd_jax.sampling.canvas import UNVERIFIED, Canvas
from ssmd_jax.sampling.config import Laws
from ssmd_jax.sampling.ordering import reorder_suffix


def run_trunk(model, canvas: Canvas, row_keys_B, lengths_B, laws: Laws, size: int):
    """One trunk pass over all rows; unfinished ones are charged for it.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        canvas: the rows.
        row_keys_B: keys of the rows.
        lengths_B: lengths of the rows.
        laws: an adaptive order re-orders the masked tracks from this pass's drafts.
        size: tracks per chunk of logits.

    Returns:
        The context; the canvas with the pass counted and its positions in order; the pass's keys of drafts, `[B]`.
    """
    context = model.trunk(canvas.tokens_BxD, canvas.positions_BxD, canvas.num_revealed_B, lengths_B)
    canvas = canvas.replace(passes_B=canvas.passes_B + (canvas.num_revealed_B < lengths_B))
    if laws.adaptive:
        context, positions_BxD = reorder_suffix(model, context, canvas, laws.order, row_keys_B, lengths_B, size)
        canvas = canvas.replace(positions_BxD=positions_BxD)
    return context, canvas, keys.fold(keys.stream(row_keys_B, keys.DRAFT), canvas.passes_B)


def take_drafts(
    model,
    context,
    canvas: Canvas,
    end_B: jax.Array,
    draft_keys_B: jax.Array,
    log_prob: Callable[[jax.Array], jax.Array],
    size: int,
) -> Canvas:
    """Reveals every track before `end` as drawn from the pass's draft, in chunks of the static size.

    Args:
        model: made `context`.
        context: of this pass.
        canvas: the rows; those with `num_revealed >= end` stay as they are.
        end_B: int `[B]`, at most the row's length.
        draft_keys_B: keys of this pass's drafts.
        log_prob: from draft logits to the log-probabilities to draw from.
        size: tracks per chunk.
    """

    def has_rest(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < end_B)

    def one_chunk(canvas: Canvas) -> Canvas:
        start_B = canvas.num_revealed_B
        log_prob_BxSxV = log_prob(model.draft_logits(context, start_B, size))
        tokens_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), log_prob_BxSxV)
        unverified_BxS = jnp.full_like(tokens_BxS, UNVERIFIED)
        none_BxS = jnp.full_like(tokens_BxS, model.num_tokens)
        count_B = jnp.clip(end_B - start_B, 0, size)
        return canvas_lib.reveal(canvas, tokens_BxS, unverified_BxS, none_BxS, count_B)

    return jax.lax.while_loop(has_rest, one_chunk, canvas)
