"""The plain masked-diffusion sampler: drafts only, every token of a window independent (METHOD.md section 5).

Same windows, orders, prompts and keys as `speculative.sample`; a pass costs `trunk_cost` on a hybrid network, 1 on a
plain one.
"""

import functools

import jax
import jax.numpy as jnp

from ssmd_jax.sampling import budget, keys
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling.canvas import Canvas, SampleResult
from ssmd_jax.sampling.config import Laws, SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts


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
        canvas_lib.unless_full(lengths_B, length),
        windows,
        purse,
        config.laws,
        size=size,
    )


@functools.partial(jax.jit, static_argnames=("size",))
def _sample(
    model, row_keys_B, prompt_BxD, given_BxD, lengths_B, windows, purse, laws: Laws, *, size: int
) -> SampleResult:
    lengths_B = canvas_lib.known_lengths(lengths_B, *prompt_BxD.shape)
    canvas = canvas_lib.start(
        row_keys_B, prompt_BxD, given_BxD, lengths_B, model.num_tokens, random_order=laws.order == "random"
    )

    def unfinished(canvas: Canvas) -> jax.Array:
        return jnp.any(canvas.num_revealed_B < lengths_B)

    def one_pass(canvas: Canvas) -> Canvas:
        start_B = canvas.num_revealed_B
        if purse.budget is None:
            end_B = start_B + windows.plain(start_B)
        else:
            payable_B = purse.passes_payable(canvas.passes_B, canvas.rounds_B)
            merged_B = start_B + windows.merged(start_B, payable_B)
            end_B = jnp.where(payable_B > 1, merged_B, lengths_B)

        context, canvas, draft_keys_B = run_trunk(model, canvas, row_keys_B, lengths_B, laws, size)
        return take_drafts(model, context, canvas, end_B, draft_keys_B, laws.plain, size)

    canvas = jax.lax.while_loop(unfinished, one_pass, canvas)
    return canvas_lib.finish(canvas, model.trunk_cost, 0.0)
