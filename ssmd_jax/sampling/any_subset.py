"""Two-pass any-subset speculation, ASSD (Guo and Ermon, arXiv 2504.20456).

A pass drafts `k` tokens; an oracle scores each given the drafts before it; those up to the first rejection are
accepted, and that one is replaced. So along a fixed order tokens follow the law of one token a pass, whatever `k` is:
unlike the target of SSMD it does not move with the trunk pass.

Theirs is a two-stream network, whose oracle is one pass. A masked-diffusion trunk has no causal order: here the oracle
is the `k` nested states as rows of one batch, `k` NFE, the first of which is the drafting pass itself. A round costs at
least as many evaluations as it reveals tokens: it saves passes one after the other, and with them seconds where the
device has room for more rows, never NFE.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import accept_reject_round, categorical
from ssmd_jax.diffusion.window import ConstantWindow
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling import keys, passes
from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, Canvas, SampleResult, check_count
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts
from ssmd_jax.sampling.request import Rows, Rules, prepare
from ssmd_jax.sampling.sharded import over_devices, place


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnySubsetConfig:
    """Settings; fields that are not explained here as in `SpeculativeConfig`.

    Attributes:
        drafts: `k`, tokens drafted a pass; theirs 5.
    """

    drafts: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    budget_nfe: float | None = None
    order: str = "random"

    def __post_init__(self):
        check_count("drafts", self.drafts)
        self.speculative()

    def speculative(self) -> SpeculativeConfig:
        """The same in the terms of the speculative sampler, which checks them."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "drafts"}
        return SpeculativeConfig(ConstantWindow(self.drafts), 1, **given)


def sample(
    model,
    key: jax.Array,
    config: AnySubsetConfig,
    *,
    batch_size: int,
    length: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
    mesh: jax.sharding.Mesh | None = None,
) -> SampleResult:
    """Draws samples by two-pass speculation; arguments and result as in `speculative.sample`.

    `verify_rounds` counts the nested states evaluated behind the first; each costs a trunk pass. A row's last pass that
    can be paid takes all that is left, unverified.

    Raises:
        ValueError: bad arguments, or a budget below the cost of one pass.
    """
    rows, rules = prepare(
        model, key, config.speculative(), batch_size, length, prompt, prompt_mask, lengths, verify_cost=0.0, mesh=mesh
    )
    return _sample(*place(mesh, model, rules, rows), size=min(config.drafts, length), mesh=mesh)


@functools.partial(jax.jit, static_argnames=("size", "mesh"))
def _sample(model, rules: Rules, rows: Rows, *, size: int, mesh: jax.sharding.Mesh | None) -> SampleResult:
    def loop(model, rules, rows):
        return passes.run(functools.partial(one_pass, size=size), model, rules, rows, model.trunk_cost)

    return over_devices(loop, mesh)(model, rules, rows)


def one_pass(model, rules: Rules, rows: Rows, canvas: Canvas, *, size: int) -> Canvas:
    """One pass that drafts, one that scores; arguments as in `speculative.one_pass`, `size` is `k`, static."""
    lengths_B, start_B = rows.known_lengths(), canvas.num_revealed_B
    window_B = jnp.minimum(lengths_B - start_B, size).astype(jnp.int32)
    states_payable = lambda canvas: rules.purse.passes_payable(canvas.passes_B + canvas.rounds_B, 0)
    if rules.purse.budget is not None:
        window_B = jnp.minimum(window_B, states_payable(canvas))

    context, canvas, draft_keys_B = run_trunk(model, canvas, rows.keys_B, lengths_B, rules.laws, size)
    log_p_BxSxV = rules.laws.plain(model.draft_logits(context, start_B, size))
    drafts_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), log_p_BxSxV)
    tokens_BxD = canvas_lib.write(canvas.tokens_BxD, drafts_BxS, start_B, window_B)
    oracle_logits = nested_logits(model, tokens_BxD, canvas.positions_BxD, start_B, window_B, lengths_B, size)
    # The first state is that of the drafting pass.
    log_q_BxSxV = jnp.concatenate([log_p_BxSxV[:, :1], rules.laws.plain(oracle_logits)], axis=1)
    verify_keys_B = keys.fold(keys.stream(rows.keys_B, keys.VERIFY), canvas.passes_B)
    outcome = accept_reject_round(
        keys.fold(verify_keys_B, jnp.zeros_like(start_B)),  # round 0, the only one
        drafts_BxS,
        log_p_BxSxV,
        log_q_BxSxV,
        start_B,
        jnp.zeros_like(start_B),
        window_B,
    )
    is_replaced_BxS = (jnp.arange(size)[None] == outcome.first_rejected[:, None]) & outcome.rejected[:, None]
    canvas = canvas_lib.reveal(
        canvas.replace(rounds_B=canvas.rounds_B + jnp.maximum(window_B - 1, 0)),
        jnp.where(is_replaced_BxS, outcome.replacement[:, None], drafts_BxS),
        jnp.where(is_replaced_BxS, REPLACED, ACCEPTED),
        jnp.where(is_replaced_BxS, drafts_BxS, model.num_tokens),
        0,
        jnp.where(outcome.rejected, outcome.first_rejected + 1, window_B),
    )
    if rules.purse.budget is None:
        return canvas
    end_B = jnp.where(states_payable(canvas) < 1, lengths_B, canvas.num_revealed_B)
    return take_drafts(model, context, canvas, end_B, draft_keys_B, rules.laws.plain, (size,))


def nested_logits(model, tokens_BxD, positions_BxD, start_B, window_B, lengths_B, size: int) -> jax.Array:
    """Draft logits of track `start + s` given all tokens before it, for `s` = 1..size-1: one batch of all states.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens_BxD: revealed and drafted tokens.
        positions_BxD: position of each track.
        start_B: revealed tokens.
        window_B: drafted tokens; rows at or behind it are arbitrary but finite.
        lengths_B: lengths of the rows.
        size: static.

    Returns:
        `[B, size - 1, V]`.
    """
    batch, count = len(start_B), size - 1
    if not count:
        return jnp.zeros((batch, 0, model.num_tokens), jnp.float32)
    each = lambda x_B: x_B.repeat(count, axis=0)
    shift_BxS = jnp.minimum(1 + jnp.arange(count)[None], jnp.maximum(window_B - 1, 0)[:, None])
    known_R = (start_B[:, None] + shift_BxS).reshape(-1).astype(jnp.int32)
    context = model.trunk(each(tokens_BxD), each(positions_BxD), known_R, each(lengths_B))
    return model.draft_logits(context, known_R, 1).reshape(batch, count, -1)
