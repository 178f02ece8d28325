"""The training loss: two cross entropies from one forward pass (METHOD.md section 4).

Everything is in order space and in nats.

With `window_step` the loss is that of a sampler with cosine windows, to tune a trained network for it. With rounds
enough to settle every window (by rejections or with shared noise) the sampler outputs `x` along an order with log
probability `sum_i sum_k log q_{i,k}`, `i` over the first tracks of the windows and `k` over the tracks of each
(METHOD.md section 6). A window drawn in proportion to its size, and the mean over its tracks, estimate this sum divided
by the number of tokens from one pass; the draft's term is the same for the plain sampler.
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
        draft_weight: weight of the draft's cross entropy (the masked-diffusion bound); with `teacher_passes`, of the
            divergence of its drafts from the teacher's.
        target_weight: weight of the target's cross entropy.
        window_step: train both on windows of the sampler with `CosineWindow(window_step)`; 0 for all masked tracks.
            Samplers with wider windows, prompts or too few rounds ask for tracks that are then never trained.
        target_tracks: train the target on the first so many masked tracks alone, near the windows that a sampler will
            verify; 0 for all of them. A row weighs the same either way.
        freeze_trunk: train the causal part alone, on a trunk that stays as it is.
        tie_first: the target of the first masked track is the draft's (METHOD.md section 5, tied first track).
        temperature: the logits of draft and target are divided by it, for a sampler that will do so, best on what it
            has drawn.
        teacher_passes: the target learns what the trunk says of its own next track, from so many passes a row
            (METHOD.md section 4, "Taught by the trunk"); 0 for the tokens of the data. A trunk that is not frozen is
            held to the drafts of the one it was at the start, which teaches, at distances below `teacher_span`.
        teacher_span: the target learns at distances below it.
        teacher_tracks: at so many masked tracks of each pass, where the causal part is evidence; blocks learn at the
            next track alone, whatever this says.
    """

    draft_weight: float = 1.0
    target_weight: float = 1.0
    window_step: float = 0.0
    target_tracks: int = 0
    freeze_trunk: bool = False
    tie_first: bool = False
    temperature: float = 1.0
    teacher_passes: int = 0
    teacher_span: int = 64
    teacher_tracks: int = 64

    def __post_init__(self):
        for name in ("draft_weight", "target_weight"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ValueError(f"loss.{name} must be at least 0 and finite, got {value!r}")
        is_number = isinstance(self.window_step, int | float) and not isinstance(self.window_step, bool)
        if not is_number or not 0 <= self.window_step <= 1:
            raise ValueError(f"loss.window_step must lie in [0, 1], got {self.window_step!r}")
        if self.window_step and self.target_tracks:
            raise ValueError("loss.window_step says on which tracks the target is trained: set loss.target_tracks to 0")
        if self.target_tracks < 0:
            raise ValueError(f"loss.target_tracks must be at least 0, got {self.target_tracks!r}")
        if self.draft_weight == 0 and self.target_weight == 0:
            raise ValueError("loss.draft_weight and loss.target_weight are both 0: nothing would be trained")
        if self.freeze_trunk and self.target_weight == 0:
            raise ValueError("loss.freeze_trunk trains the causal part alone: loss.target_weight must be positive")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"loss.temperature must be positive and finite, got {self.temperature!r}")
        if self.teacher_passes < 0 or self.teacher_passes == 1:
            raise ValueError(f"loss.teacher_passes must be 0 or at least 2, got {self.teacher_passes!r}")
        if self.teacher_span < 2:
            raise ValueError(f"loss.teacher_span must be at least 2, got {self.teacher_span!r}")
        if self.teacher_tracks < 1:
            raise ValueError(f"loss.teacher_tracks must be at least 1, got {self.teacher_tracks!r}")
        if self.teacher_passes and self.target_weight == 0:
            raise ValueError("loss.teacher_passes teaches the target: loss.target_weight must be positive")
        if self.teacher_passes and not self.freeze_trunk and self.draft_weight == 0:
            raise ValueError(
                "loss.teacher_passes with loss.draft_weight 0 would leave the drafts free to change: set "
                "loss.freeze_trunk, or a positive loss.draft_weight"
            )
        if self.teacher_passes and (self.window_step or self.target_tracks or self.tie_first):
            raise ValueError(
                "loss.teacher_passes says itself where the target learns: leave loss.window_step, loss.target_tracks "
                "and loss.tie_first as they are by default"
            )

    @property
    def passes(self) -> int:
        """How often a step passes each row through the network."""
        return self.teacher_passes or 1

    @property
    def keeps_teacher(self) -> bool:
        """Whether the trunk that teaches is another than the network's own."""
        return self.teacher_passes > 0 and not self.freeze_trunk


def token_nll(logits_BxSxV: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
    """Negative log likelihood of each token, float32 nats `[B, S]`."""
    logits_BxSxV = logits_BxSxV.astype(jnp.float32)
    chosen_BxS = jnp.take_along_axis(logits_BxSxV, tokens_BxS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BxSxV, axis=-1) - chosen_BxS


@functools.lru_cache(maxsize=8)
def _window_edges(window_step: float, length: int) -> np.ndarray:
    """Row `n`: where the windows of `n` tokens begin, in ascending order, and then `n` as often as there is room."""
    window = CosineWindow(window_step)
    edges = [np.unique(window_starts(window, tokens)) for tokens in range(1, length + 1)]
    room = 1 + max(map(len, edges))
    rows = [np.pad(starts, (0, room - len(starts)), constant_values=n) for n, starts in enumerate(edges, start=1)]
    return np.stack([np.zeros(room, np.int64), *rows]).astype(np.int32)


def window_of(num_revealed_B: jax.Array, lengths_B: jax.Array, length: int, config: LossConfig):
    """The tracks on which the loss is taken where `num_revealed` was drawn: `start <= k < end`, int32 `[B]` each.

    With `window_step` these are the window that contains track `num_revealed`, else all from this one on.
    """
    if not config.window_step:
        return num_revealed_B, lengths_B
    edges_BxE = jnp.asarray(_window_edges(config.window_step, length))[lengths_B]
    is_before_BxE = edges_BxE <= num_revealed_B[:, None]
    start_B = jnp.max(jnp.where(is_before_BxE, edges_BxE, 0), axis=1)
    return start_B, jnp.min(jnp.where(is_before_BxE, length, edges_BxE), axis=1)


def masked_tracks(num_revealed_B: jax.Array, lengths_B: jax.Array, length: int) -> jax.Array:
    """bool `[B, D]`: the tracks that are masked, `num_revealed <= k < length of the row`."""
    tracks_1xD = jnp.arange(length)[None]
    return (tracks_1xD >= num_revealed_B[:, None]) & (tracks_1xD < lengths_B[:, None])


def diffusion_loss(
    nll_BxD: jax.Array, num_revealed_B: jax.Array, lengths_B: jax.Array, end_B: jax.Array | None = None
) -> jax.Array:
    """One term of the loss, `sum_b [ D_b / (e_b - i_b) sum_{i_b <= k < e_b} nll_k ] / sum_b D_b`.

    To the end of the rows its expectation on the draft's `nll` bounds the negative log likelihood of the order-agnostic
    model; on the target's it bounds nothing (METHOD.md section 4). To the ends of windows it is the negative log
    likelihood of a sampler along the order (section 6).

    Args:
        nll_BxD: nats, per track; entries outside these tracks are ignored and may be anything.
        num_revealed_B: int `[B]`, smaller than the length.
        lengths_B: int `[B]`.
        end_B: int `[B]`; None for the lengths.

    Returns:
        float32 scalar, nats per token.
    """
    end_B = lengths_B if end_B is None else end_B
    counted_BxD = masked_tracks(num_revealed_B, end_B, nll_BxD.shape[1])
    sums_B = jnp.sum(jnp.where(counted_BxD, nll_BxD, 0.0), axis=1)
    # No tracks in a row without tokens.
    weights_B = lengths_B / jnp.maximum(end_B - num_revealed_B, 1)
    return jnp.sum(weights_B * sums_B) / jnp.sum(lengths_B)


def loss_weights(
    num_revealed_B: jax.Array, lengths_B: jax.Array, length: int, config: LossConfig
) -> tuple[jax.Array, jax.Array]:
    """The weights with which `nll` of draft and target enter the loss: it is their weighted sum (METHOD.md section 4).

    For what takes the gradient of the sum without all `nll` at hand. A tied first track gives the draft's `nll` the
    target's weight there.

    Returns:
        float32 `[B, D]` for the draft and for the target; 0 outside the tracks of `window_of`.
    """
    _, end_B = window_of(num_revealed_B, lengths_B, length, config)
    left_B = jnp.maximum(end_B - num_revealed_B, 1)
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
        The weighted sum, and `{"draft_loss", "target_loss"}`, all in nats per token; the two are of all tracks of
        `window_of`, whatever the weights.
    """
    chex.assert_equal_shape([draft_nll_BxD, target_nll_BxD])
    chex.assert_shape([num_revealed_B, lengths_B], draft_nll_BxD.shape[:1])
    weights = loss_weights(num_revealed_B, lengths_B, draft_nll_BxD.shape[1], config)
    _, end_B = window_of(num_revealed_B, lengths_B, draft_nll_BxD.shape[1], config)
    counted_BxD = masked_tracks(num_revealed_B, end_B, draft_nll_BxD.shape[1])
    total = sum(
        jnp.sum(weight_BxD * jnp.where(counted_BxD, nll_BxD, 0.0))
        for weight_BxD, nll_BxD in zip(weights, (draft_nll_BxD, target_nll_BxD), strict=True)
    )
    if config.tie_first:
        target_nll_BxD = tie_first_track(draft_nll_BxD, target_nll_BxD, num_revealed_B)
    draft = diffusion_loss(draft_nll_BxD, num_revealed_B, lengths_B, end_B)
    target = diffusion_loss(target_nll_BxD, num_revealed_B, lengths_B, end_B)
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
