"""Evidence taught by a trunk (METHOD.md section 4, "Evidence, taught").

A pass of the trunk with `m` revealed tracks says, whole, how EVERY masked track is distributed given these. Evidence of
an earlier pass, told of the tokens between the two, is to say the same of every one of them: two passes teach it at all
masked tracks, where a causal block, whose tracks all see the tokens before them, can learn at the next one alone
(`training/distillation.py`). From `P` passes a row come `P (P - 1) / 2` pairs.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.training import keys, masked_pass
from ssmd_jax.training.distillation import NEAR, check_teacher, mean_over_pairs, revealed_of_passes


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
    """The mean Kullback-Leibler divergence of the target from the teacher's own laws at masked tracks.

    A trunk that learns on is a student too: the mean divergence of its drafts from the teacher's is added with the
    draft's weight.

    Args: as `distillation.teacher_loss`; `teacher_tracks` says at how many tracks a pass teaches.

    Returns:
        The loss, and `{"draft_loss", "target_loss"}`: nats of divergence of the draft and of the target of one pass
        from what the teacher says when further tracks, fewer than `teacher_span`, are revealed too; `"draft_near"` and
        `"target_near"`, the same at distances below `NEAR` alone. With a trunk that learns on there is `"drift"` as
        well. Each is 0 in a batch without such pairs.

    Raises:
        ValueError: with a teacher for a frozen trunk, or none for another.
    """
    check_teacher(loss_config, teacher_params)
    true_BxD, order_BxD, all_lengths_B = masked_pass.in_random_order(tokens_BxD, lengths_B, key)
    revealed_BxP = revealed_of_passes(key, all_lengths_B, loss_config)
    tracks_BxPxQ = tracks_to_learn(revealed_BxP, all_lengths_B, loss_config.teacher_tracks)
    batch, passes = revealed_BxP.shape
    # Row `b` of the batch becomes rows `b P .. b P + P - 1`, so that each device keeps its own.
    each = lambda x: None if x is None else jnp.repeat(x, passes, axis=0)
    rows = (network, each(true_BxD), each(order_BxD), revealed_BxP.reshape(-1), each(lengths_B))

    def by_pass(h_NxDxC):
        return h_NxDxC.reshape(batch, passes, *h_NxDxC.shape[1:])

    def laws(own, h_BxQxC):
        logits_BxQxV = network.apply({"params": own}, h_BxQxC, method="head")
        return jax.nn.log_softmax(logits_BxQxV / loss_config.temperature)

    dropout = None if deterministic or loss_config.freeze_trunk else keys.stream(key, "dropout")
    h_BxPxDxC = by_pass(masked_pass.trunk_hidden(params, *rows, dropout))
    if teacher_params is None:
        teacher, teacher_h_BxPxDxC = params, h_BxPxDxC
    else:
        teacher, teacher_h_BxPxDxC = teacher_params, by_pass(masked_pass.trunk_hidden(teacher_params, *rows))

    at = lambda x_BxDxC, tracks_BxQ: jnp.take_along_axis(x_BxDxC, tracks_BxQ[..., None], axis=1)
    of_pass = lambda x_BxPx, p: jax.lax.dynamic_index_in_dim(x_BxPx, p, axis=1, keepdims=False)
    passes_P = jnp.arange(passes)

    def laws_of_pass(own, h_BxPxDxC, p):
        return laws(own, at(of_pass(h_BxPxDxC, p), of_pass(tracks_BxPxQ, p)))

    taught_PxBxQxV = jax.lax.map(lambda p: laws_of_pass(teacher, teacher_h_BxPxDxC, p), passes_P)
    taught_PxBxQxV = jax.lax.stop_gradient(taught_PxBxQxV)

    def of_pair(_, pair):
        s, t = pair
        tracks_BxQ, h_BxDxC = of_pass(tracks_BxPxQ, t), of_pass(h_BxPxDxC, s)
        start_B, end_B = of_pass(revealed_BxP, s), of_pass(revealed_BxP, t)
        # A pair that is not counted (one pass went round the row's end) has any law, but a finite one.
        target_h_BxQxC = network.apply(
            {"params": params},
            h_BxDxC,
            true_BxD,
            order_BxD,
            start_B,
            end_B,
            tracks_BxQ,
            loss_config.teacher_span,
            method="evidence_hidden",
        )
        draft, target = laws(params, at(h_BxDxC, tracks_BxQ)), laws(params, target_h_BxQxC)
        return None, (end_B - start_B, _divergence(taught_PxBxQxV[t], draft), _divergence(taught_PxBxQxV[t], target))

    pairs = jnp.array(list(itertools.combinations(range(passes), 2)))
    # What a pair computes is computed again for its gradient: memory for one pair, whatever the number of passes.
    _, found = jax.lax.scan(jax.checkpoint(of_pair), None, (pairs[:, 0], pairs[:, 1]))
    distance_JxB, of_draft_JxB, of_target_JxB = found

    def mean(divergence_JxB, below: int = loss_config.teacher_span):
        """Over each row's pairs at distances `1 <= d < below`; rows weigh as many tokens as they have."""
        counted_JxB = (distance_JxB >= 1) & (distance_JxB < min(below, loss_config.teacher_span))
        return mean_over_pairs(divergence_JxB.T, counted_JxB.T, all_lengths_B)

    terms = {
        "draft_loss": mean(of_draft_JxB),
        "target_loss": mean(of_target_JxB),
        "draft_near": mean(of_draft_JxB, NEAR),
        "target_near": mean(of_target_JxB, NEAR),
    }
    total = loss_config.target_weight * terms["target_loss"]
    if teacher_params is not None:

        def drift(_, p):
            return None, _divergence(taught_PxBxQxV[p], laws_of_pass(params, h_BxPxDxC, p))

        _, drift_PxB = jax.lax.scan(jax.checkpoint(drift), None, passes_P)
        terms["drift"] = mean_over_pairs(drift_PxB.T, jnp.ones_like(drift_PxB.T, bool), all_lengths_B)
        total += loss_config.draft_weight * terms["drift"]
    return total, terms


def tracks_to_learn(revealed_BxP: jax.Array, lengths_B: jax.Array, count: int) -> jax.Array:
    """Masked tracks at which each pass teaches, int32 `[B, P, Q]`: the next ones, over again where fewer are masked.

    Orders are uniform and evidence does not look at a track's place in them, so these are a fair sample of all.
    """
    left_BxPx1 = (jnp.maximum(lengths_B, 1)[:, None] - revealed_BxP)[..., None]
    return revealed_BxP[..., None] + jnp.arange(count)[None, None] % left_BxPx1


def _divergence(law_BxQxV: jax.Array, student_BxQxV: jax.Array) -> jax.Array:
    """Nats, the mean over the tracks, `[B]`."""
    return jnp.mean(jnp.sum(jnp.exp(law_BxQxV) * (law_BxQxV - student_BxQxV), axis=-1), axis=-1)
