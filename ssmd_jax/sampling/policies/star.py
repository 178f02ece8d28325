"""Star-shaped sampling with a learned error head, G-Star (arXiv 2510.08369)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policy import Move, Policy, View, require, require_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Star(Policy):
    """MDLM's steps while `t > t_on`; then every pass completes the row and masks anew what looks wrong.

    On the grid `t = 1, 1 - 1/T, ..., 0` a step from `t <= t_on` to `s` fills all masks from the draft, and of the `M`
    tokens of the row masks `ceil(s M)`: those largest by error logit over `remask_temperature`, plus Gumbel noise. The
    logits come from a critic, such as `ssmd_jax.model.error_head`; without guidance all tokens are alike. Every step is
    a pass, a guided one an evaluation of the critic too; the last masks nothing and asks nobody.

    Attributes:
        steps: `T`.
        t_on: in [0, 1].
        guided: ask a critic.
        remask_temperature: positive.
    """

    steps: int = 32
    t_on: float = 0.55
    guided: bool = True
    remask_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_count(self, "steps")
        require(0 <= self.t_on <= 1, self, "t_on", "lie in [0, 1]")
        require(0 < self.remask_temperature < math.inf, self, "remask_temperature", "be positive and finite")

    @property
    def asks_critic(self):
        return self.guided

    def init(self, masked_D, num_tokens):
        return jnp.sum(masked_D)

    def is_done(self, masked_D, moves, state):
        """Where MDLM's steps leave no mask, the later ones still look for errors."""
        return ~jnp.any(masked_D) & (moves >= self.steps)

    def _steps_left(self, view: View) -> jax.Array:
        """Whole steps from `t` to the end, `t T`."""
        return jnp.maximum(self.steps - view.step, 1)

    def _is_star(self, view: View) -> jax.Array:
        return self._steps_left(view) <= self.t_on * self.steps

    def asks(self, view: View, state) -> jax.Array:
        return self._is_star(view) & (self._steps_left(view) > 1)

    def complete(self, view: View, state) -> jax.Array:
        return jnp.where(view.masked_D, choosing.draw_tokens(self, view, view.step_key), view.tokens_D)

    def step(self, view: View, state: jax.Array) -> Move:
        key, left = view.step_key, self._steps_left(view)
        length = len(view.masked_D)
        tokens_D = choosing.draw_tokens(self, view, key)
        reveal_D = choosing.uniform(key, choosing.POSITIONS, length) < 1 / left

        error_D = view.verdict_D / self.remask_temperature if self.guided else jnp.zeros(length)
        error_D += choosing.gumbel(key, choosing.REMASK, length)
        num_masked = -(-state * (left - 1) // self.steps)
        masked_D = choosing.top(error_D, view.masked_D | view.revealed_D, num_masked)
        is_star = self._is_star(view)
        return Move(
            tokens_D=tokens_D,
            reveal_D=jnp.where(is_star, ~masked_D, reveal_D),
            remask_D=is_star & masked_D,
            state=state,
            priority_D=-error_D,
        )
