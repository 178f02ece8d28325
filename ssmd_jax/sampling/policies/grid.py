"""Ancestral sampling on a time grid, and one token at a time: MDLM, MD4, the first-hitting sampler.

Sources: MDLM (arXiv 2406.07524), MD4 (2406.04329), first hitting (2409.02908).

A step from `t` to `s` reveals each masked position with probability `u = (alpha_s - alpha_t) / (1 - alpha_t)`, and
draws its token from the draft. Whether and what are two draws: one categorical over the tokens and the mask, as those
codes have it, needs a Gumbel noise of more range than float32 has as soon as `u` is small (2409.02908).
"""

import dataclasses
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policy import Move, Policy, View, require, require_count

GRIDS = ("linear", "cosine")
# Of MDLM: the grid ends there, and of MD4: alpha keeps so far away from 0 and 1.
MDLM_END, MD4_EPS = 1e-5, 1e-4


class Grid(NamedTuple):
    """Times and kept fractions of the steps, float64 `[T + 1]`, from noise to data.

    Attributes:
        t: time, 1 is noise.
        alpha: fraction of the tokens that is kept.
    """

    t: np.ndarray
    alpha: np.ndarray


def mdlm_grid(steps: int) -> Grid:
    """MDLM: evenly from 1 to 1e-5, log-linear noise, `alpha = 1 - t`."""
    t = np.linspace(1, MDLM_END, steps + 1)
    return Grid(t, 1 - t)


def md4_grid(steps: int, name: str) -> Grid:
    """MD4: its linear schedule, `alpha = (1 - 2 eps) (1 - t) + eps`, on an even grid or on `cos(pi/2 (1 - t))`."""
    t = np.arange(steps, -1, -1) / steps
    t = np.cos(np.pi / 2 * (1 - t)) if name == "cosine" else t
    return Grid(t, (1 - 2 * MD4_EPS) * (1 - t) + MD4_EPS)


@flax.struct.dataclass
class Steps:
    """Where a row stands on its grid.

    Attributes:
        next: int32, the step to take next.
        extra: what a rule keeps besides.
    """

    next: jax.Array
    extra: Any = ()


class Outcome(NamedTuple):
    """What one step of the grid does: bool `[D]` each."""

    reveal_D: jax.Array
    remask_D: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridPolicy(Policy):
    """Steps on a time grid. A rule gives the grid and what one step does.

    When the grid is through, one more pass takes the likeliest token wherever a mask is left.

    Attributes:
        steps: `T`.
        skip: a step that changes nothing in the row costs no pass: the next one has the same distributions. Every step
            has a key of its own, so that skipping changes no token. MDLM does so where the whole batch stood still,
            here each row for itself.
    """

    steps: int = 128
    skip: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_count(self, "steps")

    def grid(self) -> Grid:
        """The times and kept fractions."""
        raise NotImplementedError

    def extra(self, masked_D: jax.Array) -> Any:
        """What a rule keeps besides its place on the grid."""
        return ()

    def outcome(self, view: View, extra: Any, n: jax.Array, key: jax.Array) -> Outcome:
        """Step `n`; the tokens it reveals have keys below the same key."""
        raise NotImplementedError

    def updated(self, view: View, extra: Any, outcome: Outcome, tokens_D: jax.Array) -> Any:
        """What a rule keeps, after a step."""
        return extra

    def init(self, masked_D: jax.Array, num_tokens: int) -> Steps:
        return Steps(jnp.int32(0), self.extra(masked_D))

    def step(self, view: View, state: Steps) -> Move:
        def going_on(carry):
            n, outcome = carry
            changed = jnp.any(outcome.reveal_D | outcome.remask_D)
            return (n < self.steps) & ~changed & (self.skip | (n == state.next))

        def one_step(carry):
            n, _ = carry
            outcome = self.outcome(view, state.extra, n, jax.random.fold_in(view.key, n))
            return n + 1, Outcome(outcome.reveal_D & view.masked_D, outcome.remask_D & view.revealed_D)

        nothing_D = jnp.zeros_like(view.masked_D)
        n, outcome = jax.lax.while_loop(going_on, one_step, (state.next, Outcome(nothing_D, nothing_D)))
        # With skipping, steps that changed nothing up to the end leave distributions that still hold.
        is_through = ~jnp.any(outcome.reveal_D | outcome.remask_D) & (n >= self.steps)
        is_through &= self.skip | (state.next >= self.steps)
        tokens_D = choosing.draw_tokens(self, view, jax.random.fold_in(view.key, n - 1))
        tokens_D = jnp.where(is_through, jnp.argmax(view.logits_DxV, axis=1), tokens_D).astype(jnp.int32)
        outcome = Outcome(outcome.reveal_D | is_through, outcome.remask_D)
        return Move(
            tokens_D=tokens_D,
            reveal_D=outcome.reveal_D,
            remask_D=outcome.remask_D,
            state=Steps(n, self.updated(view, state.extra, outcome, tokens_D)),
            priority_D=choosing.log_confidence(view, tokens_D),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mdlm(GridPolicy):
    """MDLM's sampler with its cache. At most as many passes as tokens."""

    def grid(self) -> Grid:
        return mdlm_grid(self.steps)

    def outcome(self, view, extra, n, key):
        return Outcome(reveal(view, self.grid(), n, key), jnp.zeros_like(view.masked_D))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Md4(GridPolicy):
    """MD4's ancestral sampler: every step is a pass, unless `skip`.

    Attributes:
        grid_name: "cosine" or "linear".
    """

    skip: bool = False
    grid_name: str = "cosine"

    def __post_init__(self):
        super().__post_init__()
        require(self.grid_name in GRIDS, self, "grid_name", f"be one of {', '.join(GRIDS)}")

    def grid(self) -> Grid:
        return md4_grid(self.steps, self.grid_name)

    def outcome(self, view, extra, n, key):
        return Outcome(reveal(view, self.grid(), n, key), jnp.zeros_like(view.masked_D))


def reveal_prob(grid: Grid) -> np.ndarray:
    """`u = (alpha_s - alpha_t) / (1 - alpha_t)` of each step, float32 `[T]`."""
    return ((grid.alpha[1:] - grid.alpha[:-1]) / (1 - grid.alpha[:-1])).astype(np.float32)


def reveal(view: View, grid: Grid, n: jax.Array, key: jax.Array) -> jax.Array:
    """bool `[D]`: the positions that step `n` without re-masking reveals, where they are masked."""
    return choosing.uniform(key, choosing.POSITIONS, len(view.masked_D)) < jnp.asarray(reveal_prob(grid))[n]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstHitting(Policy):
    """Tokens one at a time at uniformly random positions: MDLM's law for ever more steps.

    The times at which they are revealed matter to networks that are told the time, ours is not: they are left out.

    Attributes:
        passes: None for one token a pass; else the even grid of so many passes, after the i-th of which
            `floor(M (1 - i / passes))` of a row's `M` masks are left, each group drawn independently.
    """

    passes: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.passes is not None:
            require_count(self, "passes")

    def init(self, masked_D, num_tokens):
        return jnp.sum(masked_D)

    def step(self, view: View, state: jax.Array) -> Move:
        num_masked, key = jnp.sum(view.masked_D), view.step_key
        count = jnp.int32(1)
        if self.passes is not None:
            left = state * jnp.maximum(self.passes - 1 - view.step, 0) // self.passes
            count = jnp.maximum(num_masked - left, 1)
        priority_D = choosing.uniform(key, choosing.POSITIONS, len(view.masked_D))
        return Move(
            tokens_D=choosing.draw_tokens(self, view, key),
            reveal_D=choosing.top(priority_D, view.masked_D, count),
            remask_D=jnp.zeros_like(view.masked_D),
            state=state,
            priority_D=priority_D,
        )
