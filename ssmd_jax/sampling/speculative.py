"""Self-speculative sampling: draft a window, verify it along the order, in one jitted loop (METHOD.md section 5).

while i < D and budget is left:
  trunk pass on the revealed prefix and masks
  draft tokens of tracks [i, i + W(i)) independently from p
  at most N verify rounds: accept while u < q / p; replace the first rejected from max(0, q - p)
  reveal what was accepted and replaced
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import accept_reject_round, categorical
from ssmd_jax.sampling import budget, keys
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, UNVERIFIED, Canvas, SampleResult
from ssmd_jax.sampling.config import Laws, SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts


def sample(
    model,
    key: jax.Array,
    config: SpeculativeConfig,
    *,
    batch_size: int,
    length: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
) -> SampleResult:
    """Draws samples by self-speculative masked diffusion.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        key: one typed key, of which row `b` uses `fold_in(key, b)`, or an array of `batch_size` keys. A row depends on
            its own key alone.
        config: the sampler's settings.
        batch_size: number of rows.
        length: tokens a row, `D`.
        prompt: int `[batch_size, length]` in sequence order.
        prompt_mask: bool `[batch_size, length]`, True where `prompt` gives the token; any pattern, any number a row.
        lengths: int `[batch_size]`, shorter rows end there; None for full rows.

    Returns:
        A `SampleResult`.

    Raises:
        ValueError: bad arguments, or a budget below the cost of one pass and one round.
    """
    prompt_BxD, given_BxD, lengths_B = canvas_lib.check_rows(model, batch_size, length, prompt, prompt_mask, lengths)
    purse, max_passes = budget.purse(config.budget_nfe, model.trunk_cost, model.verify_cost)
    windows, size = budget.windows(config.window, lengths_B, length, max_passes)
    return _sample(
        model,
        keys.row_keys(key, batch_size),
        prompt_BxD,
        given_BxD,
        canvas_lib.unless_full(lengths_B, length),
        windows,
        np.int32(config.verify_rounds),
        purse,
        config.laws,
        size=size,
    )


@functools.partial(jax.jit, static_argnames=("size",))
def _sample(
    model, row_keys_B, prompt_BxD, given_BxD, lengths_B, windows, verify_rounds, purse, laws: Laws, *, size: int
) -> SampleResult:
    lengths_B = canvas_lib.known_lengths(lengths_B, *prompt_BxD.shape)
    canvas = canvas_lib.start(
        row_keys_B, prompt_BxD, given_BxD, lengths_B, model.num_tokens, random_order=laws.order == "random"
    )

    def unfinished(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < lengths_B)

    def one_pass(canvas: Canvas) -> Canvas:
        active_B = canvas.num_revealed_B < lengths_B
        start_B = canvas.num_revealed_B
        if purse.budget is None:
            window_B = windows.plain(start_B)
        else:
            payable_B = purse.passes_payable(canvas.passes_B, canvas.rounds_B)
            window_B = windows.merged(start_B, payable_B)

        context, canvas, draft_keys_B = run_trunk(model, canvas, row_keys_B, lengths_B, laws, size)
        draft_logits_BxSxV = model.draft_logits(context, start_B, size)
        log_p_BxSxV = laws.proposal(draft_logits_BxSxV)
        drafts_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), log_p_BxSxV)

        verified = _verify(
            model,
            context,
            canvas,
            draft_logits_BxSxV,
            log_p_BxSxV,
            drafts_BxS,
            window_B,
            verify_rounds,
            purse,
            row_keys_B,
            laws,
        )
        canvas = canvas.replace(rounds_B=verified.rounds_B)
        if purse.budget is None:
            return canvas_lib.reveal(
                canvas, verified.tokens_BxS, verified.status_BxS, verified.rejected_BxS, verified.offset_B
            )

        # A row that cannot pay another pass and round takes all that is left from this pass's draft.
        is_broke_B = active_B & (purse.passes_payable(canvas.passes_B, canvas.rounds_B) < 1)
        count_B = jnp.where(is_broke_B, window_B, verified.offset_B)
        canvas = canvas_lib.reveal(canvas, verified.tokens_BxS, verified.status_BxS, verified.rejected_BxS, count_B)
        end_B = jnp.where(is_broke_B, lengths_B, canvas.num_revealed_B)
        return take_drafts(model, context, canvas, end_B, draft_keys_B, laws.proposal, size)

    canvas = jax.lax.while_loop(unfinished, one_pass, canvas)
    return canvas_lib.finish(canvas, model.trunk_cost, model.verify_cost)


class _Verified(NamedTuple):
    """State of a pass's verify rounds: the window's tracks, and how far each row has come.

    Attributes:
        round: rounds run in this pass.
        offset_B: tracks of the window that are settled.
        tokens_BxS: settled tokens, then the drafts in hand.
        status_BxS: accepted or replaced where settled, unverified behind.
        rejected_BxS: the draft that was rejected, the mask id where none.
        rounds_B: rounds of the row since the start.
    """

    round: jax.Array
    offset_B: jax.Array
    tokens_BxS: jax.Array
    status_BxS: jax.Array
    rejected_BxS: jax.Array
    rounds_B: jax.Array


def _verify(
    model,
    context,
    canvas,
    draft_logits_BxSxV,
    log_p_BxSxV,
    drafts_BxS,
    window_B,
    verify_rounds,
    purse,
    row_keys_B,
    laws,
) -> _Verified:
    """At most `verify_rounds` rounds on one window. Drafts behind a rejection stay: only `q` is computed anew."""
    start_B, size = canvas.num_revealed_B, drafts_BxS.shape[1]
    verify_keys_B = keys.fold(keys.stream(row_keys_B, keys.VERIFY), canvas.passes_B)
    offsets_1xS = jnp.arange(size)[None]

    def verifying(state: _Verified) -> jax.Array:
        payable_B = purse.round_payable(canvas.passes_B, state.rounds_B)
        return (state.offset_B < window_B) & (state.round < verify_rounds) & payable_B

    def one_round(state: _Verified) -> _Verified:
        active_B = verifying(state)
        tokens_BxD = canvas_lib.write(canvas.tokens_BxD, state.tokens_BxS, start_B, window_B)
        target_logits_BxSxV = model.target_logits(context, tokens_BxD, canvas.positions_BxD, start_B, size)
        outcome = accept_reject_round(
            keys.fold(verify_keys_B, jnp.broadcast_to(state.round, start_B.shape)),
            state.tokens_BxS,
            log_p_BxSxV,
            laws.target(target_logits_BxSxV, draft_logits_BxSxV),
            start_B,
            state.offset_B,
            jnp.where(active_B, window_B, 0),
        )
        is_replaced_BxS = (offsets_1xS == outcome.first_rejected[:, None]) & outcome.rejected[:, None]
        is_accepted_BxS = (offsets_1xS >= state.offset_B[:, None]) & (offsets_1xS < outcome.first_rejected[:, None])
        status_BxS = jnp.where(is_accepted_BxS, ACCEPTED, state.status_BxS)
        return _Verified(
            round=state.round + 1,
            offset_B=jnp.where(active_B, outcome.offset, state.offset_B),
            tokens_BxS=jnp.where(is_replaced_BxS, outcome.replacement[:, None], state.tokens_BxS),
            status_BxS=jnp.where(is_replaced_BxS, REPLACED, status_BxS),
            rejected_BxS=jnp.where(is_replaced_BxS, state.tokens_BxS, state.rejected_BxS),
            rounds_B=state.rounds_B + active_B,
        )

    state = _Verified(
        round=jnp.int32(0),
        offset_B=jnp.zeros_like(start_B),
        tokens_BxS=drafts_BxS,
        status_BxS=jnp.full_like(drafts_BxS, UNVERIFIED),
        rejected_BxS=jnp.full_like(drafts_BxS, model.num_tokens),
        rounds_B=canvas.rounds_B,
    )
    return jax.lax.while_loop(lambda state: jnp.any(verifying(state)), one_round, state)
