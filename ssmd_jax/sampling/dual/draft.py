"""One draft pass: feed, propose, commit."""

import jax
import jax.numpy as jnp

from ssmd_jax.sampling import keys
from ssmd_jax.sampling.dual import passes, state
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.feeding import View
from ssmd_jax.sampling.dual.guidance import Guided
from ssmd_jax.sampling.dual.proposal import log_prob_of
from ssmd_jax.sampling.dual.request import Rows
from ssmd_jax.sampling.dual.state import Block, Progress


def guided(model, config: DecodeConfig, prompt_length: int):
    """The network as it drafts."""
    return Guided(model, config.guidance, prompt_length) if config.guidance else model


def empty_cache(model, config: DecodeConfig, batch: int, length: int):
    """The cache before the first pass; nothing for a decoder that keeps none."""
    return model.init_cache(batch, length) if config.feeding.caches else ()


def start_block(config: DecodeConfig, rows: Rows, progress: Progress, index: jax.Array) -> Progress:
    """The next block: nothing of the cache is kept."""
    batch, size = progress.order_Bxb.shape
    if config.feeding.plans_order:
        block_keys_B = keys.fold(keys.stream(rows.keys_B, keys.ORDER), jnp.full(batch, index))
        progress = progress.replace(order_Bxb=jax.vmap(lambda key: jax.random.uniform(key, (size,)))(block_keys_B))
    return progress.replace(
        step=jnp.int32(0),
        moves_B=jnp.zeros_like(progress.moves_B),
        rejections_Bxb=jnp.zeros_like(progress.rejections_Bxb),
    )


def draft_pass(
    model, config: DecodeConfig, rows: Rows, progress: Progress, block: Block, active_B: jax.Array, is_last_B: jax.Array
) -> tuple[Progress, jax.Array]:
    """One pass of the rows that are active; the others neither feed nor change.

    Args:
        model: as `guided` gives it.
        config, rows: of the decoder.
        progress: before the pass.
        block: the current one.
        active_B: bool.
        is_last_B: bool, rows that must commit all of the block now.

    Returns:
        Progress with the tokens committed, and bool `[B, b]`, which those are.
    """
    prompt_length, length = rows.prompt_BxP.shape[1], progress.tokens_BxL.shape[1]
    key_mask_BxL = state.key_mask(rows, config.gen_length)
    known_BxL = progress.tokens_BxL != model.mask_id
    candidate_Bxb = ~block.of(known_BxL) & active_B[:, None]
    steps, size = config.steps_per_block, block.size

    feeding = config.feeding
    pass_keys_B = keys.fold(keys.stream(rows.keys_B, keys.DRAFT), progress.counts["drafter_forwards"])
    choose = jax.vmap(lambda *args: config.commit.choose(*args[:3], steps, args[3]))
    chosen_Bxb = candidate_Bxb
    if feeding.plans_order:
        chosen_Bxb = choose(progress.order_Bxb, candidate_Bxb, progress.moves_B, pass_keys_B)
        chosen_Bxb = jnp.where(is_last_B[:, None], candidate_Bxb, chosen_Bxb)
    is_full = feeding.is_full(progress.step)
    view = View(
        step=progress.step,
        start=block.start,
        stop=block.start + size,
        prompt_length=prompt_length,
        known_BxL=known_BxL,
        seen_BxL=progress.seen_BxL,
        next_BxL=block.put(jnp.zeros_like(known_BxL), chosen_Bxb),
        most=-(-size // steps),
    )
    # What must be committed now must be predicted now, wherever its vector was kept until now.
    needed_Bxb = candidate_Bxb & is_last_B[:, None]
    needed_BxL = jnp.zeros_like(known_BxL).at[:, passes.sources(model, block)].max(needed_Bxb)
    fed_BxL = (feeding.fed(view) | needed_BxL) & active_B[:, None]
    sizes = tuple(sorted({min(size, length) for size in feeding.sizes(config.gen_length, size, steps)}))
    done = passes.run(model, progress.tokens_BxL, key_mask_BxL, block, progress.cache, is_full, fed_BxL, sizes)

    candidate_Bxb &= done.available_Bxb
    logits_BxbxV = model.logits(done.h_BxbxC)
    first_B = jnp.broadcast_to(block.start - prompt_length, active_B.shape)
    tokens_Bxb, score_Bxb = config.proposal.propose(
        keys.fold_tracks(pass_keys_B, first_B, size), logits_BxbxV, model.mask_id
    )
    if not feeding.plans_order:
        chosen_Bxb = choose(score_Bxb, candidate_Bxb, progress.moves_B, pass_keys_B)
        if model.shifts and feeding.first_alone:
            is_alone_B = (progress.step == 0) & candidate_Bxb[:, 0]
            first_1xb = jnp.arange(size)[None] == 0
            chosen_Bxb = jnp.where(is_alone_B[:, None], first_1xb, chosen_Bxb)
        chosen_Bxb = jnp.where(is_last_B[:, None], candidate_Bxb, chosen_Bxb)
    chosen_Bxb &= candidate_Bxb

    keep = lambda new, old: jnp.where(chosen_Bxb, new, old)
    if progress.draft_logits_BxbxV is not None:
        kept_logits = jnp.where(chosen_Bxb[..., None], logits_BxbxV, progress.draft_logits_BxbxV)
        progress = progress.replace(draft_logits_BxbxV=kept_logits)
    real_BxL = jnp.ones_like(known_BxL) if key_mask_BxL is None else key_mask_BxL
    positions_B = jnp.sum(jnp.where(is_full, real_BxL, fed_BxL & real_BxL), axis=1)
    progress = progress.add(
        drafter_forwards=config.cost * active_B, drafter_positions=config.cost * positions_B * active_B
    )
    progress = progress.replace(
        tokens_BxL=block.put(progress.tokens_BxL, keep(tokens_Bxb, block.of(progress.tokens_BxL))),
        draft_log_prob_Bxb=keep(log_prob_of(logits_BxbxV, tokens_Bxb), progress.draft_log_prob_Bxb),
        seen_BxL=jnp.where(active_B[:, None], known_BxL, progress.seen_BxL),
        cache=done.cache if feeding.caches else (),
        step=progress.step + 1,
        moves_B=progress.moves_B + active_B,
        passes=progress.passes + jnp.array([1, 0]),
    )
    return progress, chosen_Bxb
