"""The plain masked-diffusion sampler: drafts only, every token of a window independent (METHOD.md section 5).

Same windows, orders, prompts and keys as `speculative.sample`; a pass costs `trunk_cost` on a hybrid network, 1 on a
plain one.
"""

import functools

import jax
import jax.numpy as jnp

from ssmd_jax.sampling import passes
from ssmd_jax.sampling.canvas import Canvas, SampleResult
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts
from ssmd_jax.sampling.request import Rows, Rules, prepare
from ssmd_jax.sampling.sharded import over_devices, place


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
    mesh: jax.sharding.Mesh | None = None,
) -> SampleResult:
    """Draws samples from the drafts alone; arguments and result as in `speculative.sample`.

    Of `config`, `verify_rounds`, `draft_temperature`, `tie_first`, `confidence_stop`, `divergence_stop` and
    `shared_noise` play no part.
    All tokens count as unverified. With a budget, the last pass that can be paid takes all that is left.

    Raises:
        ValueError: bad arguments, or a budget below the cost of one pass.
    """
    rows, rules = prepare(
        model, key, config, batch_size, length, prompt, prompt_mask, lengths, verify_cost=0.0, mesh=mesh
    )
    return _sample(*place(mesh, model, rules, rows), mesh=mesh)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _sample(model, rules: Rules, rows: Rows, *, mesh: jax.sharding.Mesh | None) -> SampleResult:
    return over_devices(functools.partial(passes.run, one_pass), mesh)(model, rules, rows)


def one_pass(model, rules: Rules, rows: Rows, canvas: Canvas) -> Canvas:
    """One trunk pass, whose window is revealed as drafted; arguments as in `speculative.one_pass`."""
    lengths_B = rows.known_lengths()
    start_B = canvas.num_revealed_B
    if rules.purse.budget is None:
        end_B = start_B + rows.windows.plain(start_B)
    else:
        payable_B = rules.purse.passes_payable(canvas.passes_B, canvas.rounds_B)
        merged_B = start_B + rows.windows.merged(start_B, payable_B)
        end_B = jnp.where(payable_B > 1, merged_B, lengths_B)

    context, canvas, draft_keys_B = run_trunk(model, canvas, rows.keys_B, lengths_B, rules.laws, rules.sizes[-1])
    return take_drafts(model, context, canvas, end_B, draft_keys_B, rules.laws.plain, rules.sizes)
