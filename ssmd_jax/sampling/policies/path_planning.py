"""Path planning (P2): every pass re-decides which tokens stand (arXiv 2502.03540)."""

import dataclasses
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import shape_log_prob
from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policy import Move, Policy, View, draft_logits, require, require_count

SCORES = ("confidence", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathPlanning(Policy):
    """After pass `i` of `steps` the `floor(M (1 - i / steps))` lowest of a row's `M` scores are masked, others stand.

    The score of a masked position is the log probability of the token drawn there, of a revealed one `eta` times that
    of the token that stands there: by the same pass, or by a planner that sees the complete row. Larger `eta` masks
    more again, 0 none. Their code draws a token anew at revealed positions and scores that one; here it is the token
    that would stay.

    A network that was trained on masked positions alone, as ours are, says nothing reliable at revealed ones: prefer a
    planner, or a small `eta`.

    Attributes:
        steps: passes, `T`.
        eta: at least 0.
        score: "confidence", or "random" for the log of a uniform number.
        planner: a critic gives the scores of revealed positions, log probabilities; see `ModelPlanner`.
    """

    steps: int = 32
    eta: float = 1.0
    score: str = "confidence"
    planner: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_count(self, "steps")
        require(0 <= self.eta < math.inf, self, "eta", "be at least 0 and finite")
        require(self.score in SCORES, self, "score", f"be one of {', '.join(SCORES)}")
        require(not (self.planner and self.score == "random"), self, "planner", "be False with random scores")

    @property
    def asks_critic(self):
        return self.planner

    def init(self, masked_D, num_tokens):
        return jnp.sum(masked_D)

    def asks(self, view: View, state) -> jax.Array:
        return jnp.any(view.revealed_D)

    def complete(self, view: View, state) -> jax.Array:
        return jnp.where(view.masked_D, choosing.draw_tokens(self, view, view.step_key), view.tokens_D)

    def step(self, view: View, state: jax.Array) -> Move:
        key, num_tokens = view.step_key, view.logits_DxV.shape[1]
        tokens_D = choosing.draw_tokens(self, view, key)
        stands_D = jnp.where(view.masked_D, tokens_D, jnp.minimum(view.tokens_D, num_tokens - 1))
        if self.score == "random":
            score_D = jnp.log(choosing.uniform(key, choosing.POSITIONS, len(tokens_D)))
        else:
            score_D = choosing.log_confidence(view, stands_D)
        if self.planner:
            score_D = jnp.where(view.revealed_D, view.verdict_D, score_D)
        # A score may be minus infinity, which no factor of 0 may turn into nan.
        again_D = self.eta * score_D if self.eta else jnp.zeros_like(score_D)
        score_D = jnp.where(view.revealed_D, again_D, score_D)
        left = state * jnp.maximum(self.steps - 1 - view.step, 0) // self.steps
        masked_D = choosing.top(-score_D, view.masked_D | view.revealed_D, left)
        return Move(tokens_D=tokens_D, reveal_D=~masked_D, remask_D=masked_D, state=state, priority_D=score_D)


@flax.struct.dataclass
class ModelPlanner:
    """A network as planner: the log probability that its draft gives to each token of the complete row.

    Attributes:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`; the sampled model itself or another one.
    """

    model: Any

    @property
    def cost(self) -> float:
        """NFE of one evaluation: a trunk pass."""
        return self.model.trunk_cost

    def scores(self, tokens_BxD: jax.Array, lengths_B) -> jax.Array:
        """Log probabilities, float32 `[B, D]`; arbitrary on padding."""
        nothing_BxD = np.zeros(tokens_BxD.shape, bool)
        log_prob_BxDxV = shape_log_prob(draft_logits(self.model, tokens_BxD, nothing_BxD, lengths_B))
        index_BxD = jnp.minimum(tokens_BxD, self.model.num_tokens - 1)
        return jnp.take_along_axis(log_prob_BxDxV, index_BxD[..., None], axis=-1)[..., 0]
