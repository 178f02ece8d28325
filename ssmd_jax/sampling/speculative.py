"""Self-speculative sampling: draft a window, verify it along the order, in one jitted loop (METHOD.md section 5).

while i < D and budget is left:
  trunk pass on the revealed prefix and masks
  draft tokens of tracks [i, i + W(i)) independently from p
  at most N verify rounds: accept while u < q / p; replace the first rejected from max(0, q - p)
  reveal what was accepted and replaced

With `divergence_stop` a window also ends where the target has moved too far from the draft: before the first track at
which `KL(q || p)`, summed over the window, exceeds it. With `shared_noise` a round instead draws all tracks again,
`argmax(log q + g)` with the noise `g` of the draft `argmax(log p + g)`, and what stands before the first change is
settled.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import accept_reject_round, between, gumbel, redraw_round
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling import keys, passes
from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, UNVERIFIED, Canvas, SampleResult
from ssmd_jax.sampling.compaction import while_active
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts
from ssmd_jax.sampling.request import Rows, Rules, prepare
from ssmd_jax.sampling.sharded import over_devices, place
from ssmd_jax.sampling.sizes import at_size


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
    mesh: jax.sharding.Mesh | None = None,
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
        mesh: shares out the rows over all its devices, each of which runs a loop of its own; None for one device.

    Returns:
        A `SampleResult`.

    Raises:
        ValueError: bad arguments, a budget below the cost of one pass and one round, or a `batch_size` that the mesh
            does not divide.
    """
    rows, rules = prepare(
        model, key, config, batch_size, length, prompt, prompt_mask, lengths, verify_cost=model.verify_cost, mesh=mesh
    )
    return _sample(*place(mesh, model, rules, rows), mesh=mesh)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _sample(model, rules: Rules, rows: Rows, *, mesh: jax.sharding.Mesh | None) -> SampleResult:
    return over_devices(functools.partial(passes.run, one_pass), mesh)(model, rules, rows)


def one_pass(model, rules: Rules, rows: Rows, canvas: Canvas) -> Canvas:
    """One trunk pass: a window is drafted and verified, and what is settled is revealed.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        rules: of all rows.
        rows: what each row is given.
        canvas: the rows; finished ones stay as they are.
    """
    lengths_B = rows.known_lengths()
    start_B = canvas.num_revealed_B
    if rules.purse.budget is None:
        window_B = rows.windows.plain(start_B)
    else:
        payable_B = rules.purse.passes_payable(canvas.passes_B, canvas.rounds_B)
        window_B = rows.windows.merged(start_B, payable_B)

    context, canvas, draft_keys_B = run_trunk(model, canvas, rows.keys_B, lengths_B, rules.laws, rules.sizes[-1])

    def draft_and_verify(canvas: Canvas, size: int) -> Canvas:
        logits_BxSxV = model.draft_logits(context, start_B, size)
        log_p_BxSxV = rules.laws.proposal(logits_BxSxV)
        noise_BxSxV = gumbel(keys.fold_tracks(draft_keys_B, start_B, size), log_p_BxSxV.shape[-1])
        drafts_BxS = jnp.argmax(log_p_BxSxV + noise_BxSxV, axis=-1).astype(jnp.int32)
        stopped_B = rules.laws.stopped(window_B, logits_BxSxV)
        verify_keys_B = keys.fold(keys.stream(rows.keys_B, keys.VERIFY), canvas.passes_B)
        drawn_with_BxSxV = noise_BxSxV if rules.laws.shared_noise else log_p_BxSxV
        drafted = _Drafted(canvas, context, verify_keys_B, stopped_B, drafts_BxS, drawn_with_BxSxV, logits_BxSxV)
        verified = _verify(model, rules, drafted)
        return canvas_lib.reveal(
            canvas.replace(rounds_B=canvas.rounds_B + verified.rounds_B),
            verified.tokens_BxS,
            verified.status_BxS,
            verified.rejected_BxS,
            verified.settled_in_BxS,
            verified.offset_B,
        )

    # Windows of finished rows are empty. A choice at every round too would double the program, and later rounds seldom
    # have small windows alone.
    canvas = at_size(rules.sizes, jnp.max(window_B), draft_and_verify, canvas)
    if rules.purse.budget is None:
        return canvas

    # A row that cannot pay another pass and round takes all that is left from this pass's draft. Its drafts in hand
    # are drawn again from the same keys.
    is_broke_B = rules.purse.passes_payable(canvas.passes_B, canvas.rounds_B) < 1
    end_B = jnp.where(is_broke_B, lengths_B, canvas.num_revealed_B)
    return take_drafts(model, context, canvas, end_B, draft_keys_B, rules.laws.proposal, rules.sizes[-1:])


class _Drafted(NamedTuple):
    """A pass up to its drafts; leading axis B everywhere, so that rounds can be given some of the rows.

    Attributes:
        canvas: the rows, drafts not in it.
        context: of the trunk pass.
        verify_keys_B: keys of the pass's rounds.
        window_B: tracks drafted, at most `S`.
        drafts_BxS: the drafts; behind the window they mean nothing.
        drawn_with_BxSxV: `log p`, or with shared noise the Gumbel noise: what rounds ask of how they were drawn.
        logits_BxSxV: the draft's logits.
    """

    canvas: Canvas
    context: Any
    verify_keys_B: jax.Array
    window_B: jax.Array
    drafts_BxS: jax.Array
    drawn_with_BxSxV: jax.Array
    logits_BxSxV: jax.Array


class _Verified(NamedTuple):
    """State of a pass's verify rounds: the window's tracks, and how far each row has come.

    Attributes:
        offset_B: tracks of the window that are settled.
        window_B: tracks of the window that can be; fewer than were drafted once the target has diverged.
        tokens_BxS: settled tokens, then the drafts in hand.
        status_BxS: accepted or replaced where settled, unverified behind.
        rejected_BxS: the draft that was rejected, the mask id where none.
        settled_in_BxS: the round that settled the track, from 1; 0 behind.
        rounds_B: rounds of the row in this pass.
    """

    offset_B: jax.Array
    window_B: jax.Array
    tokens_BxS: jax.Array
    status_BxS: jax.Array
    rejected_BxS: jax.Array
    settled_in_BxS: jax.Array
    rounds_B: jax.Array


def _verify(model, rules: Rules, drafted: _Drafted) -> _Verified:
    """At most `verify_rounds` rounds on one window, each with `q` computed anew."""
    zeros_B = jnp.zeros_like(drafted.window_B)
    state = _Verified(
        offset_B=zeros_B,
        window_B=drafted.window_B,
        tokens_BxS=drafted.drafts_BxS,
        status_BxS=jnp.full_like(drafted.drafts_BxS, UNVERIFIED),
        rejected_BxS=jnp.full_like(drafted.drafts_BxS, model.num_tokens),
        settled_in_BxS=jnp.zeros_like(drafted.drafts_BxS),
        rounds_B=zeros_B,
    )
    one_round = functools.partial(_one_round, model, rules)
    return while_active(functools.partial(_verifying, rules), one_round, drafted, state)


def _verifying(rules: Rules, drafted: _Drafted, state: _Verified) -> jax.Array:
    """Which rows take part in the next round, bool `[B]`; a row that does not will not again in this pass."""
    canvas = drafted.canvas
    payable_B = rules.purse.round_payable(canvas.passes_B, canvas.rounds_B + state.rounds_B)
    return (state.offset_B < state.window_B) & (state.rounds_B < rules.verify_rounds) & payable_B


def _one_round(model, rules: Rules, drafted: _Drafted, state: _Verified) -> _Verified:
    """A round of those rows that take part; the others stay as they are."""
    canvas, size = drafted.canvas, drafted.drafts_BxS.shape[1]
    start_B, active_B = canvas.num_revealed_B, _verifying(rules, drafted, state)
    tokens_BxD = canvas_lib.write(canvas.tokens_BxD, state.tokens_BxS, start_B, drafted.window_B)
    target_logits_BxSxV = model.target_logits(drafted.context, tokens_BxD, canvas.positions_BxD, start_B, size)
    log_q_BxSxV = rules.laws.target(target_logits_BxSxV, drafted.logits_BxSxV)
    settle = _redraw if rules.laws.shared_noise else _accept_or_replace
    found = settle(drafted, state, log_q_BxSxV, jnp.where(active_B, state.window_B, 0))
    end_B = rules.laws.diverged(state.offset_B, found.offset_B, target_logits_BxSxV, drafted.logits_BxSxV)
    offset_B, window_B = jnp.minimum(found.offset_B, end_B), jnp.minimum(state.window_B, end_B)
    rounds_B, is_settled_BxS = state.rounds_B + active_B, between(state.offset_B, offset_B, size)
    settled_in_BxS = jnp.where(is_settled_BxS, rounds_B[:, None], state.settled_in_BxS)
    return found._replace(offset_B=offset_B, window_B=window_B, settled_in_BxS=settled_in_BxS, rounds_B=rounds_B)


def _accept_or_replace(drafted: _Drafted, state: _Verified, log_q_BxSxV: jax.Array, window_B: jax.Array) -> _Verified:
    """Accepts drafts up to the first rejection, which it replaces; drafts behind it stay. Windows of 0 do nothing."""
    outcome = accept_reject_round(
        keys.fold(drafted.verify_keys_B, state.rounds_B),
        state.tokens_BxS,
        drafted.drawn_with_BxSxV,
        log_q_BxSxV,
        drafted.canvas.num_revealed_B,
        state.offset_B,
        window_B,
    )
    size = state.tokens_BxS.shape[1]
    is_replaced_BxS = (jnp.arange(size)[None] == outcome.first_rejected[:, None]) & outcome.rejected[:, None]
    is_accepted_BxS = between(state.offset_B, outcome.first_rejected, size)
    status_BxS = jnp.where(is_accepted_BxS, ACCEPTED, state.status_BxS)
    return state._replace(
        offset_B=outcome.offset,
        tokens_BxS=jnp.where(is_replaced_BxS, outcome.replacement[:, None], state.tokens_BxS),
        status_BxS=jnp.where(is_replaced_BxS, REPLACED, status_BxS),
        rejected_BxS=jnp.where(is_replaced_BxS, state.tokens_BxS, state.rejected_BxS),
    )


def _redraw(drafted: _Drafted, state: _Verified, log_q_BxSxV: jax.Array, window_B: jax.Array) -> _Verified:
    """Draws all tracks again; those up to the first change are settled, as drafted or not. Windows of 0 do nothing."""
    tokens_BxS, offset_B = redraw_round(
        drafted.drawn_with_BxSxV, state.tokens_BxS, log_q_BxSxV, state.offset_B, window_B
    )
    is_settled_BxS = between(state.offset_B, offset_B, tokens_BxS.shape[1])
    is_draft_BxS = tokens_BxS == drafted.drafts_BxS
    return state._replace(
        offset_B=offset_B,
        tokens_BxS=tokens_BxS,
        status_BxS=jnp.where(is_settled_BxS, jnp.where(is_draft_BxS, ACCEPTED, REPLACED), state.status_BxS),
        rejected_BxS=jnp.where(is_settled_BxS & ~is_draft_BxS, drafted.drafts_BxS, state.rejected_BxS),
    )
