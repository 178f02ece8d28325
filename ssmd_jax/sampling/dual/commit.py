"""Which of a block's proposals a draft pass commits: pure functions of one row's scores.

Ties go to the lower position. A rule is a frozen dataclass, compiled into the loop.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp


class Commit(Protocol):
    """A rule."""

    def choose(self, score_b: jax.Array, candidate_b: jax.Array, step: jax.Array, steps: int, key: jax.Array):
        """bool `[b]`, among the candidates.

        Args:
            score_b: float32, higher for surer.
            candidate_b: bool, masked positions that this pass has proposals for.
            step: int32 scalar, the row's draft passes in this block before this one.
            steps: draft passes that the schedule gives to a block.
            key: of this row and pass.
        """
        ...


def require_number(rule, field: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises `ValueError` unless a rule's field is a finite number within its bounds."""
    value = getattr(rule, field)
    if not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        bounds = {"at least": least, "at most": most}
        said = "".join(f", {word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{type(rule).__name__}: {field} must be a finite number{said}, got {value!r}")


def ranks(score_b: jax.Array, candidate_b: jax.Array) -> jax.Array:
    """Place of each candidate by score, from 0; the others come behind."""
    order_b = jnp.argsort(jnp.where(candidate_b, -score_b, jnp.inf), stable=True)
    return jnp.argsort(order_b)


def best(score_b: jax.Array, candidate_b: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    """bool: the `count` best candidates, all where there are fewer."""
    return candidate_b & (ranks(score_b, candidate_b) < count)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """LLaDA's schedule: `block / steps` tokens a pass, the remainder one each to the first passes."""

    def choose(self, score_b, candidate_b, step, steps, key):
        size = score_b.shape[0]
        return best(score_b, candidate_b, size // steps + (step < size % steps))


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Fast-dLLM's confidence threshold: the best, and every candidate whose score is at least `tau`."""

    tau: float = 0.9

    def __post_init__(self):
        # Unbounded: scores may be entropies, or noisy.
        require_number(self, "tau")

    def choose(self, score_b, candidate_b, step, steps, key):
        return best(score_b, candidate_b, 1) | (candidate_b & (score_b >= self.tau))


@dataclasses.dataclass(frozen=True)
class Factor:
    """Fast-dLLM's factor: the r-th best needs a score of at least `1 - factor / (r + 1)`, the first needs none.

    The candidates before the first that fails are committed.

    Attributes:
        factor: larger commits more.
        paper: as the public code, commit all where the last candidate alone fails.
    """

    factor: float = 1.0
    paper: bool = False

    def __post_init__(self):
        require_number(self, "factor", least=0)

    def choose(self, score_b, candidate_b, step, steps, key):
        place_b, count = ranks(score_b, candidate_b), jnp.sum(candidate_b)
        ranked_b = jnp.where(candidate_b, score_b, -jnp.inf)[jnp.argsort(place_b)]
        rank_b = jnp.arange(1, score_b.shape[0] + 1)
        passes_b = (rank_b == 1) | (ranked_b >= 1 - self.factor / (rank_b + 1))
        good = jnp.sum(jnp.cumprod(passes_b & (rank_b <= count)))
        if self.paper:
            good = jnp.where(good == count - 1, count, good)
        return candidate_b & (place_b < good)


@dataclasses.dataclass(frozen=True)
class Timesteps:
    """Dream's schedule: of the masked tokens the share `1 - s / t`, rounded down, as time goes from t to s; the last
    step commits the rest. Times are `linspace(1, eps, steps + 1)`."""

    eps: float = 1e-3

    def __post_init__(self):
        require_number(self, "eps", least=0, most=1)

    def choose(self, score_b, candidate_b, step, steps, key):
        count = jnp.floor(jnp.sum(candidate_b) * _share(self.eps, step, steps)).astype(jnp.int32)
        return best(score_b, candidate_b, jnp.where(step >= steps - 1, score_b.shape[0], count))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Dream's "origin": each masked token by itself with probability `1 - s / t`; the last step commits the rest."""

    eps: float = 1e-3

    def __post_init__(self):
        require_number(self, "eps", least=0, most=1)

    def choose(self, score_b, candidate_b, step, steps, key):
        drawn_b = jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n)))(jnp.arange(score_b.shape[0]))
        return candidate_b & ((drawn_b < _share(self.eps, step, steps)) | (step >= steps - 1))


def _share(eps: float, step: jax.Array, steps: int) -> jax.Array:
    """`1 - s / t` of a step, float32."""
    time = jnp.linspace(1, eps, steps + 1, dtype=jnp.float32)
    step = jnp.minimum(step, steps - 1)
    return 1 - time[step + 1] / time[step]
