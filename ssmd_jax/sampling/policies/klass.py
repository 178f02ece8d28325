"""KLASS, stability by Kullback-Leibler divergence (arXiv 2511.05664)."""

import dataclasses
import math

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import shape_log_prob
from ssmd_jax.sampling.policies import choosing, confidence
from ssmd_jax.sampling.policy import Move, Policy, View, require, require_count


@flax.struct.dataclass
class _Seen:
    """Memory: what the last passes predicted.

    Attributes:
        log_prob_DxV: the distributions of the last pass.
        divergence_NxD: `KL(p || p of the pass before)` of the last `history` passes, nats; infinite before the first.
        place: in the schedule.
    """

    log_prob_DxV: jax.Array
    divergence_NxD: jax.Array
    place: confidence.Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Klass(Policy):
    """Reveals every token that is sure and whose distribution has stood still; if none, the surest few.

    Keeps the last distributions of every position: `D x V` float32 a row.

    Attributes:
        threshold: confidence of the drawn token, `> threshold`; theirs .6 to .9.
        divergence: nats, each of the last `history` divergences is below it; theirs .001 to .015.
        history: passes.
        steps: where no token is ready, the surest `masks of the block / steps of the block` are revealed.
        block: positions of a block, blocks from left to right; None for the whole row.
    """

    threshold: float = 0.6
    divergence: float = 0.01
    history: int = 2
    steps: int = 64
    block: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.threshold < math.inf, self, "threshold", "be at least 0 and finite")
        require(0 <= self.divergence < math.inf, self, "divergence", "be at least 0 and finite")
        require_count(self, "history")
        require_count(self, "steps")
        confidence.check_block(self)

    def init(self, masked_D, num_tokens):
        length = len(masked_D)
        return _Seen(jnp.zeros((length, num_tokens)), jnp.full((self.history, length), jnp.inf), confidence.start())

    def step(self, view: View, state: _Seen) -> Move:
        tokens_D = choosing.draw_tokens(self, view, view.step_key)
        log_prob_DxV = shape_log_prob(view.logits_DxV)
        prob_DxV = jnp.exp(log_prob_DxV)
        terms_DxV = jnp.where(prob_DxV > 0, prob_DxV * (log_prob_DxV - state.log_prob_DxV), 0.0)
        divergence_D = jnp.where(view.step > 0, jnp.sum(terms_DxV, axis=1), jnp.inf)
        divergence_NxD = jnp.concatenate([state.divergence_NxD[1:], divergence_D[None]])

        candidate_D, number = choosing.current_block(view, self.block)
        place = confidence.arrive(state.place, number, candidate_D)
        count = confidence.linear_count(place, confidence.steps_a_block(self.steps, view.length, self.block))
        priority_D = choosing.log_confidence(view, tokens_D)
        is_stable_D = jnp.all(divergence_NxD < self.divergence, axis=0)
        ready_D = candidate_D & is_stable_D & (jnp.exp(priority_D) > self.threshold)
        surest_D = choosing.top(priority_D, candidate_D, count)
        return Move(
            tokens_D=tokens_D,
            reveal_D=jnp.where(jnp.any(ready_D), ready_D, surest_D),
            remask_D=jnp.zeros_like(view.masked_D),
            state=_Seen(log_prob_DxV, divergence_NxD, place.replace(step=place.step + 1)),
            priority_D=priority_D,
        )
