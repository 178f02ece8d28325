"""Big-Little decoding on the hybrid network: BIASED, its samples follow neither draft nor target.

After the Big Little Decoder (Kim et al., arXiv 2302.07863): a small model writes, a large one is
asked where the small one is unsure (fallback), and overrules it where it finds the text unlikely (rollback). Here the
trunk's draft is the small one and the causal part the large one; the rest is ours. One verify round a pass, no chance
in what is accepted: a cheap alternative to accept and reject, to be compared with it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import categorical, shape_log_prob
from ssmd_jax.diffusion.window import ConstantWindow, Window
from ssmd_jax.sampling import canvas as canvas_lib
from ssmd_jax.sampling import keys, passes
from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, Canvas, SampleResult
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.passes import run_trunk, take_drafts
from ssmd_jax.sampling.request import Rows, Rules, prepare
from ssmd_jax.sampling.sharded import over_devices, place

# The small model of theirs writes at most so many tokens before the large one is asked.
DEFAULT_WINDOW = ConstantWindow(10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigLittleConfig:
    """Settings; fields that are not explained here as in `SpeculativeConfig`.

    Attributes:
        window: drafts a pass at most; theirs 10.
        fallback: the window ends at the first track whose largest draft probability is below this, and the target
            writes that track; theirs .6.
        rollback: nats; at the first draft with `-log q` above this, which is not the target's own first choice, the
            target writes instead; theirs 2 to 5.
        temperature: 0 is theirs: both take their first choice. Probabilities compared are those at 1.
    """

    window: Window = DEFAULT_WINDOW
    fallback: float = 0.6
    rollback: float = 5.0
    temperature: float = 1.0
    top_p: float = 1.0
    budget_nfe: float | None = None
    order: str = "random"

    def __post_init__(self):
        if not 0 <= self.fallback <= 1:
            raise ValueError(f"fallback must lie in [0, 1], got {self.fallback!r}")
        if not self.rollback >= 0:
            raise ValueError(f"rollback must be at least 0, got {self.rollback!r}")
        self.speculative()

    def speculative(self) -> SpeculativeConfig:
        """The same in the terms of the speculative sampler, which checks them."""
        return SpeculativeConfig(
            self.window, 1, self.budget_nfe, temperature=self.temperature, top_p=self.top_p, order=self.order
        )


def sample(
    model,
    key: jax.Array,
    config: BigLittleConfig,
    *,
    batch_size: int,
    length: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
    mesh: jax.sharding.Mesh | None = None,
) -> SampleResult:
    """Draws samples by fallback and rollback; arguments and result as in `speculative.sample`.

    Tokens that the target wrote count as replaced, the drafts that it overruled or made superfluous as rejected.

    Raises:
        ValueError: bad arguments, or a budget below the cost of one pass and one round.
    """
    rows, rules = prepare(
        model, key, config.speculative(), batch_size, length, prompt, prompt_mask, lengths,
        verify_cost=model.verify_cost, mesh=mesh,
    )  # fmt: skip
    limits = (config.fallback, config.rollback)
    return _sample(*place(mesh, model, rules, rows), limits=limits, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("limits", "mesh"))
def _sample(model, rules: Rules, rows: Rows, *, limits: tuple[float, float], mesh: jax.sharding.Mesh | None):
    one = functools.partial(one_pass, limits=limits)
    return over_devices(functools.partial(passes.run, one), mesh)(model, rules, rows)


def first_true(is_BxS: jax.Array, otherwise_B: jax.Array) -> jax.Array:
    """Index of the first True of each row, `otherwise` where there is none; int32 `[B]`."""
    return jnp.where(jnp.any(is_BxS, axis=1), jnp.argmax(is_BxS, axis=1), otherwise_B).astype(jnp.int32)


def one_pass(model, rules: Rules, rows: Rows, canvas: Canvas, *, limits: tuple[float, float]) -> Canvas:
    """One trunk pass and one round; arguments as in `speculative.one_pass`, `limits` are fallback and rollback."""
    lengths_B, start_B, size = rows.known_lengths(), canvas.num_revealed_B, rules.sizes[-1]
    fallback, rollback = limits
    window_B = rows.windows.plain(start_B)
    if rules.purse.budget is not None:
        payable_B = rules.purse.passes_payable(canvas.passes_B, canvas.rounds_B)
        window_B = rows.windows.merged(start_B, payable_B)

    context, canvas, draft_keys_B = run_trunk(model, canvas, rows.keys_B, lengths_B, rules.laws, size)
    logits_BxSxV = model.draft_logits(context, start_B, size)
    drafts_BxS = categorical(keys.fold_tracks(draft_keys_B, start_B, size), rules.laws.plain(logits_BxSxV))
    confidence_BxS = jnp.exp(jnp.max(shape_log_prob(logits_BxSxV), axis=-1))
    inside_BxS = jnp.arange(size)[None] < window_B[:, None]
    fallback_B = first_true(inside_BxS & (confidence_BxS < fallback), window_B)

    tokens_BxD = canvas_lib.write(canvas.tokens_BxD, drafts_BxS, start_B, window_B)
    target_BxSxV = model.target_logits(context, tokens_BxD, canvas.positions_BxD, start_B, size)
    loss_BxS = -jnp.take_along_axis(shape_log_prob(target_BxSxV), drafts_BxS[..., None], axis=-1)[..., 0]
    is_own_BxS = jnp.argmax(target_BxSxV, axis=-1) == drafts_BxS
    before_BxS = jnp.arange(size)[None] < fallback_B[:, None]
    cut_B = first_true(before_BxS & (loss_BxS > rollback) & ~is_own_BxS, fallback_B)

    is_cut_B = cut_B < window_B
    index_B = jnp.minimum(cut_B, size - 1)
    log_q_BxV = jnp.take_along_axis(rules.laws.plain(target_BxSxV), index_B[:, None, None], axis=1)[:, 0]
    verify_keys_B = keys.fold(keys.stream(rows.keys_B, keys.VERIFY), canvas.passes_B)
    written_B = categorical(keys.fold(verify_keys_B, start_B + index_B), log_q_BxV)
    is_written_BxS = (jnp.arange(size)[None] == cut_B[:, None]) & is_cut_B[:, None]
    canvas = canvas_lib.reveal(
        canvas.replace(rounds_B=canvas.rounds_B + (window_B > 0)),
        jnp.where(is_written_BxS, written_B[:, None], drafts_BxS),
        jnp.where(is_written_BxS, REPLACED, ACCEPTED),
        jnp.where(is_written_BxS, drafts_BxS, model.num_tokens),
        1,
        cut_B + is_cut_B,
    )
    if rules.purse.budget is None:
        return canvas
    is_broke_B = rules.purse.passes_payable(canvas.passes_B, canvas.rounds_B) < 1
    end_B = jnp.where(is_broke_B, lengths_B, canvas.num_revealed_B)
    return take_drafts(model, context, canvas, end_B, draft_keys_B, rules.laws.plain, (size,))
