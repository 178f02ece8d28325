"""A causal part taught by a trunk (METHOD.md section 4, "Taught by the trunk").

Revealed one at a time, track `m` is drawn from the trunk's own prediction given the tracks before it: the law that a
verifier on this trunk is to have. A pass of the trunk with `m` revealed tracks knows it, whole, where a training text
shows one token drawn from it, and it knows it of any text, also of what the trunk has drawn itself.

Every row is passed `P` times with different numbers of revealed tracks. What one pass drafts for its first masked track
is what the targets of all passes with as many revealed tracks or fewer should say there: `P (P + 1) / 2` laws from `P`
passes.

The teacher is the trunk that the run starts from. Frozen, it is the network's own; one that learns on has a copy of its
start as its teacher, and is held to that copy's drafts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion import masking
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.model.partitioning import constrain
from ssmd_jax.training import keys, masked_pass

# Distances of a window with few tokens, as samplers of good quality take them.
NEAR = 8


def teacher_loss(
    params,
    network: SpeculativeNetwork,
    tokens_BxD: jax.Array,
    lengths_B: jax.Array | None,
    key: jax.Array,
    loss_config: LossConfig,
    deterministic: bool,
    teacher_params: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean Kullback-Leibler divergence of the target from the teacher's own next track.

    A trunk that learns on is a student too: the mean divergence of its drafts from the teacher's, of the same passes at
    the same tracks, is added with the draft's weight. `P` are passes; a pass `s` learns at the first masked track of
    pass `t`, which takes memory for `B P^2 V` logits of the draft, of the target and of a teacher.

    Args:
        params: the network's parameters, a frozen trunk's without gradients.
        network: the network, with a causal part.
        tokens_BxD: int tokens in sequence order.
        lengths_B: int `[B]`, or None where all rows are full.
        key: key of this batch.
        loss_config: `teacher_passes`, `teacher_span`, `temperature`, the weights and `freeze_trunk`; a frozen trunk has
            no dropout.
        deterministic: no dropout.
        teacher_params: parameters of the trunk that teaches; None for the network's own, which is to be frozen.

    Returns:
        The loss, and `{"draft_loss", "target_loss"}`: nats of divergence of the draft and of the target of one pass
        from what the teacher says when the tracks between, at least one, are revealed too; `"draft_near"` and
        `"target_near"`, the same at distances below `NEAR` alone, where a sampler's windows lie; and `"target_first"`,
        that of the target at the first masked track, where a frozen trunk's draft has 0. A target pays where it is
        below the draft, and what it adds at the first track is paid in every window. With a trunk that learns on there
        is `"drift"` as well, the divergence of its drafts from the teacher's. Each is 0 in a batch without such pairs:
        compare them with each other.

    Raises:
        ValueError: with a teacher for a frozen trunk, or none for another.
    """
    check_teacher(loss_config, teacher_params)
    (batch, length), passes = tokens_BxD.shape, loss_config.teacher_passes
    true_BxD, order_BxD, all_lengths_B = masked_pass.in_random_order(tokens_BxD, lengths_B, key)
    revealed_BxP = revealed_of_passes(key, all_lengths_B, loss_config)
    # Row `b` of the batch becomes rows `b P .. b P + P - 1`, so that each device keeps its own.
    each = lambda x: None if x is None else jnp.repeat(x, passes, axis=0)
    rows = (network, each(true_BxD), each(order_BxD), revealed_BxP.reshape(-1), each(lengths_B))
    draft_NxDxK, target_NxDxK = masked_pass.hidden_pair(params, *rows, key, loss_config, deterministic)

    def log_probs_BxSxTxV(x_NxDxK, kernel_KxV):
        x_BxSxDxK = x_NxDxK.reshape(batch, passes, length, -1)
        x_BxSxTxK = jnp.take_along_axis(x_BxSxDxK, revealed_BxP[:, None, :, None], axis=2)
        logits_BxSxTxV = jnp.einsum(
            "BSTK,KV->BSTV", x_BxSxTxK, kernel_KxV.astype(x_NxDxK.dtype), preferred_element_type=jnp.float32
        )
        logits_BxSxTxV = constrain(logits_BxSxTxV, ("batch", None, None, "vocab"))[..., : network.config.num_tokens]
        return jax.nn.log_softmax(logits_BxSxTxV / loss_config.temperature)

    kernel_KxV = network.head_of(params)
    draft_BxSxTxV, target_BxSxTxV = (log_probs_BxSxTxV(x, kernel_KxV) for x in (draft_NxDxK, target_NxDxK))
    if teacher_params is None:
        taught_BxSxTxV = jax.lax.stop_gradient(draft_BxSxTxV)
    else:
        taught_BxSxTxV = log_probs_BxSxTxV(
            network.apply(
                {"params": teacher_params}, masked_pass.trunk_hidden(teacher_params, *rows), method="readout"
            ),
            network.head_of(teacher_params),
        )
    next_BxTxV = jnp.einsum("BTTV->BTV", taught_BxSxTxV)
    distance_BxSxT = revealed_BxP[:, None, :] - revealed_BxP[:, :, None]

    def divergence(law_BxSxTxV, student_BxSxTxV):
        return jnp.sum(jnp.exp(law_BxSxTxV) * (law_BxSxTxV - student_BxSxTxV), axis=-1)

    def mean(divergence_BxSxT, least: int, below: int = loss_config.teacher_span):
        """Over each row's pairs at distances `least <= d < below`; rows weigh as many tokens as they have."""
        # Passes that went round a row's end are further apart than any window.
        counted_BxSxT = (distance_BxSxT >= least) & (distance_BxSxT < min(below, loss_config.teacher_span))
        return mean_over_pairs(divergence_BxSxT, counted_BxSxT, all_lengths_B)

    of_draft_BxSxT, of_target_BxSxT = (divergence(next_BxTxV[:, None], x) for x in (draft_BxSxTxV, target_BxSxTxV))
    terms = {
        "draft_loss": mean(of_draft_BxSxT, 1),
        "target_loss": mean(of_target_BxSxT, 1),
        "draft_near": mean(of_draft_BxSxT, 1, NEAR),
        "target_near": mean(of_target_BxSxT, 1, NEAR),
        "target_first": mean(of_target_BxSxT, 0, 1),
    }
    total = loss_config.target_weight * mean(of_target_BxSxT, 0)
    if teacher_params is not None:
        terms["drift"] = mean(divergence(taught_BxSxTxV, draft_BxSxTxV), 0)
        total += loss_config.draft_weight * terms["drift"]
    return total, terms


def mean_over_pairs(divergence_Bxpairs: jax.Array, counted_Bxpairs: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """The mean over each row's counted pairs; rows that have any weigh as many tokens as they have. 0 without any."""
    axes = tuple(range(1, divergence_Bxpairs.ndim))
    count_B = jnp.sum(counted_Bxpairs, axis=axes)
    mean_B = jnp.sum(jnp.where(counted_Bxpairs, divergence_Bxpairs, 0.0), axis=axes) / jnp.maximum(count_B, 1)
    weight_B = lengths_B * (count_B > 0)
    return jnp.sum(weight_B * mean_B) / jnp.maximum(jnp.sum(weight_B), 1)


def check_teacher(config: LossConfig, teacher_params: Any) -> None:
    """Raises `ValueError` where a frozen trunk has a teacher, or another none."""
    if (teacher_params is not None) != config.keeps_teacher:
        raise ValueError("a trunk that learns needs a teacher beside it, and a frozen one is its own")


def revealed_of_passes(key: jax.Array, lengths_B: jax.Array, config: LossConfig) -> jax.Array:
    """Number of revealed tracks of each pass over each row, int32 `[B, P]`, all smaller than the row's length.

    `i + floor((span + 1)^u) - 1` modulo the length, `u` stratified over the passes and `i` over the batch (METHOD.md
    section 4): small distances are as frequent as large ones by their logarithm, and every pass by itself reveals each
    number of tracks as often as any other.
    """
    num_revealed_B = masking.stratified_num_revealed(keys.stream(key, "reveal"), lengths_B)
    row_keys = keys.row_keys(keys.stream(key, "teacher"), lengths_B.shape[0])
    uniform_BxP = jax.vmap(lambda row_key: jax.random.uniform(row_key, (config.teacher_passes,)))(row_keys)
    uniform_BxP = (jnp.arange(config.teacher_passes)[None] + uniform_BxP) / config.teacher_passes
    further_BxP = ((config.teacher_span + 1.0) ** uniform_BxP).astype(jnp.int32) - 1
    return (num_revealed_B[:, None] + further_BxP) % jnp.maximum(lengths_B[:, None], 1)
