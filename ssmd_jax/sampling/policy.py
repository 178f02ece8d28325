"""One loop, many policies: a pass over the network, then a rule that says what to reveal and what to mask again.

A policy is a frozen dataclass whose methods are pure functions of ONE row in sequence order; the loop maps them over
the batch, so that a row cannot depend on its mates. The loop owns what every rule needs: prompts, lengths, the budget,
rows that finish on their own, and what a sample cost. The rules are in `ssmd_jax/sampling/policies/`.

What a `SampleResult` means where a token may be masked again: `revealed_in` is the last pass that revealed it, `order`
sorts positions by that pass (a pass's own by position), `rejected_token` is the last token that was masked again there,
all tokens count as unverified, and `verify_rounds` counts the evaluations of a critic.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion import orders
from ssmd_jax.diffusion.speculation import shape_log_prob
from ssmd_jax.sampling import budget, canvas, keys, sharded
from ssmd_jax.sampling.budget import Purse
from ssmd_jax.sampling.canvas import UNVERIFIED, SampleResult
from ssmd_jax.sampling.interface import prepared


class Critic(Protocol):
    """A second judge of complete rows, which some policies ask: a pytree, like a model.

    Attributes:
        cost: NFE of one evaluation.
    """

    cost: float

    def scores(self, tokens_BxD: jax.Array, lengths_B: Any) -> jax.Array:
        """float32 `[B, D]` in sequence order; what it means is between policy and critic."""
        ...


@flax.struct.dataclass
class View:
    """What a policy sees of one row after a trunk pass, in sequence order; padding is neither masked nor given.

    Attributes:
        key: the row's own; policies fold counters into it, never what depends on other rows.
        step: int32 scalar, moves of this row before this one.
        logits_DxV: the draft's logits given the revealed tokens; float32. At revealed positions they are what the
            network says there, for which it was not trained.
        tokens_D: int32, the mask id where masked.
        masked_D: bool.
        given_D: bool, the prompt.
        length: int32 scalar, tokens of the row.
        verdict_D: float32, the critic's scores of `Policy.complete`; None without a critic.
    """

    key: jax.Array
    step: jax.Array
    logits_DxV: jax.Array
    tokens_D: jax.Array
    masked_D: jax.Array
    given_D: jax.Array
    length: jax.Array
    verdict_D: jax.Array | None = None

    @property
    def step_key(self) -> jax.Array:
        """The key of this move."""
        return jax.random.fold_in(self.key, self.step)

    @property
    def positions_D(self) -> jax.Array:
        return jnp.arange(self.masked_D.shape[0])

    @property
    def revealed_D(self) -> jax.Array:
        """bool: revealed by the sampler, so that it may be masked again."""
        return ~self.masked_D & ~self.given_D & (self.positions_D < self.length)


@flax.struct.dataclass
class Move:
    """What a policy wants done with one row.

    Attributes:
        tokens_D: int32, a real token at every masked position, revealed now or not: the last pass that the budget pays
            reveals all of them.
        reveal_D: bool; only masked positions count.
        remask_D: bool; only positions that the sampler has revealed count.
        state: the policy's next state.
        priority_D: float32, higher for what the rule would rather reveal; wrappers choose by it.
    """

    tokens_D: jax.Array
    reveal_D: jax.Array
    remask_D: jax.Array
    state: Any
    priority_D: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What all policies share; a rule adds its fields and `step`. Hashable: it is compiled into the loop.

    `step` must come to an end: a policy that reveals nothing in a move must have moved a clock of its own.

    Attributes:
        temperature: of the tokens drawn; 0 takes the first maximum. Scores are those of the network, at 1.
        top_p: the nucleus of the tokens drawn; 1 keeps all.
        budget_nfe: hard bound on the NFE of each row; None for no bound. The last pass that can be paid reveals all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    budget_nfe: float | None = None

    def __post_init__(self):
        require(0 <= self.temperature < math.inf, self, "temperature", "be at least 0 and finite")
        require(0 < self.top_p <= 1, self, "top_p", "lie in (0, 1]")
        if self.budget_nfe is not None:
            require(0 < self.budget_nfe < math.inf, self, "budget_nfe", "be positive and finite")

    @property
    def asks_critic(self) -> bool:
        """Whether the policy needs a critic."""
        return False

    def log_prob(self, logits: jax.Array) -> jax.Array:
        """What tokens are drawn from, `[..., V]`."""
        temperature = None if self.temperature == 0 else self.temperature
        return shape_log_prob(logits, temperature, None if self.top_p == 1 else self.top_p)

    def init(self, masked_D: jax.Array, num_tokens: int) -> Any:
        """The state before the first pass, any pytree."""
        return ()

    def asks(self, view: View, state: Any) -> jax.Array:
        """bool scalar: whether this pass needs the critic."""
        return jnp.zeros((), bool)

    def complete(self, view: View, state: Any) -> jax.Array:
        """int32 `[D]`: the complete row that the critic is to judge."""
        raise NotImplementedError

    def is_done(self, masked_D: jax.Array, moves: jax.Array, state: Any) -> jax.Array:
        """bool scalar: whether the row is finished after so many moves; never while something is masked."""
        return ~jnp.any(masked_D)

    def step(self, view: View, state: Any) -> Move:
        """The rule."""
        raise NotImplementedError


def require(is_good: bool, policy, field: str, must: str) -> None:
    """Raises `ValueError` naming the policy's field unless `is_good`."""
    if not is_good:
        raise ValueError(f"{type(policy).__name__}: {field} must {must}, got {getattr(policy, field)!r}")


def require_count(policy, field: str) -> None:
    """Raises `ValueError` unless the policy's field is a whole number of at least 1."""
    value = getattr(policy, field)
    is_count = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(is_count and value >= 1, policy, field, "be a whole number of at least 1")


@flax.struct.dataclass
class _Rows:
    """What each row is given; fields as in `request.Rows`."""

    keys_B: jax.Array
    prompt_BxD: jax.Array
    given_BxD: jax.Array
    lengths_B: jax.Array | None


@flax.struct.dataclass
class _Rules:
    """What all rows share."""

    purse: Purse
    critic: Any


@flax.struct.dataclass
class _Progress:
    """State of the loop, in sequence order.

    Attributes:
        tokens_BxD: the mask id where masked and on padding.
        masked_BxD: bool.
        revealed_in_BxD: the last pass that revealed the token, 0 given, masked or padding.
        remasked_BxD: the last token that was masked again, the mask id where none.
        is_done_B: bool, finished rows.
        moves_B: moves so far.
        passes_B: trunk passes so far; a move of a row in which nothing is masked needs none.
        judged_B: evaluations of the critic so far.
        num_passes: int32 scalar, passes of the batch.
        state: the policy's, leading axis B.
    """

    tokens_BxD: jax.Array
    masked_BxD: jax.Array
    revealed_in_BxD: jax.Array
    remasked_BxD: jax.Array
    is_done_B: jax.Array
    moves_B: jax.Array
    passes_B: jax.Array
    judged_B: jax.Array
    num_passes: jax.Array
    state: Any


def sample(
    model,
    key: jax.Array,
    policy: Policy,
    *,
    batch_size: int,
    length: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
    mesh: jax.sharding.Mesh | None = None,
    critic: Critic | None = None,
) -> SampleResult:
    """Draws samples by a policy; arguments and result as in `speculative.sample`.

    A pass costs the model's `trunk_cost`, an evaluation of the critic its `cost`. Logits and probabilities of all
    positions are held at once, about four times `batch_size x length x V` float32, shared out over the devices.

    Args:
        policy: the rule, with temperature, nucleus and budget.
        critic: for policies that ask one.

    Raises:
        ValueError: bad arguments, a critic that is missing or not asked, or a budget below the cost of one pass.
    """
    prompt_BxD, given_BxD, lengths_B = canvas.check_rows(model, batch_size, length, prompt, prompt_mask, lengths)
    sharded.check_divisible(mesh, batch_size, "batch_size")
    if policy.asks_critic != (critic is not None):
        verb = "needs" if policy.asks_critic else "does not ask"
        raise ValueError(f"{type(policy).__name__} {verb} a critic")
    critic_cost = 0.0 if critic is None else critic.cost
    purse, _ = budget.purse(policy.budget_nfe, model.trunk_cost, critic_cost, "evaluation of the critic")
    rows = _Rows(keys.row_keys(key, batch_size), prompt_BxD, given_BxD, canvas.unless_full(lengths_B, length))
    # The purse has the budget: another one compiles nothing anew.
    policy = dataclasses.replace(policy, budget_nfe=None)
    return _sample(*sharded.place(mesh, model, _Rules(purse, critic), rows), policy=policy, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("policy", "mesh"))
def _sample(model, rules: _Rules, rows: _Rows, *, policy: Policy, mesh: jax.sharding.Mesh | None) -> SampleResult:
    return sharded.over_devices(functools.partial(_run, policy), mesh)(model, rules, rows)


def _run(policy: Policy, model, rules: _Rules, rows: _Rows) -> SampleResult:
    """Passes over all rows until the last is finished."""
    model = prepared(model)
    batch, length = rows.prompt_BxD.shape
    lengths_B = canvas.known_lengths(rows.lengths_B, batch, length)
    masked_BxD = (jnp.arange(length)[None] < lengths_B[:, None]) & ~rows.given_BxD
    zeros_B, zeros_BxD = jnp.zeros(batch, jnp.int32), jnp.zeros((batch, length), jnp.int32)
    progress = _Progress(
        tokens_BxD=jnp.asarray(rows.prompt_BxD),
        masked_BxD=masked_BxD,
        revealed_in_BxD=zeros_BxD,
        remasked_BxD=jnp.full_like(zeros_BxD, model.num_tokens),
        is_done_B=~jnp.any(masked_BxD, axis=1),
        moves_B=zeros_B,
        passes_B=zeros_B,
        judged_B=zeros_B,
        num_passes=jnp.int32(0),
        state=jax.vmap(lambda masked_D: policy.init(masked_D, model.num_tokens))(masked_BxD),
    )
    unfinished = lambda progress: ~jnp.all(progress.is_done_B)
    one_pass = lambda progress: _one_pass(policy, model, rules, rows, lengths_B, progress)
    progress = jax.lax.while_loop(unfinished, one_pass, progress)
    return _finish(model, rules, rows, lengths_B, progress)


def draft_logits(model, tokens_BxD: jax.Array, masked_BxD: jax.Array, lengths_B) -> jax.Array:
    """One trunk pass over rows in sequence order: the draft's logits at every position, float32 `[B, D, V]`.

    Revealed positions go first, masked ones behind them, each ascending: the model sees a revealed prefix.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens_BxD: the mask id where masked.
        masked_BxD: bool; padding is not masked.
        lengths_B: lengths of the rows.
    """
    batch, length = tokens_BxD.shape
    order_BxD = orders.ascending_order(lengths_B, length, ~masked_BxD)
    context = model.trunk(
        orders.to_order_space(tokens_BxD, order_BxD),
        order_BxD,
        (lengths_B - jnp.sum(masked_BxD, axis=1)).astype(jnp.int32),
        lengths_B,
    )
    logits_BxDxV = model.draft_logits(context, jnp.zeros(batch, jnp.int32), length)
    track_BxD = jnp.argsort(order_BxD, axis=1)
    return jnp.take_along_axis(logits_BxDxV, track_BxD[..., None], axis=1).astype(jnp.float32)


def _one_pass(policy: Policy, model, rules: _Rules, rows: _Rows, lengths_B, progress: _Progress) -> _Progress:
    """One move of every unfinished row, after a trunk pass if one of them has anything masked."""
    masked_BxD, mask_id = progress.masked_BxD, model.num_tokens
    active_B, needs_pass_B = ~progress.is_done_B, jnp.any(masked_BxD, axis=1)
    predict = lambda: draft_logits(model, progress.tokens_BxD, masked_BxD, lengths_B)
    no_logits = lambda: jnp.zeros((*masked_BxD.shape, mask_id), jnp.float32)
    is_pass = jnp.any(needs_pass_B)
    view = View(
        key=keys.stream(rows.keys_B, keys.POLICY),
        step=progress.moves_B,
        logits_DxV=jax.lax.cond(is_pass, predict, no_logits),
        tokens_D=progress.tokens_BxD,
        masked_D=masked_BxD,
        given_D=jnp.asarray(rows.given_BxD),
        length=jnp.asarray(lengths_B),
    )
    judged_B = progress.judged_B
    if policy.asks_critic:
        asks_B = jax.vmap(policy.asks)(view, progress.state) & active_B
        complete_BxD = jax.vmap(policy.complete)(view, progress.state)
        judge = lambda: rules.critic.scores(complete_BxD, lengths_B).astype(jnp.float32)
        no_verdict = lambda: jnp.zeros(complete_BxD.shape, jnp.float32)
        view = view.replace(verdict_D=jax.lax.cond(jnp.any(asks_B), judge, no_verdict))
        judged_B = judged_B + asks_B

    move = jax.vmap(policy.step)(view, progress.state)
    passes_B, moves_B = progress.passes_B + needs_pass_B, progress.moves_B + active_B
    reveal_BxD = move.reveal_D & masked_BxD
    remask_BxD = move.remask_D & jax.vmap(lambda row: row.revealed_D)(view) & active_B[:, None]
    is_broke_B = jnp.zeros_like(active_B)
    if rules.purse.budget is not None:
        is_broke_B = rules.purse.passes_payable(passes_B, judged_B) < 1
        reveal_BxD = jnp.where(is_broke_B[:, None], masked_BxD, reveal_BxD)
        remask_BxD &= ~is_broke_B[:, None]
    tokens_BxD = jnp.where(reveal_BxD, move.tokens_D.astype(jnp.int32), progress.tokens_BxD)
    revealed_in_BxD = jnp.where(reveal_BxD, passes_B[:, None], progress.revealed_in_BxD)
    masked_BxD = (masked_BxD & ~reveal_BxD) | remask_BxD
    freeze = lambda new, old: jnp.where(active_B.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
    state = jax.tree.map(freeze, move.state, progress.state)
    return _Progress(
        tokens_BxD=jnp.where(remask_BxD, mask_id, tokens_BxD),
        masked_BxD=masked_BxD,
        revealed_in_BxD=jnp.where(remask_BxD, 0, revealed_in_BxD),
        remasked_BxD=jnp.where(remask_BxD, progress.tokens_BxD, progress.remasked_BxD),
        is_done_B=progress.is_done_B | is_broke_B | jax.vmap(policy.is_done)(masked_BxD, moves_B, state),
        moves_B=moves_B,
        passes_B=passes_B,
        judged_B=judged_B,
        num_passes=progress.num_passes + is_pass,
        state=state,
    )


def _finish(model, rules: _Rules, rows: _Rows, lengths_B, progress: _Progress) -> SampleResult:
    """The totals; history by track, as the other samplers give it."""
    # Given positions were revealed in pass 0, so they come first anyway.
    order_BxD = orders.sort_order(progress.revealed_in_BxD, lengths_B, jnp.asarray(rows.given_BxD))
    revealed_in_BxD, remasked_BxD = (
        orders.to_order_space(x_BxD, order_BxD) for x_BxD in (progress.revealed_in_BxD, progress.remasked_BxD)
    )
    nothing_B = jnp.zeros_like(progress.passes_B)
    judge_cost = 0.0 if rules.critic is None else rules.critic.cost
    return SampleResult(
        tokens=progress.tokens_BxD,
        order=order_BxD,
        nfe=progress.passes_B * model.trunk_cost + progress.judged_B * judge_cost,
        trunk_passes=progress.passes_B,
        verify_rounds=progress.judged_B,
        accepted=nothing_B,
        rejected=nothing_B,
        unverified=jnp.sum(revealed_in_BxD > 0, axis=1).astype(jnp.int32),
        status=jnp.where(revealed_in_BxD > 0, UNVERIFIED, canvas.GIVEN),
        revealed_in=revealed_in_BxD,
        rejected_token=remasked_BxD,
        settled_in=jnp.zeros_like(revealed_in_BxD),
        rows_computed=(progress.num_passes * len(lengths_B))[None],
    )
