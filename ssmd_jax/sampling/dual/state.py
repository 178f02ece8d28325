"""State of the loops, and what they return."""

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.sampling.dual.request import Rows


@flax.struct.dataclass
class Result:
    """Generated text and what it cost. A forward is one pass of a network over one row.

    Attributes:
        tokens: int32 `[B, G]`, the generated text; with `eos_id` all that follows the first end of text is end of text.
        num_tokens: int32 `[B]`, tokens up to the first end of text, that one included; `G` without `eos_id`.
        drafter_forwards: int32 `[B]`, those that the row needed; two a pass under guidance.
        verifier_forwards: int32 `[B]`.
        drafter_positions: int32 `[B]`, positions fed to the drafter, summed; padding is not counted.
        verifier_positions: int32 `[B]`.
        iterations: int32 `[B]`, rounds of drafting and verifying.
        accepted: int32 `[B]`, drafts that the rule accepted.
        rejected: int32 `[B]`, drafts that it rejected, counted each time.
        replaced: int32 `[B]`, tokens of the verifier's own. Without a verifier the last four are 0.
        drafter_passes, verifier_passes: int32 scalars, passes of the loop over the whole batch: what it computed, rows
            that waited included.
    """

    tokens: jax.Array
    num_tokens: jax.Array
    drafter_forwards: jax.Array
    verifier_forwards: jax.Array
    drafter_positions: jax.Array
    verifier_positions: jax.Array
    iterations: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    replaced: jax.Array
    drafter_passes: jax.Array
    verifier_passes: jax.Array


COUNTS = tuple(Result.__dataclass_fields__)[2:10]


@flax.struct.dataclass
class Progress:
    """State of a loop. `L` positions: prompt, then the text to generate; `b` those of the block.

    Attributes:
        tokens_BxL: the mask id where masked.
        drafted_BxL: bool, drafts that are not yet verified; none without a verifier.
        seen_BxL: bool, what was not masked at the start of the row's last pass.
        order_Bxb: float32, the random order of this block, highest first.
        cache: the drafter's.
        step: int32 scalar, draft passes since the block's start or the last refresh.
        moves_B: int32, the row's draft passes in this block.
        draft_log_prob_Bxb: float32, log-probability that the drafter gave its drafts.
        draft_logits_BxbxV: float32, its logits when it drafted them; None where no rule asks for them.
        rejections_Bxb: int32, how often a draft was rejected there.
        is_done_B: bool, rows that end at an end of text.
        counts: the fields `COUNTS` of `Result`.
        passes: int32 `[2]`, `drafter_passes` and `verifier_passes`.
    """

    tokens_BxL: jax.Array
    drafted_BxL: jax.Array
    seen_BxL: jax.Array
    order_Bxb: jax.Array
    cache: object
    step: jax.Array
    moves_B: jax.Array
    draft_log_prob_Bxb: jax.Array
    draft_logits_BxbxV: jax.Array | None
    rejections_Bxb: jax.Array
    is_done_B: jax.Array
    counts: dict[str, jax.Array]
    passes: jax.Array

    @property
    def spent_B(self) -> jax.Array:
        """Forwards so far."""
        return self.counts["drafter_forwards"] + self.counts["verifier_forwards"]

    def add(self, **counts: jax.Array) -> "Progress":
        """With more counted."""
        return self.replace(counts=self.counts | {name: self.counts[name] + more for name, more in counts.items()})


@flax.struct.dataclass
class Block:
    """The block that is being generated, and what its rows may spend.

    Attributes:
        start: int32 scalar, its first position.
        allowance: int32 scalar, forwards that a row may have spent by its end.
        size: static.
    """

    start: jax.Array
    allowance: jax.Array
    size: int = flax.struct.field(pytree_node=False)

    def of(self, x_BxL: jax.Array) -> jax.Array:
        """Its part of an array."""
        return jax.lax.dynamic_slice_in_dim(x_BxL, self.start, self.size, axis=1)

    def put(self, x_BxL: jax.Array, part_Bxb: jax.Array) -> jax.Array:
        """The array with its part replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x_BxL, part_Bxb, self.start, axis=1)


def start(model, rows: Rows, gen_length: int, block_length: int, cache, keep_logits: bool) -> Progress:
    """Before the first pass: the prompts and masks."""
    batch = rows.prompt_BxP.shape[0]
    masks_BxG = jnp.full((batch, gen_length), model.mask_id, jnp.int32)
    tokens_BxL = jnp.concatenate([jnp.asarray(rows.prompt_BxP), masks_BxG], axis=1)
    none_BxL, zeros_Bxb = jnp.zeros(tokens_BxL.shape, bool), jnp.zeros((batch, block_length))
    zeros_B = jnp.zeros(batch, jnp.int32)
    return Progress(
        tokens_BxL=tokens_BxL,
        drafted_BxL=none_BxL,
        seen_BxL=none_BxL,
        order_Bxb=zeros_Bxb,
        cache=cache,
        step=jnp.int32(0),
        moves_B=zeros_B,
        draft_log_prob_Bxb=zeros_Bxb,
        draft_logits_BxbxV=jnp.zeros((batch, block_length, model.vocab_size)) if keep_logits else None,
        rejections_Bxb=jnp.zeros(zeros_Bxb.shape, jnp.int32),
        is_done_B=jnp.zeros(batch, bool),
        counts=dict.fromkeys(COUNTS, zeros_B),
        passes=jnp.zeros(2, jnp.int32),
    )


def key_mask(rows: Rows, gen_length: int) -> jax.Array | None:
    """bool `[B, L]`, False at padding; None where there is none."""
    if rows.is_prompt_BxP is None:
        return None
    return jnp.concatenate(
        [jnp.asarray(rows.is_prompt_BxP), jnp.ones((rows.prompt_BxP.shape[0], gen_length), bool)], axis=1
    )


def with_ends(model, progress: Progress, prompt_length: int, eos_id: int | None) -> Progress:
    """Marks rows that have an end of text before which nothing is masked or unverified, so that nothing can change."""
    if eos_id is None:
        return progress
    generated_BxG = progress.tokens_BxL[:, prompt_length:]
    open_BxG = (generated_BxG == model.mask_id) | progress.drafted_BxL[:, prompt_length:]
    is_end_BxG = (generated_BxG == eos_id) & (jnp.cumsum(open_BxG, axis=1) == 0)
    return progress.replace(is_done_B=progress.is_done_B | jnp.any(is_end_BxG, axis=1))


def finish(progress: Progress, prompt_length: int, eos_id: int | None) -> Result:
    """The text after the prompts, padded behind its end."""
    tokens_BxG = progress.tokens_BxL[:, prompt_length:]
    num_tokens_B = jnp.full(tokens_BxG.shape[:1], tokens_BxG.shape[1], jnp.int32)
    if eos_id is not None:
        is_end_BxG = tokens_BxG == eos_id
        behind_BxG = jnp.cumsum(is_end_BxG, axis=1) > 0
        tokens_BxG = jnp.where(behind_BxG, eos_id, tokens_BxG)
        num_tokens_B = jnp.sum(~behind_BxG, axis=1, dtype=jnp.int32) + jnp.any(is_end_BxG, axis=1)
    return Result(
        tokens=tokens_BxG,
        num_tokens=num_tokens_B,
        **progress.counts,
        drafter_passes=progress.passes[0],
        verifier_passes=progress.passes[1],
    )
