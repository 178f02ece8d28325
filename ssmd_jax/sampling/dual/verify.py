"""The verifier's look at a block of drafts, and what comes of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.dual import passes, state
from ssmd_jax.sampling.dual.commit import best
from ssmd_jax.sampling.dual.request import Rows
from ssmd_jax.sampling.dual.rules import Evidence, Rule
from ssmd_jax.sampling.dual.state import Block, Progress

# What the verifier sees of the drafts that it judges.
VIEWS = ("visible", "masked", "leave_one_out")


class Seen(NamedTuple):
    """What the verifier computed.

    Attributes:
        logits_BxbxV: float32.
        cache: of its last forward.
        forwards_B: int32, forwards that each row needed.
        num_passes: int32 scalar, passes of the batch.
    """

    logits_BxbxV: jax.Array
    cache: object
    forwards_B: jax.Array
    num_passes: jax.Array


def look(verifier, view: str, groups: int, rows: Rows, progress: Progress, block: Block, active_B) -> Seen:
    """Full forwards of the verifier over the text with its drafts.

    Args:
        verifier: satisfies `MaskedModel`.
        view: "visible": one forward sees all drafts; "masked": one forward sees none; "leave_one_out": the drafts are
            dealt out to groups in turn, each of which is masked in a forward that sees the others.
        groups: of "leave_one_out"; a row takes fewer where it has fewer drafts or cannot pay as many.
        rows, progress, block: of the loop.
        active_B: bool, rows that count the forwards.
    """
    gen_length = progress.tokens_BxL.shape[1] - rows.prompt_BxP.shape[1]
    key_mask_BxL = state.key_mask(rows, gen_length)
    tokens_Bxb, drafted_Bxb = block.of(progress.tokens_BxL), block.of(progress.drafted_BxL)

    def forward(hidden_Bxb: jax.Array) -> passes.Pass:
        """With these drafts masked."""
        shown_Bxb = jnp.where(hidden_Bxb, verifier.mask_id, tokens_Bxb)
        return passes.full(verifier, block.put(progress.tokens_BxL, shown_Bxb), key_mask_BxL, block)

    if view != "leave_one_out":
        done = forward(drafted_Bxb if view == "masked" else jnp.zeros_like(drafted_Bxb))
        return Seen(verifier.logits(done.h_BxbxC), done.cache, active_B.astype(jnp.int32), jnp.int32(1))

    payable_B = block.allowance - progress.spent_B
    groups_B = jnp.maximum(jnp.minimum(jnp.minimum(groups, jnp.sum(drafted_Bxb, axis=1)), payable_B), 1) * active_B
    # What is masked anyway is read from the first forward.
    group_Bxb = jnp.where(drafted_Bxb, (jnp.cumsum(drafted_Bxb, axis=1) - 1) % jnp.maximum(groups_B, 1)[:, None], 0)

    def of_group(carry):
        index, h_BxbxC, _ = carry
        is_here_Bxb = group_Bxb == index
        done = forward(drafted_Bxb & is_here_Bxb)
        return index + 1, jnp.where(is_here_Bxb[..., None], done.h_BxbxC, h_BxbxC), done.cache

    first = of_group((jnp.int32(0), 0.0, ()))
    count, h_BxbxC, cache = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(groups_B), of_group, first)
    return Seen(verifier.logits(h_BxbxC), cache, groups_B, count)


class Decision(NamedTuple):
    """What becomes of a block, bool `[B, b]` but for the tokens.

    Attributes:
        tokens_Bxb: int32, at every position that is accepted or replaced.
        accepted_Bxb: drafts that stay, as drafted or as the rule says.
        rejected_Bxb: drafts that do not.
        replaced_Bxb: positions that the verifier's own token takes, rejected or never drafted.
    """

    tokens_Bxb: jax.Array
    accepted_Bxb: jax.Array
    rejected_Bxb: jax.Array
    replaced_Bxb: jax.Array


def decide(
    rule: Rule,
    evidence: Evidence,
    drafted_Bxb: jax.Array,
    masked_Bxb: jax.Array,
    rejections_Bxb: jax.Array,
    is_last_B: jax.Array,
    *,
    first_rejection: bool,
    fix_up: int,
    max_rejections: int | None,
) -> Decision:
    """Applies a rule to the drafts of a block. Where anything is open, at least one position is settled.

    Args:
        rule: the rule.
        evidence: what the verifier says.
        drafted_Bxb: bool, drafts to judge.
        masked_Bxb: bool, positions without a draft.
        rejections_Bxb: int32, how often a draft was rejected there before.
        is_last_B: bool, rows that must settle everything now.
        first_rejection: reject with the first rejected, or still masked, position all drafts behind it.
        fix_up: how many masked positions take the verifier's token, the surest first (under `first_rejection` from
            left to right); where the rule accepts nothing, at least one.
        max_rejections: a position where drafts were rejected so often takes the verifier's token; None for no bound.
    """
    tokens_Bxb, rejected_Bxb = rule.judge(evidence)
    rejected_Bxb = rejected_Bxb & drafted_Bxb
    if first_rejection:
        rejected_Bxb = drafted_Bxb & (jnp.cumsum(rejected_Bxb | masked_Bxb, axis=1) > 0)
    accepted_Bxb = drafted_Bxb & ~rejected_Bxb
    open_Bxb = masked_Bxb | rejected_Bxb
    score_Bxb = evidence.prob_of(evidence.best_Bxb)
    if first_rejection:
        score_Bxb = -jnp.broadcast_to(jnp.arange(score_Bxb.shape[1], dtype=jnp.float32)[None], score_Bxb.shape)
    count_B = jnp.where(jnp.any(accepted_Bxb, axis=1), fix_up, max(fix_up, 1))
    replaced_Bxb = jax.vmap(best)(score_Bxb, open_Bxb, count_B) | (open_Bxb & is_last_B[:, None])
    if max_rejections is not None:
        replaced_Bxb |= rejected_Bxb & (rejections_Bxb + 1 >= max_rejections)
    tokens_Bxb = jnp.where(replaced_Bxb, evidence.best_Bxb, tokens_Bxb)
    return Decision(tokens_Bxb, accepted_Bxb, rejected_Bxb, replaced_Bxb)
