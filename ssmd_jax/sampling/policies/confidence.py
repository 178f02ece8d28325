"""Confidence rules: so many tokens a pass, the surest first; or all that are sure enough.

Sources: MaskGIT (arXiv 2202.04200), LLaDA (2502.09992), Fast-dLLM (2505.22618). Scores are of the
network's own distributions at temperature 1, tokens are drawn at the policy's. A confidence is that of the token drawn,
as in those codes: the rules prefer likely draws, so their law is not the draft's even at one token a pass.
"""

import dataclasses
import math

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policy import Move, Policy, View, require, require_count

SCHEDULES = ("linear", "cosine")


def check_score(policy, field: str = "score") -> None:
    """Raises `ValueError` unless the field names a score."""
    require(getattr(policy, field) in choosing.SCORES, policy, field, f"be one of {', '.join(choosing.SCORES)}")


def check_block(policy) -> None:
    """Raises `ValueError` unless `block` is None or a whole number of at least 1."""
    if policy.block is not None:
        require_count(policy, "block")


@flax.struct.dataclass
class Place:
    """Where a row stands in its schedule; int32 scalars.

    Attributes:
        block: the block in work, -1 before the first.
        step: passes over this block so far.
        total: masks that it had at first.
    """

    block: jax.Array
    step: jax.Array
    total: jax.Array


def start() -> Place:
    """Before the first pass."""
    return Place(jnp.int32(-1), jnp.int32(0), jnp.int32(0))


def arrive(place: Place, number: jax.Array, candidate_D: jax.Array) -> Place:
    """The place in block `number`, whose masked positions are the candidates: a new block starts at step 0."""
    is_new = number != place.block
    total = jnp.where(is_new, jnp.sum(candidate_D), place.total).astype(jnp.int32)
    return Place(number, jnp.where(is_new, 0, place.step), total)


def steps_a_block(steps: int, length: jax.Array, block: int | None) -> jax.Array:
    """Steps of each block of a row, at least 1: `steps // number of blocks`."""
    return jnp.int32(steps) if block is None else jnp.maximum(steps // -(-length // block), 1)


def linear_count(place: Place, steps: jax.Array) -> jax.Array:
    """LLaDA: `total / steps` tokens, the remainder one by one in the first steps; at least 1."""
    return jnp.maximum(place.total // steps + (place.step < place.total % steps), 1)


def cosine_count(place: Place, steps: jax.Array, num_masked: jax.Array) -> jax.Array:
    """MaskGIT: `ceil(total cos(pi/2 (i + 1) / steps))` masks are left after step `i` = 0, 1, ...; at least 1 token."""
    left = place.total * jnp.cos(jnp.pi / 2 * jnp.minimum((place.step + 1) / steps, 1.0))
    # The cosine of a quarter turn is no exact zero.
    return jnp.maximum(num_masked - jnp.ceil(left - 1e-4).astype(jnp.int32), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Policy):
    """A scheduled number of tokens a pass, best score first.

    Attributes:
        steps: passes of a full row.
        score: of `choosing.SCORES`.
        schedule: "linear" (LLaDA) or "cosine" (MaskGIT).
        block: positions of a block, blocks from left to right; None for the whole row.
        choice_temperature: times `1 - i / steps` of the Gumbel noise that is added to the score; MaskGIT has 4.5.
    """

    steps: int = 32
    score: str = "confidence"
    schedule: str = "linear"
    block: int | None = None
    choice_temperature: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require_count(self, "steps")
        check_score(self)
        check_block(self)
        require(self.schedule in SCHEDULES, self, "schedule", f"be one of {', '.join(SCHEDULES)}")
        require(0 <= self.choice_temperature < math.inf, self, "choice_temperature", "be at least 0 and finite")

    def init(self, masked_D, num_tokens):
        return start()

    def step(self, view: View, state: Place) -> Move:
        key = view.step_key
        tokens_D = choosing.draw_tokens(self, view, key)
        candidate_D, number = choosing.current_block(view, self.block)
        place = arrive(state, number, candidate_D)
        steps = steps_a_block(self.steps, view.length, self.block)
        if self.schedule == "linear":
            count = linear_count(place, steps)
        else:
            count = cosine_count(place, steps, jnp.sum(candidate_D))
        priority_D = choosing.score(self.score, view, tokens_D, key)
        if self.choice_temperature:
            scale = self.choice_temperature * jnp.maximum(1 - place.step / steps, 0.0)
            priority_D += scale * choosing.gumbel(key, choosing.REMASK, len(tokens_D))
        return Move(
            tokens_D=tokens_D,
            reveal_D=choosing.top(priority_D, candidate_D, count),
            remask_D=jnp.zeros_like(view.masked_D),
            state=place.replace(step=place.step + 1),
            priority_D=priority_D,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Policy):
    """Fast-dLLM's rule without its caches: every token with at least this confidence, and always the surest.

    Attributes:
        threshold: probability.
        block: as in `TopK`.
    """

    threshold: float = 0.9
    block: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.threshold < math.inf, self, "threshold", "be at least 0 and finite")
        check_block(self)

    def step(self, view: View, state) -> Move:
        tokens_D = choosing.draw_tokens(self, view, view.step_key)
        candidate_D, _ = choosing.current_block(view, self.block)
        priority_D = choosing.log_confidence(view, tokens_D)
        is_sure_D = candidate_D & (jnp.exp(priority_D) >= self.threshold)
        return Move(
            tokens_D=tokens_D,
            reveal_D=is_sure_D | choosing.top(priority_D, candidate_D, 1),
            remask_D=jnp.zeros_like(view.masked_D),
            state=state,
            priority_D=priority_D,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor(Policy):
    """Fast-dLLM's factor: the largest `n` with `(n + 1) (1 - c_n) < factor`, `c_n` the n-th confidence; at least 1.

    Attributes:
        factor: larger reveals more.
        block: as in `TopK`.
    """

    factor: float = 1.0
    block: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.factor < math.inf, self, "factor", "be at least 0 and finite")
        check_block(self)

    def step(self, view: View, state) -> Move:
        tokens_D = choosing.draw_tokens(self, view, view.step_key)
        candidate_D, _ = choosing.current_block(view, self.block)
        priority_D = choosing.log_confidence(view, tokens_D)
        rank_D = choosing.rank(priority_D, candidate_D)
        # Both factors grow along the ranks, so that what passes is a prefix.
        passes_D = candidate_D & ((rank_D + 2) * (1 - jnp.exp(priority_D)) < self.factor)
        return Move(
            tokens_D=tokens_D,
            reveal_D=passes_D | (candidate_D & (rank_D == 0)),
            remask_D=jnp.zeros_like(view.masked_D),
            state=state,
            priority_D=priority_D,
        )
