"""The plain masked-diffusion sampler: drafts only, every token of a window independent (METHOD.md section 5).

Same windows, orders, prompts and keys as `speculative.sample`; a pass costs `trunk_cost` on a hybrid network, 1 on a
plain one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import categorical
from ssmd_jax.sampling import budget, keys
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling.canvas import UNVERIFIED, Canvas, SampleResult
from ssmd_jax.sampling.config import Laws, SpeculativeConfig
from ssmd_jax.sampling.ordering import reorder_suffix


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
) -> SampleResult:
    """Draws samples from the drafts alone; arguments and result as in `speculative.sample`.

    Of `config`, `verify_rounds`, `draft_temperature` and `tie_first` play no part. All tokens count as unverified. With
    a budget, the last pass that can be paid takes all that is left.

    Raises:
        ValueError: bad arguments, or a budget below the cost of one pass.
    """
    prompt_BxD, given_BxD, lengths_B = canvas_lib.check_rows(model, batch_size, length, prompt, prompt_mask, lengths)
    purse, max_passes = budget.purse(config.budget_nfe, model.trunk_cost, 0.0)
    windows, size = budget.windows(config.window, lengths_B, length, max_passes)
    return _sample(
        model,
        keys.row_keys(key, batch_size),
        prompt_BxD,
        given_BxD,
        None if (lengths_B == length).all() else lengths_B,
        windows,
        purse,
        config.laws,
        size=size,
    )


@functools.partial(jax.jit, static_argnames=("size",))
def _sample(
    model, row_keys_B, prompt_BxD, given_BxD, lengths_B, windows, purse, laws: Laws, *, size: int
) -> SampleResult:
    if lengths_B is None:
        # A NumPy array is known while tracing: the model then needs no key lengths.
        lengths_B = np.full(prompt_BxD.shape[0], prompt_BxD.shape[1], np.int32)
    canvas = canvas_lib.start(
        row_keys_B, prompt_BxD, given_BxD, lengths_B, model.num_tokens, random_order=laws.order == "random"
    )

    def unfinished(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < lengths_B)

    def one_pass(canvas: Canvas) -> Canvas:
        start_B = canvas.num_revealed_B
        active_B = start_B < lengths_B
        if purse.budget is None:
            end_B = start_B + windows.plain(start_B)
        else:
            payable_B = purse.passes_payable(canvas.passes_B, canvas.rounds_B)
            merged_B = start_B + windows.merged(start_B, payable_B)
            end_B = jnp.where(payable_B > 1, merged_B, lengths_B)

        context = model.trunk(canvas.tokens_BxD, canvas.positions_BxD, start_B, lengths_B)
        canvas = canvas.replace(passes_B=canvas.passes_B + active_B)
        if laws.adaptive:
            context, positions_BxD = reorder_suffix(model, context, canvas, laws.order, row_keys_B, lengths_B, size)
            canvas = canvas.replace(positions_BxD=positions_BxD)
        draft_keys_B = keys.fold(keys.stream(row_keys_B, keys.DRAFT), canvas.passes_B)

        def has_rest(canvas: Canvas) -> jax.Array:
            return jnp.any(canvas.num_revealed_B < end_B)

        def one_chunk(canvas: Canvas) -> Canvas:
            start_B = canvas.num_revealed_B
            log_prob_BxSxV = laws.plain(model.draft_logits(context, start_B, size))
            tokens_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), log_prob_BxSxV)
            unverified_BxS = jnp.full_like(tokens_BxS, UNVERIFIED)
            none_BxS = jnp.full_like(tokens_BxS, model.num_tokens)
            count_B = jnp.clip(end_B - start_B, 0, size)
            return canvas_lib.reveal(canvas, tokens_BxS, unverified_BxS, none_BxS, count_B)

        # Without a budget one chunk is the whole window; the last pass of a budget may need several.
        return one_chunk(canvas) if purse.budget is None else jax.lax.while_loop(has_rest, one_chunk, canvas)

    canvas = jax.lax.while_loop(unfinished, one_pass, canvas)
    return canvas_lib.finish(canvas, model.trunk_cost, 0.0)
