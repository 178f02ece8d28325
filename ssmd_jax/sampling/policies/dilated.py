"""Dilated unmasking, and its spacing filter for other policies (DUS, arXiv 2506.19037)."""

import dataclasses
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.orders import dilated_strides
from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policies.confidence import check_block
from ssmd_jax.sampling.policy import Move, Policy, View, require, require_count


@flax.struct.dataclass
class _Level:
    """The block in work, -1 before the first, and the first level that it has not been through, or the last; int32
    scalars."""

    block: jax.Array
    level: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dilated(Policy):
    """Blocks from left to right; in a block first every so many positions, then those halfway between, and so on.

    Level `l` of a block of `B` positions takes those that are multiples of `B // base^(l+1)`, counted in the block,
    and still masked; the last level takes all. A pass a level: `ceil(log_base B)` of them, fewer where a prompt leaves
    a level nothing to do.

    Attributes:
        block: `B`.
        base: by which the stride shrinks.
        threshold: a token below this confidence waits for the next level that its position belongs to; the last level
            takes all. 0 never waits; their code has .3.
    """

    block: int = 32
    base: int = 2
    threshold: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require_count(self, "block")
        require_count(self, "base")
        require(self.base >= 2, self, "base", "be at least 2")
        require(0 <= self.threshold <= 1, self, "threshold", "lie in [0, 1]")

    def init(self, masked_D, num_tokens):
        return _Level(jnp.int32(-1), jnp.int32(0))

    def step(self, view: View, state: _Level) -> Move:
        strides = dilated_strides(self.block, self.base)
        num_levels = len(strides)
        candidate_D, number = choosing.current_block(view, self.block)
        level = jnp.where(number == state.block, state.level, 0)
        belongs_LxD = view.positions_D[None] % self.block % np.array(strides)[:, None] == 0
        levels_Lx1 = jnp.arange(num_levels)[:, None]
        next_D = jnp.min(jnp.where(belongs_LxD & (levels_Lx1 >= level), levels_Lx1, num_levels), axis=0)
        level = jnp.min(jnp.where(candidate_D, next_D, num_levels))

        tokens_D = choosing.draw_tokens(self, view, view.step_key)
        priority_D = choosing.log_confidence(view, tokens_D)
        is_sure_D = (jnp.exp(priority_D) >= self.threshold) | (level == num_levels - 1)
        return Move(
            tokens_D=tokens_D,
            reveal_D=candidate_D & (next_D == level) & is_sure_D,
            remask_D=jnp.zeros_like(view.masked_D),
            # A filter around this rule may leave masks behind the last level: that level is then gone through again.
            state=_Level(number, jnp.minimum(level + 1, num_levels - 1).astype(jnp.int32)),
            priority_D=priority_D,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spaced(Policy):
    """Of what another policy reveals, only positions far from each other, by its own priority, best first.

    A position is kept if it stands at least `max(2, floor(masked gap / B))` from all kept so far, `masked` of the `B`
    positions of its block being masked: wide gaps early, none but neighbours late. What is dropped stays masked.
    Temperature and nucleus are those of the other policy, the budget is its own.

    Attributes:
        inner: the other policy.
        gap: positions, at a block that is all masked.
        block: that of the other policy; None for the whole row.
    """

    inner: Policy
    gap: float = 8.0
    block: int | None = None

    def __post_init__(self):
        require(isinstance(self.inner, Policy), self, "inner", "be a policy")
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, getattr(self.inner, name))
        super().__post_init__()
        require(0 <= self.gap < math.inf, self, "gap", "be at least 0 and finite")
        check_block(self)

    @property
    def asks_critic(self):
        return self.inner.asks_critic

    def init(self, masked_D, num_tokens):
        return self.inner.init(masked_D, num_tokens)

    def asks(self, view, state):
        return self.inner.asks(view, state)

    def complete(self, view, state):
        return self.inner.complete(view, state)

    def is_done(self, masked_D, moves, state):
        return self.inner.is_done(masked_D, moves, state)

    def step(self, view: View, state) -> Move:
        move = self.inner.step(view, state)
        reveal_D = move.reveal_D & view.masked_D
        candidate_D, _ = choosing.current_block(view, self.block)
        size = view.length if self.block is None else self.block
        gap = jnp.maximum(2, jnp.floor(jnp.sum(candidate_D) * self.gap / size)).astype(jnp.int32)
        best_D = jnp.argsort(choosing.rank(move.priority_D, reveal_D))

        def consider(n, kept_D):
            position = best_D[n]
            is_near = jnp.any(kept_D & (jnp.abs(view.positions_D - position) < gap))
            return kept_D.at[position].set(reveal_D[position] & ~is_near)

        kept_D = jax.lax.fori_loop(0, len(best_D), consider, jnp.zeros_like(reveal_D))
        return move.replace(reveal_D=kept_D)
