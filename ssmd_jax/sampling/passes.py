"""What every sampler shares: the loop over passes, the trunk pass itself, and taking drafts as they are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import categorical
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling import keys
from ssmd_jax.sampling.canvas import UNVERIFIED, Canvas, SampleResult
from ssmd_jax.sampling.config import Laws
from ssmd_jax.sampling.interface import prepared
from ssmd_jax.sampling.ordering import reorder_suffix
from ssmd_jax.sampling.request import Rows, Rules
from ssmd_jax.sampling.sizes import at_size


def run(one_pass: Callable, model, rules: Rules, rows: Rows, round_cost: float | None = None) -> SampleResult:
    """Passes over all rows until the last is finished.

    Args:
        one_pass: `(model, rules, rows, canvas) -> canvas`, leaves finished rows as they are.
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        rules: of all rows.
        rows: what each row is given.
        round_cost: NFE of what `verify_rounds` counts; None for the model's `verify_cost`.
    """
    model, lengths_B = prepared(model), rows.known_lengths()

    def unfinished(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < lengths_B)

    canvas = rows.start(model.num_tokens, rules.laws)
    canvas = jax.lax.while_loop(unfinished, lambda canvas: one_pass(model, rules, rows, canvas), canvas)
    # A row takes part in every pass until it is finished: the slowest row's passes are the loop's.
    rows_computed = jnp.max(canvas.passes_B) * len(lengths_B)
    round_cost = model.verify_cost if round_cost is None else round_cost
    return canvas_lib.finish(canvas, model.trunk_cost, round_cost, rows_computed)


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
    sizes: tuple[int, ...],
) -> Canvas:
    """Reveals every track before `end` as drawn from the pass's draft, in chunks of the static sizes.

    Args:
        model: made `context`.
        context: of this pass.
        canvas: the rows; those with `num_revealed >= end` stay as they are.
        end_B: int `[B]`, at most the row's length.
        draft_keys_B: keys of this pass's drafts.
        log_prob: from draft logits to the log-probabilities to draw from.
        sizes: tracks per chunk, see `sizes.at_size`.
    """

    def has_rest(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < end_B)

    def one_chunk(canvas: Canvas, size: int) -> Canvas:
        start_B = canvas.num_revealed_B
        log_prob_BxSxV = log_prob(model.draft_logits(context, start_B, size))
        tokens_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), log_prob_BxSxV)
        unverified_BxS = jnp.full_like(tokens_BxS, UNVERIFIED)
        none_BxS = jnp.full_like(tokens_BxS, model.num_tokens)
        count_B = jnp.clip(end_B - start_B, 0, size)
        return canvas_lib.reveal(canvas, tokens_BxS, unverified_BxS, none_BxS, 0, count_B)

    def next_chunk(canvas: Canvas) -> Canvas:
        rest = jnp.minimum(jnp.max(end_B - canvas.num_revealed_B), sizes[-1])
        return at_size(sizes, rest, one_chunk, canvas)

    return jax.lax.while_loop(has_rest, next_chunk, canvas)
