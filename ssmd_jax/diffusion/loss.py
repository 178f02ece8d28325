"""The training loss: two cross entropies from one forward pass (METHOD.md section 4).

Everything is in order space and in nats.

With `window_step` the loss is that of a sampler with cosine windows, to tune a trained network for it. A sampler that
settles every window by the target (rounds enough, or shared noise) outputs `x` along an order with log probability
`sum_i sum_k log q_{i,k}`, `i` over the first tracks of the windows and `k` over the tracks of each (METHOD.md section
6, third invariant, window by window). A window drawn in proportion to its size and the mean over its tracks estimate
this sum, by the tokens, from one pass; the draft's term is the same for the plain sampler.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.masking import tie_first_track
from ssmd_jax.diffusion.window import CosineWindow, window_starts

# Lower ends of the buckets of distance k - i in the distance table; the last one is open.
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64)
DISTANCE_LABELS = ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64+")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and options of the two-term loss.

    Attributes:
        draft_weight: weight of the draft's cross entropy (the masked-diffusion bound).
        target_weight: weight of the target's cross entropy.
        window_step: train both on windows of the sampler with `CosineWindow(window_step)`; 0 for all masked tracks.
        target_tracks: train the target on the first so many masked tracks alone, near the windows that a sampler will
            verify; 0 for all of them. A row weighs the same either way.
        freeze_trunk: train the causal part alone, on a trunk that stays as it is.
        tie_first: the target of the first masked track is the draft's (METHOD.md section 5, tied first track).
    """

    draft_weight: float = 1.0
    target_weight: float = 1.0
    window_step: float = 0.0
    target_tracks: int = 0
    freeze_trunk: bool = False
    tie_first: bool = False

    def __post_init__(self):
        for name in ("draft_weight", "target_weight"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ValueError(f"loss.{name} must be at least 0 and finite, got {value!r}")
        if not 0 <= self.window_step <= 1:
            raise ValueError(f"loss.window_step must lie in [0, 1], got {self.window_step!r}")
        if self.window_step and self.target_tracks:
            raise ValueError("loss.window_step says on which tracks the target is trained: set loss.target_tracks to 0")
        if self.target_tracks < 0:
            raise ValueError(f"loss.target_tracks must be at least 0, got {self.target_tracks!r}")
        if self.draft_weight == 0 and self.target_weight == 0:
            raise ValueError("loss.draft_weight and loss.target_weight are both 0: nothing would be trained")
        if self.freeze_trunk and self.target_weight == 0:
            raise ValueError("loss.freeze_trunk trains the causal part alone: loss.target_weight must be positive")


def token_nll(logits_BxSxV: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
    """Negative log likelihood of each token, float32 nats `[B, S]`."""
    logits_BxSxV = logits_BxSxV.astype(jnp.float32)
    chosen_BxS = jnp.take_along_axis(logits_BxSxV, tokens_BxS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BxSxV, axis=-1) - chosen_BxS


@functools.lru_cache(maxsize=8)
def _window_tables(window_step: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each number of tokens up to `length`: the start of the window that a track lies in, and sizes by start."""
    starts, sizes = (np.zeros((length + 1, length), np.int32) for _ in range(2))
    window = CosineWindow(window_step)
    for tokens in range(1, length + 1):
        starts[tokens, :tokens], sizes[tokens, :tokens] = window_starts(window, tokens), window.table(tokens)
    return starts, sizes


def to_window_start(num_revealed_B: jax.Array, lengths_B: jax.Array, length: int, config: LossConfig) -> jax.Array:
    """`num_revealed`, with `window_step` moved to the start of the window that contains this track."""
    if not config.window_step:
        return num_revealed_B
    starts, _ = _window_tables(config.window_step, length)
    return jnp.asarray(starts)[lengths_B, num_revealed_B]


def masked_tracks(num_revealed_B: jax.Array, lengths_B: jax.Array, length: int) -> jax.Array:
    """bool `[B, D]`: the tracks that count in the loss, `num_revealed <= k < length of the row`."""
    tracks_1xD = jnp.arange(length)[None]
    return (tracks_1xD >= num_revealed_B[:, None]) & (tracks_1xD < lengths_B[:, None])


def diffusion_loss(nll_BxD: jax.Array, num_revealed_B: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """One term of the loss, `sum_b [ D_b / (D_b - i_b) sum_{k >= i_b} nll_k ] / sum_b D_b`.

    On the draft's `nll` its expectation bounds the negative log likelihood of the order-agnostic model; on the
    target's it bounds nothing (METHOD.md section 4).

    Args:
        nll_BxD: nats, per track; entries outside the masked tracks are ignored and may be anything.
        num_revealed_B: int `[B]`, smaller than the length.
        lengths_B: int `[B]`.

    Returns:
        float32 scalar, nats per token.
    """
    counted_BxD = masked_tracks(num_revealed_B, lengths_B, nll_BxD.shape[1])
    sums_B = jnp.sum(jnp.where(counted_BxD, nll_BxD, 0.0), axis=1)
    weights_B = lengths_B / (lengths_B - num_revealed_B)
    return jnp.sum(weights_B * sums_B) / jnp.sum(lengths_B)


def loss_weights(
    num_revealed_B: jax.Array, lengths_B: jax.Array, length: int, config: LossConfig
) -> tuple[jax.Array, jax.Array]:
    """The weights with which `nll` of draft and target enter the loss: it is their weighted sum (METHOD.md section 4).

    For what takes the gradient of the sum without all `nll` at hand. A tied first track gives the draft's `nll` the
    target's weight there.

    Returns:
        float32 `[B, D]` for the draft and for the target; 0 outside the masked tracks.
    """
    left_B = lengths_B - num_revealed_B
    if config.window_step:
        _, sizes = _window_tables(config.window_step, length)
        left_B = jnp.asarray(sizes)[lengths_B, num_revealed_B]
    of_row = lambda count_B: (lengths_B / count_B / jnp.sum(lengths_B))[:, None]
    offset_BxD = jnp.arange(length)[None] - num_revealed_B[:, None]
    weight = lambda count_B: jnp.where((offset_BxD >= 0) & (offset_BxD < count_B[:, None]), of_row(count_B), 0.0)
    target_count_B = jnp.minimum(left_B, config.target_tracks or length)
    draft_BxD, target_BxD = config.draft_weight * weight(left_B), config.target_weight * weight(target_count_B)
    if config.tie_first:
        none_BxD = jnp.zeros_like(target_BxD)
        draft_BxD += target_BxD - tie_first_track(none_BxD, target_BxD, num_revealed_B)
        target_BxD = tie_first_track(none_BxD, target_BxD, num_revealed_B)
    return draft_BxD, target_BxD


def two_term_loss(
    draft_nll_BxD: jax.Array,
    target_nll_BxD: jax.Array,
    num_revealed_B: jax.Array,
    lengths_B: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of METHOD.md section 4 and its two terms.

    Returns:
        The weighted sum, and `{"draft_loss", "target_loss"}`, all in nats per token; the two are of all masked tracks,
        whatever the weights, and under `window_step`, which prefers some numbers of revealed tokens, bounds no more.
    """
    chex.assert_equal_shape([draft_nll_BxD, target_nll_BxD])
    chex.assert_shape([num_revealed_B, lengths_B], draft_nll_BxD.shape[:1])
    weights = loss_weights(num_revealed_B, lengths_B, draft_nll_BxD.shape[1], config)
    counted_BxD = masked_tracks(num_revealed_B, lengths_B, draft_nll_BxD.shape[1])
    total = sum(
        jnp.sum(weight_BxD * jnp.where(counted_BxD, nll_BxD, 0.0))
        for weight_BxD, nll_BxD in zip(weights, (draft_nll_BxD, target_nll_BxD), strict=True)
    )
    if config.tie_first:
        target_nll_BxD = tie_first_track(draft_nll_BxD, target_nll_BxD, num_revealed_B)
    draft = diffusion_loss(draft_nll_BxD, num_revealed_B, lengths_B)
    target = diffusion_loss(target_nll_BxD, num_revealed_B, lengths_B)
    return total, {"draft_loss": draft, "target_loss": target}


def distance_sums(nll_BxD: jax.Array, num_revealed_B: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums and counts of `nll` by distance `k - i` in the buckets `DISTANCES` (METHOD.md section 8).

    The instrument to watch the causal part with: a good target equals the draft at distance 0 and falls from there.

    Returns:
        float32 `[8]` sums in nats and `[8]` numbers of pairs `(i, k)`.
    """
    counted_BxD = masked_tracks(num_revealed_B, lengths_B, nll_BxD.shape[1])
    distance_BxD = jnp.arange(nll_BxD.shape[1])[None] - num_revealed_B[:, None]
    edges = jnp.asarray(DISTANCES)
    bucket_BxD = jnp.searchsorted(edges, jnp.maximum(distance_BxD, 0), side="right") - 1
    member_BxDx8 = (bucket_BxD[..., None] == jnp.arange(len(DISTANCES))[None, None]) & counted_BxD[..., None]
    sums_8 = jnp.sum(jnp.where(member_BxDx8, nll_BxD[..., None], 0.0), axis=(0, 1))
    return sums_8, jnp.sum(member_BxDx8, axis=(0, 1)).astype(jnp.float32)
