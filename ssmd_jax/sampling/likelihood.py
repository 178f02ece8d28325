"""Exact log-likelihood of samples under the speculative sampler (METHOD.md section 6)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.likelihood import sampler_log_likelihood
from ssmd_jax.diffusion.orders import to_order_space
from ssmd_jax.sampling import budget, canvas, sharded
from ssmd_jax.sampling.config import Laws, SpeculativeConfig
from ssmd_jax.sampling.interface import prepared


def log_likelihood(
    model,
    tokens,
    order,
    config: SpeculativeConfig,
    *,
    num_given=None,
    lengths=None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log probability that the sampler, following `order`, outputs `tokens`, and the NFE it then needs.

    Costs `length` trunk passes for the whole batch, one after the other.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens: int `[batch, length]` in sequence order.
        order: int `[batch, length]` positions, `order[b, k]` is revealed k-th; padding positions last.
        config: the sampler's settings; `order` is ignored, `budget_nfe` must be None.
        num_given: int `[batch]`: so many entries of `order` are a prompt, and the result is conditional on them.
        lengths: int `[batch]`; None for full rows.
        mesh: shares out the rows over all its devices, with nothing communicated; None for one device.

    Returns:
        `log_prob [batch]` in nats, -inf where impossible, and `expected_nfe [batch]`, nan there.

    Raises:
        ValueError: bad arguments, a batch that the mesh does not divide, or a budget or shared noise: they have no such
            recursion, nor has `divergence_stop`.
    """
    if config.budget_nfe is not None:
        raise ValueError("the likelihood has no recursion under a budget: set budget_nfe to None")
    if config.divergence_stop:
        raise ValueError(
            "the expected NFE has no recursion where windows end by divergence_stop, which a round more may be paid to "
            "see: set it to 0"
        )
    if config.shared_noise:
        raise ValueError(
            "the likelihood's recursion is that of rejections: set shared_noise to False, which with rounds enough for "
            "every window is the same law"
        )
    tokens_BxD, order_BxD, num_given_B, lengths_B = _check(model, tokens, order, num_given, lengths)
    sharded.check_divisible(mesh, tokens_BxD.shape[0], "the number of rows")
    windows, size = budget.windows(config.window, lengths_B, tokens_BxD.shape[1], None)
    lengths_B = canvas.unless_full(lengths_B, tokens_BxD.shape[1])
    rows = (tokens_BxD, order_BxD, num_given_B, lengths_B, windows.table_BxD)
    model, laws, rows = sharded.place(mesh, model, config.laws, rows)
    return _log_likelihood(model, laws, rows, verify_rounds=config.verify_rounds, size=size, mesh=mesh)


def _check(model, tokens, order, num_given, lengths):
    tokens_BxD, order_BxD = np.asarray(tokens), np.asarray(order)
    if tokens_BxD.ndim != 2 or not np.issubdtype(tokens_BxD.dtype, np.integer):
        raise ValueError(f"tokens must be integers [batch, length], got {tokens_BxD.dtype} {tokens_BxD.shape}")
    batch, length = tokens_BxD.shape
    lengths_B = np.full(batch, length) if lengths is None else np.asarray(lengths)
    num_given_B = np.zeros(batch, int) if num_given is None else np.asarray(num_given)
    for name, values_B, least in (("lengths", lengths_B, 1), ("num_given", num_given_B, 0)):
        if values_B.shape != (batch,) or (values_B < least).any() or (values_B > length).any():
            raise ValueError(f"{name} must be {batch} integers between {least} and {length}, got {values_B}")
    if (num_given_B > lengths_B).any():
        raise ValueError("num_given exceeds the length of a row")
    inside_BxD = np.arange(length)[None] < lengths_B[:, None]
    if order_BxD.shape != (batch, length) or (np.sort(order_BxD, axis=1) != np.arange(length)[None]).any():
        raise ValueError(f"order must be a permutation of 0..{length - 1} in each of {batch} rows")
    if (inside_BxD & (order_BxD >= lengths_B[:, None])).any():
        raise ValueError("order must list a row's padding positions last")
    ordered_BxD = np.take_along_axis(tokens_BxD, order_BxD, axis=1)
    if (inside_BxD & ((ordered_BxD < 0) | (ordered_BxD >= model.num_tokens))).any():
        raise ValueError(f"tokens must lie in the vocabulary 0..{model.num_tokens - 1}")
    return tuple(x.astype(np.int32) for x in (tokens_BxD, order_BxD, num_given_B, lengths_B))


@functools.partial(jax.jit, static_argnames=("verify_rounds", "size", "mesh"))
def _log_likelihood(model, laws: Laws, rows, *, verify_rounds: int, size: int, mesh: jax.sharding.Mesh | None):
    of_rows = functools.partial(_of_rows, verify_rounds=verify_rounds, size=size)
    return sharded.over_devices(of_rows, mesh)(model, laws, rows)


def _of_rows(model, laws: Laws, rows, *, verify_rounds: int, size: int):
    tokens_BxD, order_BxD, num_given_B, lengths_B, window_BxD = rows
    model = prepared(model)
    batch, length = tokens_BxD.shape
    lengths_B = canvas.known_lengths(lengths_B, batch, length)
    is_sequence_BxD = jnp.arange(length)[None] < lengths_B[:, None]
    tokens_BxD = jnp.where(is_sequence_BxD, to_order_space(tokens_BxD, order_BxD), model.num_tokens)

    def true_log_probs(i):
        """`log p_{i,k}`, `log q_{i,k}` of the true tokens at tracks `i .. i+S-1`, `[B, S]`; the windows, `[B]`."""
        start_B = jnp.minimum(jnp.full((batch,), i, jnp.int32), lengths_B)
        context = model.trunk(tokens_BxD, order_BxD, start_B, lengths_B)
        draft_logits_BxSxV = model.draft_logits(context, start_B, size)
        target_logits_BxSxV = model.target_logits(context, tokens_BxD, order_BxD, start_B, size)
        index_BxS = jnp.minimum(start_B[:, None] + jnp.arange(size)[None], length - 1)
        true_BxS = jnp.take_along_axis(tokens_BxD, index_BxS, axis=1)
        true_BxSx1 = jnp.minimum(true_BxS, model.num_tokens - 1)[..., None]  # padding holds the mask id
        of_true = lambda log_prob_BxSxV: jnp.take_along_axis(log_prob_BxSxV, true_BxSx1, axis=-1)[..., 0]
        log_p_BxSxV = laws.proposal(draft_logits_BxSxV)
        log_q_BxSxV = laws.target(target_logits_BxSxV, draft_logits_BxSxV)
        return of_true(log_p_BxSxV), of_true(log_q_BxSxV), laws.stopped(window_BxD[:, i], draft_logits_BxSxV)

    log_p_DxBxS, log_q_DxBxS, window_DxB = jax.lax.map(true_log_probs, jnp.arange(length, dtype=jnp.int32))
    return sampler_log_likelihood(
        jnp.moveaxis(log_p_DxBxS, 0, 1),
        jnp.moveaxis(log_q_DxBxS, 0, 1),
        jnp.moveaxis(window_DxB, 0, 1),
        verify_rounds=verify_rounds,
        trunk_cost=model.trunk_cost,
        verify_cost=model.verify_cost,
        start_B=num_given_B,
        lengths_B=lengths_B,
    )
