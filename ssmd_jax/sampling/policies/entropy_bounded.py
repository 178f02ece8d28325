"""The entropy-bounded sampler (Ben-Hamu et al., arXiv 2505.24857)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policies.confidence import check_block, check_score
from ssmd_jax.sampling.policy import Move, Policy, View, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyBounded(Policy):
    """As many tokens as may depend on each other by no more than `gamma`, drawn independently.

    Masked positions by score, best first; the first `k` are revealed, `k` the largest with
    `sum_{m<=k} H_m - max_{m<=k} H_m <= gamma`, `H` the entropies of the draft. Always at least one; `gamma = 0` takes
    one, and those of no entropy.

    Attributes:
        gamma: nats; theirs is between .01 and 4 bits, often .1 nats.
        score: what orders the positions, of `choosing.SCORES`.
        block: positions of a block, blocks from left to right; None for the whole row.
    """

    gamma: float = 0.1
    score: str = "entropy"
    block: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.gamma < math.inf, self, "gamma", "be at least 0 and finite")
        check_score(self)
        check_block(self)

    def step(self, view: View, state) -> Move:
        key = view.step_key
        tokens_D = choosing.draw_tokens(self, view, key)
        candidate_D, _ = choosing.current_block(view, self.block)
        priority_D = choosing.score(self.score, view, tokens_D, key)
        rank_D = choosing.rank(priority_D, candidate_D)
        sorted_D = jnp.argsort(rank_D)
        entropy_D = jnp.where(candidate_D, choosing.entropy(view.logits_DxV), 0.0)[sorted_D]
        # All but the largest of the first k: it never falls as k grows, whatever the order.
        excess_D = jnp.cumsum(entropy_D) - jax.lax.cummax(entropy_D)
        fits_D = (excess_D <= self.gamma) | (view.positions_D == 0)
        return Move(
            tokens_D=tokens_D,
            reveal_D=candidate_D & fits_D[rank_D],
            remask_D=jnp.zeros_like(view.masked_D),
            state=state,
            priority_D=priority_D,
        )
