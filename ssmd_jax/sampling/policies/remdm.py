"""ReMDM: revealed tokens may be masked again (arXiv 2503.00307).

From `t` to `s`, with a re-masking probability `sigma`: a revealed token is masked again with probability `sigma`; a
masked position is revealed with probability `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)`, so that the expected
number of masks is that of MDLM. With `sigma = 0` it is MDLM, draw for draw.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policies.grid import GridPolicy, Outcome, mdlm_grid
from ssmd_jax.sampling.policy import View, require

RULES = ("cap", "rescale", "conf", "loop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remdm(GridPolicy):
    """With `sigma_max = min(1, (1 - alpha_s) / alpha_t)`, `sigma` by one of four rules.

    Attributes:
        rule: "cap", `min(eta, sigma_max)`; "rescale", `eta sigma_max`; "conf", `sigma_max` times a softmax over the
            revealed positions of minus the probability that the token had when it was revealed; "loop", MDLM until
            `t_on`, then `sigma = eta` at a constant fraction `alpha_on` of revealed tokens until `t_off`, then MDLM.
            Unlike in their code, where a step keeps the phase that it starts in, each end of a step has the fraction of
            its own time, and a step across `t_on` or `t_off` masks nothing again: theirs overshoots `alpha_on`, little
            at their 1024 steps, and at 16 so far that it reveals all that is left. All other steps are theirs.
        eta: the scripts have .008 (cap), .015 (rescale) and .02 (loop) for 1024 steps; fewer steps want more.
        t_on, t_off, alpha_on: of "loop".
    """

    rule: str = "cap"
    eta: float = 0.008
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        require(self.rule in RULES, self, "rule", f"be one of {', '.join(RULES)}")
        require(0 <= self.eta <= 1, self, "eta", "lie in [0, 1]")
        require(0 < self.t_off < self.t_on < 1, self, "t_off", f"lie between 0 and t_on = {self.t_on}, below 1")
        require(0 < self.alpha_on < 1, self, "alpha_on", "lie in (0, 1)")
        if self.rule == "loop":
            most = (1 - self.alpha_on) / self.alpha_on
            require(self.eta <= most, self, "eta", f"be at most (1 - alpha_on) / alpha_on = {most:g} in the loop")

    def alphas(self) -> tuple[np.ndarray, np.ndarray]:
        """Kept fractions at the start and the end of each step, float64 `[T]` each."""
        t = mdlm_grid(self.steps).t
        if self.rule != "loop":
            return 1 - t[:-1], 1 - t[1:]
        kept = np.select(
            [t > self.t_on, t < self.t_off],
            [(1 - t) * self.alpha_on / (1 - self.t_on), 1 - t * (1 - self.alpha_on) / self.t_off],
            self.alpha_on,
        )
        return kept[:-1], kept[1:]

    @functools.cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float32 `[T]` each: what a masked position is revealed with at `sigma = 0`, what each unit of `sigma` adds
        to that, and `sigma`; under "conf" the last is `sigma_max`."""
        alpha_t, alpha_s = self.alphas()
        most = np.divide(1 - alpha_s, alpha_t, out=np.ones(self.steps), where=alpha_t > 1 - alpha_s)
        if self.rule == "loop":
            # Outside the loop the fraction grows at every step.
            sigma = np.where(alpha_t == alpha_s, self.eta, 0.0)
        else:
            sigma = {"cap": np.minimum(self.eta, most), "rescale": self.eta * most, "conf": most}[self.rule]
        tables = (alpha_s - alpha_t) / (1 - alpha_t), alpha_t / (1 - alpha_t), sigma
        return tuple(x.astype(np.float32) for x in tables)

    def extra(self, masked_D: jax.Array) -> jax.Array:
        return jnp.zeros(masked_D.shape, jnp.float32)

    def is_done(self, masked_D, moves, state):
        """Where nothing is masked, tokens may still be masked again, up to the end of the grid."""
        return ~jnp.any(masked_D) & (state.next >= self.steps)

    def outcome(self, view: View, extra: jax.Array, n: jax.Array, key: jax.Array) -> Outcome:
        length = len(view.masked_D)
        u, more, sigma = (jnp.asarray(x)[n] for x in self.tables)
        sigma_D = jnp.full(length, sigma)
        if self.rule == "conf":
            weight_D = jnp.where(view.revealed_D, jnp.exp(-extra), 0.0)
            sigma_D = sigma * weight_D / jnp.maximum(jnp.sum(weight_D), jnp.finfo(jnp.float32).tiny)
        return Outcome(
            choosing.uniform(key, choosing.POSITIONS, length) < u + sigma_D * more,
            choosing.uniform(key, choosing.REMASK, length) < sigma_D,
        )

    def updated(self, view: View, extra: jax.Array, outcome: Outcome, tokens_D: jax.Array) -> jax.Array:
        """The probability that each token had when it was revealed."""
        return jnp.where(outcome.reveal_D, jnp.exp(choosing.log_confidence(view, tokens_D)), extra)
