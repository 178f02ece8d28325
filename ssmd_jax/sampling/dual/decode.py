"""Decoding by one network: LLaDA's sampler, Dream's, Fast-dLLM's and dKV-Cache's are settings of this loop.

Blocks go from left to right. In a block every pass commits some masked tokens of each row, for good. Rows that have
finished a block, or their text, wait for the others and count no forwards; a row's text does not depend on its mates.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.sampling.dual import draft, state
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.request import Rows, rows_of
from ssmd_jax.sampling.dual.state import Block, Progress, Result

# A budget without a bound.
BOUNDLESS = np.int32(2**30)


def sample(
    model, key: jax.Array, config: DecodeConfig, prompts: Sequence, *, prompt_length: int | None = None
) -> Result:
    """Generates text after prompts.

    Args:
        model: satisfies `ssmd_jax.sampling.dual.interface.MaskedModel`.
        key: one key, of which row `b` uses `fold_in(key, b)`, or an array of keys, one a row.
        config: the decoder.
        prompts: token ids, a sequence for each row, of any lengths.
        prompt_length: what prompts are padded to, on the left; None for the longest.

    Raises:
        ValueError: bad arguments, in one sentence.
    """
    rows = rows_of(model, key, prompts, config.gen_length, prompt_length)
    # The budget is an argument of the program: another one compiles nothing anew.
    fixed = dataclasses.replace(config, budget=None)
    return _sample(model, rows, BOUNDLESS if config.budget is None else np.int32(config.budget), config=fixed)


@functools.partial(jax.jit, static_argnames="config")
def _sample(model, rows: Rows, budget: jax.Array, *, config: DecodeConfig) -> Result:
    prompt_length = rows.prompt_BxP.shape[1]
    model = draft.guided(model, config, prompt_length)

    def finish_block(progress: Progress, block: Block) -> Progress:
        def active(progress: Progress) -> jax.Array:
            wants_B = jnp.any(block.of(progress.tokens_BxL) == model.mask_id, axis=1)
            if config.paper and config.feeding.caches:
                wants_B |= (progress.step == 1) & (progress.spent_B + config.cost <= block.allowance)
            return wants_B & ~progress.is_done_B

        def one_pass(progress: Progress) -> Progress:
            is_last_B = progress.spent_B + 2 * config.cost > block.allowance
            progress, _ = draft.draft_pass(model, config, rows, progress, block, active(progress), is_last_B)
            return state.with_ends(model, progress, prompt_length, config.eos_id)

        return jax.lax.while_loop(lambda progress: jnp.any(active(progress)), one_pass, progress)

    return run_blocks(model, config, rows, budget, config.cost, False, finish_block)


def run_blocks(model, config: DecodeConfig, rows: Rows, budget, least: int, keep_logits: bool, finish_block) -> Result:
    """The loop over blocks, from left to right, until all rows have ended.

    Args:
        model: the network that drafts.
        config: of the decoder.
        rows: prompts and keys.
        budget: int32 scalar, forwards that a row may spend.
        least: forwards that a block needs at least, and that are kept for each block to come.
        keep_logits: whether to keep the drafter's logits.
        finish_block: `(progress, block) -> progress` with nothing masked or unverified in the block.
    """
    batch, prompt_length = rows.prompt_BxP.shape
    cache = draft.empty_cache(model, config, batch, prompt_length + config.gen_length)
    progress = state.start(model, rows, config.gen_length, config.block, cache, keep_logits)

    def one_block(carry):
        index, progress = carry
        progress = draft.start_block(config, rows, progress, index)
        left = config.num_blocks - 1 - index
        block = Block(prompt_length + index * config.block, budget - least * left, config.block)
        return index + 1, finish_block(progress, block)

    unfinished = lambda carry: (carry[0] < config.num_blocks) & ~jnp.all(carry[1].is_done_B)
    _, progress = jax.lax.while_loop(unfinished, one_block, (jnp.int32(0), progress))
    return state.finish(progress, prompt_length, config.eos_id)
