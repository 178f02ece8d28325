"""Configuration of the samplers (METHOD.md section 5)."""

import dataclasses
import math
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.masking import tie_first_track
from ssmd_jax.diffusion.speculation import shape_log_prob
from ssmd_jax.diffusion.window import Window, checked_table

# Orders that nothing sampled changes, and those that follow the draft's distributions.
FIXED_ORDERS = ("random", "left_to_right", "dilated", "spread")
ORDERS = (*FIXED_ORDERS, "confidence", "entropy")


@dataclasses.dataclass(frozen=True)
class SpeculativeConfig:
    """What the samplers and the likelihood need to know; hashable.

    Attributes:
        window: how many tracks are drafted when `i` are revealed; see `ssmd_jax.diffusion.window`.
        verify_rounds: `N`, verify rounds a trunk pass at most.
        budget_nfe: hard bound on the NFE of each row; None for no bound.
        temperature: of target and plain sampler; 0 takes the first maximum.
        top_p: the nucleus keeps the likeliest tokens with total probability at least this; 1 keeps all.
        draft_temperature: divides the draft's logits once more; never changes a verified law.
        order: "random", "left_to_right", "dilated" (far apart first, `orders.dilated_order`), "spread" (each far
            from those just before it, `orders.spread_order`), "confidence" (likeliest first), "entropy" (surest first),
            or a hashable callable
            `(key, confidence_BxD, entropy_BxD, positions_BxD, num_revealed_B) -> priority_BxD`, highest first;
            it is called with B = 1 (under `vmap`) and the row's own key; scores of revealed tracks are 0.
            The last three re-order what is masked at every trunk pass, from the draft's distributions.
        tie_first: the target logits of the first masked track are the draft's.
        confidence_stop: a window ends before the first track but the first whose largest draft probability, at
            temperature 1, is below this; 0 never. It looks at no drawn token, so that the target's law stays. Plays no
            part in the plain sampler. Meant for the order "confidence".
        divergence_stop: a window ends before the first track but the first at which the divergence of the target from
            the draft, `KL(q || p)` in nats, summed over the window's tracks up to it, exceeds this; 0 never. Both are
            at `temperature` (1 if that is 0), without nucleus and `draft_temperature`. Where the tokens drawn since the
            pass have moved the target far, a pass is due. It looks at the tokens before a track alone, so that the
            target's law stays. Plays no part in the plain sampler.
        shared_noise: rounds draw a window's tracks again from the target with the noise of their drafts, instead of
            accepting and rejecting (`diffusion.speculation.redraw_round`): fewer rounds where a window has several
            drafts that the target would not have drawn. The same law with rounds enough for every window and no
            budget; else windows end elsewhere, and what is settled still follows the target.
    """

    window: Window
    verify_rounds: int
    budget_nfe: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    draft_temperature: float = 1.0
    order: str | Callable = "random"
    tie_first: bool = False
    confidence_stop: float = 0.0
    divergence_stop: float = 0.0
    shared_noise: bool = False

    def __post_init__(self):
        rounds = self.verify_rounds
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"verify_rounds must be a whole number of at least 1, got {rounds!r}")
        if self.budget_nfe is not None and not 0 < self.budget_nfe < math.inf:
            raise ValueError(f"budget_nfe must be positive and finite, or None for no bound, got {self.budget_nfe!r}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}")
        if not 0 < self.draft_temperature < math.inf:
            raise ValueError(f"draft_temperature must be positive and finite, got {self.draft_temperature!r}")
        if not 0 <= self.confidence_stop <= 1:
            raise ValueError(f"confidence_stop must lie in [0, 1], got {self.confidence_stop!r}")
        if not 0 <= self.divergence_stop < math.inf:
            raise ValueError(f"divergence_stop must be at least 0 and finite, got {self.divergence_stop!r}")
        if not callable(self.order) and self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, or a callable, got {self.order!r}")
        try:
            hash(self)
        except TypeError:
            raise ValueError("window and order must be hashable: they are compiled into the sampler") from None
        # A window that cannot serve any length is refused here rather than in the middle of a run.
        checked_table(self.window, 1)

    @property
    def laws(self) -> "Laws":
        """What the compiled loops depend on besides windows, rounds and budget."""
        return Laws(
            temperature=None if self.temperature == 0 else np.float32(self.temperature),
            top_p=None if self.top_p == 1 else np.float32(self.top_p),
            draft_temperature=np.float32(self.draft_temperature),
            order=self.order,
            tie_first=self.tie_first,
            confidence_stop=None if self.confidence_stop == 0 else np.float32(self.confidence_stop),
            divergence_stop=None if self.divergence_stop == 0 else np.float32(self.divergence_stop),
            shared_noise=self.shared_noise,
        )


@flax.struct.dataclass
class Laws:
    """From logits to the distributions that a sampler draws from; fields as in `SpeculativeConfig`.

    The samplers and the likelihood share these functions, so that they speak of the same law. Numbers are leaves: a
    sweep over temperatures compiles nothing anew.

    Attributes:
        temperature: None for 0, one-hot at the first maximum.
        top_p: None for 1, everything.
        draft_temperature: positive.
        order: static.
        tie_first: static.
        confidence_stop: None for 0, windows as the table says.
        divergence_stop: None for 0, likewise.
        shared_noise: static.
    """

    temperature: jax.Array | None
    top_p: jax.Array | None
    draft_temperature: jax.Array
    order: str | Callable = flax.struct.field(pytree_node=False)
    tie_first: bool = flax.struct.field(pytree_node=False)
    confidence_stop: jax.Array | None = None
    divergence_stop: jax.Array | None = None
    shared_noise: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def adaptive(self) -> bool:
        """Whether the masked suffix is re-ordered at every trunk pass."""
        return self.order not in FIXED_ORDERS

    def plain(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of the plain sampler from the draft's logits, `[..., V]`."""
        return shape_log_prob(logits, self.temperature, self.top_p)

    def proposal(self, draft_logits: jax.Array) -> jax.Array:
        """`log p`, what the speculative sampler drafts from, `[..., V]`."""
        return self.plain(draft_logits / self.draft_temperature)

    def stopped(self, window_B: jax.Array, draft_logits_BxSxV: jax.Array) -> jax.Array:
        """The windows, cut before the first track but the first of whose token the draft is not sure; int32 `[B]`.

        Args:
            window_B: tracks, at most `S`.
            draft_logits_BxSxV: of the window's tracks.
        """
        if self.confidence_stop is None:
            return window_B
        confidence_BxS = jnp.exp(jnp.max(shape_log_prob(draft_logits_BxSxV), axis=-1))
        stops_BxS = (confidence_BxS < self.confidence_stop) & (jnp.arange(confidence_BxS.shape[1])[None] > 0)
        end_B = jnp.where(jnp.any(stops_BxS, axis=1), jnp.argmax(stops_BxS, axis=1), confidence_BxS.shape[1])
        return jnp.minimum(window_B, end_B.astype(jnp.int32))

    def diverged(
        self, offset_B: jax.Array, end_B: jax.Array, target_logits_BxSxV: jax.Array, draft_logits_BxSxV: jax.Array
    ) -> jax.Array:
        """Where `divergence_stop` ends the windows, int32 `[B]`: `S` where no track `offset <= s < end` does.

        Args:
            offset_B: tracks before it are settled and stay.
            end_B: tracks whose target logits were computed from tokens that are settled now; not looked at behind it.
            target_logits_BxSxV: of the window's tracks.
            draft_logits_BxSxV: of the same.
        """
        size = target_logits_BxSxV.shape[1]
        if self.divergence_stop is None:
            return jnp.full_like(offset_B, size)
        temperature = 1.0 if self.temperature is None else self.temperature
        log_q_BxSxV = shape_log_prob(self._tied(target_logits_BxSxV, draft_logits_BxSxV), temperature)
        terms_BxSxV = jnp.exp(log_q_BxSxV) * (log_q_BxSxV - shape_log_prob(draft_logits_BxSxV, temperature))
        divergence_BxS = jnp.cumsum(jnp.sum(terms_BxSxV, axis=-1), axis=1)
        tracks_1xS = jnp.arange(size)[None]
        decided_BxS = (tracks_1xS >= jnp.maximum(offset_B, 1)[:, None]) & (tracks_1xS < end_B[:, None])
        stops_BxS = (divergence_BxS > self.divergence_stop) & decided_BxS
        return jnp.where(jnp.any(stops_BxS, axis=1), jnp.argmax(stops_BxS, axis=1), size).astype(offset_B.dtype)

    def target(self, target_logits_BxSxV: jax.Array, draft_logits_BxSxV: jax.Array) -> jax.Array:
        """`log q` of a window's tracks, whose first is the pass's first masked track, `[B, S, V]`."""
        return self.plain(self._tied(target_logits_BxSxV, draft_logits_BxSxV))

    def _tied(self, target_logits_BxSxV: jax.Array, draft_logits_BxSxV: jax.Array) -> jax.Array:
        """The target's logits, with `tie_first` those of the draft at the first track."""
        if not self.tie_first:
            return target_logits_BxSxV
        first_B = jnp.zeros(target_logits_BxSxV.shape[:1], jnp.int32)
        return tie_first_track(draft_logits_BxSxV, target_logits_BxSxV, first_B)
