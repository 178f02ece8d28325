"""The loss on a batch and the train step: pure functions of state, tokens and key."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssmd_jax.diffusion import loss, masking
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.training import distillation, evidence_distillation, keys, masked_pass
from ssmd_jax.training.optimizer import freeze, is_trained
from ssmd_jax.training.state import TrainState


class TokenLosses(NamedTuple):
    """What one pass of the network over a batch gives.

    Attributes:
        total: the training loss, the only field with a gradient.
        draft_nll_BxD: nats by track, 0 where it is not masked.
        target_nll_BxD: the same of the target, never tied to the draft.
        num_revealed_B: number of revealed tokens.
        lengths_B: lengths of the rows.
    """

    total: jax.Array
    draft_nll_BxD: jax.Array
    target_nll_BxD: jax.Array
    num_revealed_B: jax.Array
    lengths_B: jax.Array


def token_losses(
    params,
    network: SpeculativeNetwork,
    tokens_BxD: jax.Array,
    lengths_B: jax.Array | None,
    key: jax.Array,
    loss_config: LossConfig,
    deterministic: bool,
) -> TokenLosses:
    """Draws orders and masks, and runs the network once (METHOD.md section 4).

    Args:
        params: the network's parameters.
        network: the network.
        tokens_BxD: int tokens in sequence order.
        lengths_B: int `[B]`, or None where all rows are full.
        key: key of this batch.
        loss_config: weights and options; a frozen trunk has no dropout, since it is to stay what it was.
        deterministic: no dropout.
    """
    length = tokens_BxD.shape[1]
    true_BxD, order_BxD, all_lengths_B = masked_pass.in_random_order(tokens_BxD, lengths_B, key)
    num_revealed_B = masking.stratified_num_revealed(keys.stream(key, "reveal"), all_lengths_B)
    num_revealed_B, end_B = loss.window_of(num_revealed_B, all_lengths_B, length, loss_config)
    draft_BxDxC, target_BxDxC = masked_pass.hidden_pair(
        params, network, true_BxD, order_BxD, num_revealed_B, lengths_B, key, loss_config, deterministic
    )
    counted_BxD = loss.masked_tracks(num_revealed_B, end_B, length)
    weights = loss.loss_weights(num_revealed_B, all_lengths_B, length, loss_config)
    score = lambda x_BxDxC, weights_BxD: masked_pass.weighted_nll(
        params, network, x_BxDxC, true_BxD, weights_BxD, counted_BxD, loss_config
    )
    if not network.config.n_causal:  # the target is the draft
        total, nll_BxD = score(draft_BxDxC, weights[0] + weights[1])
        return TokenLosses(total, nll_BxD, nll_BxD, num_revealed_B, all_lengths_B)
    draft_total, draft_nll_BxD = score(draft_BxDxC, weights[0])
    target_total, target_nll_BxD = score(target_BxDxC, weights[1])
    return TokenLosses(draft_total + target_total, draft_nll_BxD, target_nll_BxD, num_revealed_B, all_lengths_B)


def row_lengths(tokens_BxD: jax.Array, num_tokens: int) -> jax.Array:
    """Lengths `[B]` of rows that are padded with the mask id at their ends."""
    return jnp.sum(tokens_BxD < num_tokens, axis=1)


def loss_fn(
    params,
    network: SpeculativeNetwork,
    tokens_BxD: jax.Array,
    lengths_B: jax.Array | None,
    key: jax.Array,
    loss_config: LossConfig,
    deterministic: bool,
    teacher_params=None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The training loss; arguments as `token_losses`, and the teacher's parameters as in `distillation.teacher_loss`.

    Returns:
        The weighted loss, and `{"draft_loss", "target_loss"}`, nats per token; with `teacher_passes` those of
        `distillation.teacher_loss`, or of `evidence_distillation.teacher_loss` for a causal part of that form.
    """
    if loss_config.freeze_trunk:
        params = freeze(params)
    if loss_config.teacher_passes:
        is_evidence = network.config.causal_form == "evidence"
        teacher_loss = evidence_distillation.teacher_loss if is_evidence else distillation.teacher_loss
        return teacher_loss(params, network, tokens_BxD, lengths_B, key, loss_config, deterministic, teacher_params)
    total, *by_track = token_losses(params, network, tokens_BxD, lengths_B, key, loss_config, deterministic)
    _, terms = loss.two_term_loss(*by_track, loss_config)
    return total, terms


def accumulated_gradient(
    params,
    network: SpeculativeNetwork,
    tokens_BxD: jax.Array,
    key: jax.Array,
    loss_config: LossConfig,
    accumulation: int,
    padded: bool = False,
    teacher_params=None,
):
    """Mean loss and gradient over micro-batches; micro-batch `m` has the rows `m, m + accumulation, ...`.

    So each device keeps its rows. Every micro-batch has a key of its own, `fold_in(key, m)`. Micro-batches of full rows
    weigh alike; padded ones (`row_lengths`) weigh as many tokens as they hold.

    Returns:
        `({"loss", "draft_loss", "target_loss"}, gradient)`; with `teacher_passes` the terms of
        `distillation.teacher_loss`.
    """
    batch, length = tokens_BxD.shape
    num_tokens = network.config.num_tokens
    deterministic = network.config.dropout == 0.0
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def micro_step(tokens_MxD, index):
        micro_key = jax.random.fold_in(key, index)
        lengths_M = row_lengths(tokens_MxD, num_tokens) if padded else None
        (total, terms), gradient = gradient_fn(
            params, network, tokens_MxD, lengths_M, micro_key, loss_config, deterministic, teacher_params
        )
        mean = {"loss": total, **terms}, gradient
        if not padded or accumulation == 1:
            return mean
        share = jnp.sum(lengths_M) * accumulation / jnp.sum(row_lengths(tokens_BxD, num_tokens))
        return jax.tree.map(lambda x: x * share.astype(x.dtype), mean)

    if accumulation == 1:
        return micro_step(tokens_BxD, 0)
    micro_AxMxD = tokens_BxD.reshape(batch // accumulation, accumulation, length).swapaxes(0, 1)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: micro_step(micro_AxMxD[0], jnp.int32(0)))
    )
    add = lambda total, inputs: (jax.tree.map(jnp.add, total, micro_step(*inputs)), None)
    total, _ = jax.lax.scan(add, zeros, (micro_AxMxD, jnp.arange(accumulation)))
    return jax.tree.map(lambda x: x / accumulation, total)


def ema_update(params, ema_params, step: jax.Array, decay: float):
    """Moving average with its decay warmed up, `min(decay, (1 + t) / (10 + t))`, so that it forgets the start."""
    warmed = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, ema_params, 1.0 - warmed)


def _all_finite(tree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def make_train_step(
    network: SpeculativeNetwork,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss_config: LossConfig,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
    padded: bool = False,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The train step `(state, tokens [B, D], root key) -> (state, metrics)`, to be jitted by the caller.

    Metrics are device scalars: `loss`, `draft_loss`, `target_loss` (nats per token; with `teacher_passes` what
    `distillation.teacher_loss` says), `grad_norm` (before clipping),
    `learning_rate`, and `finite`, false where the loss, the gradient or a number of the new state is not: losses and
    gradient speak of the parameters that the step was given, and a good one can still end in a bad update. Where rows
    are `padded` with the mask id there is `tokens` too, how many the batch holds without padding.

    With `skip_nonfinite` a step whose loss or gradient is not finite changes nothing but `step`: the optimiser's own
    counts stand still too. `skipped` then says so, and `finite` speaks of the state alone. An update that is not finite
    after a good gradient is not skipped: the settings are at fault, not a batch, and to look at the new state before
    giving up the old one would take the memory of both.
    """

    def train_step(state: TrainState, tokens_BxD: jax.Array, key: jax.Array):
        step_key = jax.random.fold_in(keys.stream(key, "train"), state.step)
        metrics, gradient = accumulated_gradient(
            state.params, network, tokens_BxD, step_key, loss_config, accumulation, padded, state.teacher_params
        )
        if padded:
            metrics["tokens"] = jnp.sum(row_lengths(tokens_BxD, network.config.num_tokens))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = ema_update(params, ema_params, state.step, ema_decay)
            if loss_config.freeze_trunk:  # what stands still is its own average, to the bit
                ema_params = jax.tree.map_with_path(
                    lambda path, new, old: new if is_trained(path) else old, ema_params, state.ema_params
                )
        grad_norm = optax.tree.norm(gradient)
        is_good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        if skip_nonfinite:
            old = (state.params, state.ema_params, state.opt_state)
            params, ema_params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(is_good, new, old), (params, ema_params, opt_state), old
            )
            metrics["skipped"] = ~is_good
        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": (is_good | skip_nonfinite) & _all_finite((params, opt_state)),
        }
        return TrainState(state.step + 1, params, ema_params, opt_state, state.teacher_params), metrics

    return train_step
