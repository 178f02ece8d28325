"""Exact likelihood of the speculative sampler by dynamic programming (METHOD.md section 6).

For one order, let `p_{i,k}` and `q_{i,k}` be draft and target probability of the TRUE token at track `k` when `i`
tokens were revealed at the trunk pass, `a = min(p, q)` (the draft is the true token and is accepted) and
`r = max(0, q - p)` (the draft is rejected and its replacement is the true token). `L_i` is the probability that the
sampler, with the true tokens of tracks `< i` revealed, goes on to output the rest. Everything is in log space.
"""

import chex
import jax
import jax.numpy as jnp

# Log of zero inside the recursion: finite, so that gradients through sums of impossible paths stay finite.
LOG_ZERO = -1e30


def _log_accept(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.minimum(log_p, log_q), LOG_ZERO)


def _log_replace(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """`log max(0, q - p)`; the double `where` keeps the gradient finite where q <= p."""
    surplus = log_q > log_p
    log_p, log_q = jnp.where(surplus, log_p, -1.0), jnp.where(surplus, log_q, 0.0)
    ratio = jnp.maximum(log_p - log_q, LOG_ZERO)  # log p may be -inf
    return jnp.where(surplus, log_q + jnp.log(-jnp.expm1(ratio)), LOG_ZERO)


def _chain(log_add_BxS: jax.Array, log_accept_BxS: jax.Array) -> jax.Array:
    """`g_s = add_s + g_{s-1} a_{s-1}`: probability of standing at offset s, arrivals by acceptance included."""

    def combine(left, right):
        (factor_l, value_l), (factor_r, value_r) = left, right
        return factor_l + factor_r, jnp.logaddexp(value_l + factor_r, value_r)

    step_BxS = jnp.pad(log_accept_BxS[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.associative_scan(combine, (step_BxS, log_add_BxS), axis=1)[1]


def sampler_log_likelihood(
    draft_log_prob_BxDxS: jax.Array,
    target_log_prob_BxDxS: jax.Array,
    window_BxD: jax.Array,
    *,
    verify_rounds: int,
    trunk_cost: float,
    verify_cost: float,
    start_B: jax.Array,
    lengths_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log probability of the true tokens under the sampler, and the NFE it needs when it returns them.

    Args:
        draft_log_prob_BxDxS: entry `[b, i, s]` is the draft's log-probability of the true token at track `i + s` with
            `i` tokens revealed; entries past the window are ignored.
        target_log_prob_BxDxS: the target's, given all true tokens before track `i + s`.
        window_BxD: window sizes, entry `i` in `1..lengths[b]-i`, at most `S`.
        verify_rounds: `N`, at least 1.
        trunk_cost: NFE of one trunk pass.
        verify_cost: NFE of one verify round.
        start_B: number of tokens given.
        lengths_B: sequence lengths, at most `D`.

    Returns:
        `log_prob_B` in nats (-inf where impossible) and `expected_nfe_B`, the mean NFE over the runs that return
        these tokens (nan where there are none, 0 where everything is given).
    """
    batch, length, size = draft_log_prob_BxDxS.shape
    chex.assert_equal_shape([draft_log_prob_BxDxS, target_log_prob_BxDxS])
    chex.assert_shape(window_BxD, (batch, length))
    chex.assert_shape([start_B, lengths_B], (batch,))
    offsets_1xS = jnp.arange(size)[None]
    # A round that rejects moves by at least one track: more rounds than tracks are never used.
    rounds = min(verify_rounds, size)

    def exits(log_p_BxS, log_q_BxS, window_B):
        """Log-weights of leaving one outer step: `[B, N, S + 1]`, by rounds charged (from 1) and by offset."""
        inside_BxS = offsets_1xS < window_B[:, None]
        accept_BxS = jnp.where(inside_BxS, _log_accept(log_p_BxS, log_q_BxS), LOG_ZERO)
        replace_BxS = jnp.where(inside_BxS, _log_replace(log_p_BxS, log_q_BxS), LOG_ZERO)
        last_BxS = offsets_1xS == window_B[:, None] - 1

        def one_round(standing_BxS, _):
            """From standing at each offset with n rejections, through round n + 1."""
            reached_BxS = _chain(standing_BxS, accept_BxS)
            through_B = jnp.max(jnp.where(last_BxS, reached_BxS + accept_BxS, LOG_ZERO), axis=1)
            rejected_BxS = jnp.maximum(reached_BxS + replace_BxS, LOG_ZERO)
            # after a rejection at offset s the sampler stands at s + 1: at the window's end that is an exit too
            return jnp.pad(rejected_BxS[:, :-1], ((0, 0), (1, 0)), constant_values=LOG_ZERO), (through_B, rejected_BxS)

        first_BxS = jnp.where(offsets_1xS == 0, 0.0, LOG_ZERO) * jnp.ones((batch, 1))
        _, (through_NxB, rejected_NxBxS) = jax.lax.scan(one_round, first_BxS, length=rounds)
        is_end_1xBxS = last_BxS[None]
        is_final_Nx1x1 = (jnp.arange(rounds) == rounds - 1)[:, None, None] & (rounds == verify_rounds)
        by_rejection_NxBxS = jnp.where(is_end_1xBxS | is_final_Nx1x1, rejected_NxBxS, LOG_ZERO)
        by_acceptance_NxBxS = jnp.where(is_end_1xBxS, through_NxB[..., None], LOG_ZERO)
        return jnp.logaddexp(by_rejection_NxBxS, by_acceptance_NxBxS)

    log_cost_N = jnp.log(trunk_cost + verify_cost * jnp.arange(1, rounds + 1, dtype=jnp.float32))

    def step(carry, inputs):
        """From `log L` and `log M` at tracks `i + 1 .. i + S` to those at `i`."""
        next_L_BxS, next_M_BxS = carry
        i, log_p_BxS, log_q_BxS, window_B = inputs
        log_w_NxBxS = exits(log_p_BxS, log_q_BxS, window_B)
        joint_NxBxS = log_w_NxBxS + next_L_BxS[None]
        log_L_B = jax.nn.logsumexp(joint_NxBxS, axis=(0, 2))
        cost_NxBxS = jnp.logaddexp(joint_NxBxS + log_cost_N[:, None, None], log_w_NxBxS + next_M_BxS[None])
        log_M_B = jax.nn.logsumexp(cost_NxBxS, axis=(0, 2))
        done_B = i >= lengths_B
        log_L_B = jnp.where(done_B, 0.0, jnp.maximum(log_L_B, LOG_ZERO))
        log_M_B = jnp.where(done_B, LOG_ZERO, jnp.maximum(log_M_B, LOG_ZERO))
        shift = lambda new_B, old_BxS: jnp.concatenate([new_B[:, None], old_BxS[:, :-1]], axis=1)
        return (shift(log_L_B, next_L_BxS), shift(log_M_B, next_M_BxS)), (log_L_B, log_M_B)

    by_track = lambda x: jnp.moveaxis(x, 1, 0)
    inputs = (
        jnp.arange(length),
        by_track(draft_log_prob_BxDxS),
        by_track(target_log_prob_BxDxS),
        by_track(window_BxD),
    )
    # Tracks at or past a row's length are done: L = 1 and M = 0.
    carry = (jnp.zeros((batch, size)), jnp.full((batch, size), LOG_ZERO))
    _, (log_L_DxB, log_M_DxB) = jax.lax.scan(step, carry, inputs, reverse=True)
    at_start = lambda x_DxB, end: jnp.take_along_axis(
        jnp.concatenate([x_DxB, jnp.full((1, batch), end)]), start_B[None], axis=0
    )[0]
    log_L_B, log_M_B = at_start(log_L_DxB, 0.0), at_start(log_M_DxB, LOG_ZERO)
    impossible_B = log_L_B < LOG_ZERO / 2
    expected_nfe_B = jnp.exp(jnp.where(impossible_B, 0.0, log_M_B - log_L_B))
    return jnp.where(impossible_B, -jnp.inf, log_L_B), jnp.where(impossible_B, jnp.nan, expected_nfe_B)
