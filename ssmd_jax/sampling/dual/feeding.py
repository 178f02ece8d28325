"""Which positions a draft pass feeds: every cached decoder is such a choice.

What is not fed is attended to by the keys and values of its last feeding. `step` counts a block's passes since its
start or since the last refresh by the verifier, from 0.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.sizes import even_sizes


class View(NamedTuple):
    """What a choice may depend on. `L` positions: prompt, then the text to generate.

    Attributes:
        step: int32 scalar.
        start, stop: int32 scalars, bounds of the block.
        prompt_length: static.
        known_BxL: bool, tokens that are not masked; padding counts.
        seen_BxL: bool, those that were not at the start of the row's last pass.
        next_BxL: bool, what the pass is to commit, where that is settled beforehand (`plans_order`).
        most: static, tokens that a pass of the schedule commits at most.
    """

    step: jax.Array
    start: jax.Array
    stop: jax.Array
    prompt_length: int
    known_BxL: jax.Array
    seen_BxL: jax.Array
    next_BxL: jax.Array
    most: int

    @property
    def slots_1xL(self) -> jax.Array:
        return jnp.arange(self.known_BxL.shape[1])[None]


@dataclasses.dataclass(frozen=True)
class Feeding:
    """Base of all choices: feeds everything, always (no cache).

    Class attributes:
        caches: whether anything is ever kept.
        plans_order: whether the order of a block is drawn at its start, so that a pass knows what it will commit.
        first_alone: whether the full pass at a block's start commits the block's first token alone where the network
            shifts: later passes, which feed from that position on, have no vector that predicts it.
    """

    caches = False
    plans_order = False
    first_alone = False

    def sizes(self, gen_length: int, block_length: int, steps: int) -> tuple[int, ...]:
        """Numbers of fed positions that are compiled, ascending; a pass takes the least that holds what it feeds."""
        return ()

    def is_full(self, step: jax.Array) -> jax.Array:
        """bool scalar: whether the pass feeds everything."""
        return jnp.ones((), bool)

    def fed(self, view: View) -> jax.Array:
        """bool `[B, L]`: what a pass feeds that is not full."""
        return jnp.ones_like(view.known_BxL)

    @property
    def step_after_refresh(self) -> int:
        """The next pass's step after a full pass of the verifier with the same weights."""
        return 1


def _require_counts(feeding: Feeding, *fields: str) -> None:
    """Raises `ValueError` unless these fields are whole numbers of at least 1."""
    for field in fields:
        value = getattr(feeding, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} must be a whole number of at least 1, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Prefix(Feeding):
    """Fast-dLLM's prefix cache (arXiv 2505.22618): a full pass at a block's start, then all from the block on.

    Attributes:
        buckets: numbers of positions that are compiled; fewer compile faster and feed more padding.
    """

    buckets: int = 4
    caches = True
    first_alone = True

    def __post_init__(self):
        _require_counts(self, "buckets")

    def sizes(self, gen_length, block_length, steps):
        return even_sizes(gen_length, self.buckets, block_length)

    def is_full(self, step):
        return step == 0

    def fed(self, view):
        return jnp.broadcast_to(view.slots_1xL >= view.start, view.known_BxL.shape)


@dataclasses.dataclass(frozen=True)
class Dual(Feeding):
    """Fast-dLLM's dual cache: a full pass at a block's start, then the block alone."""

    caches = True
    first_alone = True

    def sizes(self, gen_length, block_length, steps):
        return (block_length,)

    def is_full(self, step):
        return step == 0

    def fed(self, view):
        inside_1xL = (view.slots_1xL >= view.start) & (view.slots_1xL < view.stop)
        return jnp.broadcast_to(inside_1xL, view.known_BxL.shape)


@dataclasses.dataclass(frozen=True)
class Settled(Feeding):
    """dKV-Cache-Decode for LLaDA (arXiv 2505.15781): a token's keys are kept from the pass after it was committed.

    Attributes:
        refresh: a full pass every so many; the first two of a block are full, too. 1 caches nothing.
        buckets: numbers of positions that are compiled.
    """

    refresh: int = 8
    buckets: int = 4
    caches = True

    def __post_init__(self):
        _require_counts(self, "refresh", "buckets")

    def sizes(self, gen_length, block_length, steps):
        return even_sizes(gen_length, self.buckets)

    def is_full(self, step):
        return (step < 2) | (step % self.refresh == 0)

    def fed(self, view):
        return ~view.seen_BxL

    @property
    def step_after_refresh(self):
        # As after the first full pass on schedule that is not one of the first two.
        return -(-2 // self.refresh) * self.refresh + 1


@dataclasses.dataclass(frozen=True)
class Greedy(Feeding):
    """dKV-Cache-Greedy for LLaDA: what the pass commits, what the last one committed, and a window around the first.

    The order is random and drawn at a block's start. The window adds, for each position to commit in ascending order,
    the nearest masked positions that are not yet fed, the left one first where two are as near.

    Attributes:
        refresh: a full pass every so many.
        window: positions added for each one to commit.
    """

    refresh: int = 2
    window: int = 4
    caches = True
    plans_order = True

    def __post_init__(self):
        _require_counts(self, "refresh")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise ValueError(f"window must be a whole number of at least 0, got {self.window!r}")

    def sizes(self, gen_length, block_length, steps):
        most = -(-block_length // steps)
        return tuple(sorted({min((2 + self.window) * most, gen_length), gen_length}))

    def is_full(self, step):
        return step % self.refresh == 0

    def fed(self, view):
        fed_BxL = view.next_BxL | (view.known_BxL & ~view.seen_BxL)
        if not self.window:
            return fed_BxL
        with_window = functools.partial(self._with_window, view.most)
        return jax.vmap(with_window)(fed_BxL, view.next_BxL, ~view.known_BxL)

    def _with_window(self, most, fed_L, next_L, masked_L):
        length = fed_L.shape[0]
        slots_L = jnp.arange(length)
        centres_L = jnp.sort(jnp.where(next_L, slots_L, length))

        def add(index, fed_L):
            centre = centres_L[index]
            near_L = 2 * jnp.abs(slots_L - centre) - (slots_L < centre)
            free_L = masked_L & ~fed_L & (centre < length)
            place_L = jnp.argsort(jnp.argsort(jnp.where(free_L, near_L, 2 * length), stable=True))
            return fed_L | (free_L & (place_L < self.window))

        return jax.lax.fori_loop(0, most, add, fed_L)


SHIFT_TYPES = ("un", "un_right", "right")


@dataclasses.dataclass(frozen=True)
class ShiftedSettled(Feeding):
    """dKV-Cache-Decode for Dream, whose position p predicts the token at p + 1.

    Attributes:
        refresh: a full pass every so many.
        shift_type: position p is settled once the token at p + 1 is known ("un"; the last position looks at the
            first), once those at p and at p + 1 are ("un_right"), or once that at p is ("right").
        freeze_prompt: keep the prompt's keys of the first pass; a refresh then feeds what follows alone (PD).
        buckets: numbers of positions that are compiled.
    """

    refresh: int = 4
    shift_type: str = "un"
    freeze_prompt: bool = False
    buckets: int = 4
    caches = True

    def __post_init__(self):
        _require_counts(self, "refresh", "buckets")
        if self.shift_type not in SHIFT_TYPES:
            raise ValueError(f"shift_type must be one of {', '.join(SHIFT_TYPES)}, got {self.shift_type!r}")

    def sizes(self, gen_length, block_length, steps):
        # One more: the prompt's last position predicts the first token to generate.
        return tuple(size + 1 for size in even_sizes(gen_length, self.buckets))

    def is_full(self, step):
        return step == 0 if self.freeze_prompt else step % self.refresh == 0

    def fed(self, view):
        here_BxL, next_BxL = view.seen_BxL, jnp.roll(view.seen_BxL, -1, axis=1)
        settled_BxL = {"un": next_BxL, "un_right": here_BxL & next_BxL, "right": here_BxL}[self.shift_type]
        fed_BxL = ~settled_BxL
        if self.freeze_prompt:
            behind_1xL = view.slots_1xL >= view.prompt_length - 1
            fed_BxL = (fed_BxL | (view.step % self.refresh == 0)) & behind_1xL
        return fed_BxL


@dataclasses.dataclass(frozen=True)
class FrozenPrompt(Feeding):
    """dKV-Cache-Prefill for Dream: the prompt's keys of the first pass are kept, the rest is fed in every pass."""

    caches = True

    def sizes(self, gen_length, block_length, steps):
        return (gen_length + 1,)

    def is_full(self, step):
        return step == 0

    def fed(self, view):
        return jnp.broadcast_to(view.slots_1xL >= view.prompt_length - 1, view.known_BxL.shape)
