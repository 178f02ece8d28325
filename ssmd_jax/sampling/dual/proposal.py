"""What a draft pass proposes: a token for each position of the block, and how much the network is sure of it."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import shape_log_prob

SCORES = ("confidence", "shaped_confidence", "margin", "entropy", "random")


@dataclasses.dataclass(frozen=True)
class Proposal:
    """How tokens and their scores come from logits.

    The mask token is never proposed. Probabilities are those of the whole vocabulary, the mask token included, as in
    the public implementations.

    Attributes:
        temperature: of the tokens: Gumbel noise times it is added to the logits; 0 takes the first maximum.
        top_p, top_k: tokens outside the nucleus, or behind the `top_k` likeliest, are not proposed; 1 and 0 keep all,
            as does a `top_k` beyond the vocabulary.
        score: "confidence" is the network's probability of the token at temperature 1 (LLaDA's low-confidence
            remasking); "shaped_confidence" that after temperature, top_p and top_k (Dream's maskgit_plus); "margin" the
            probability of the likeliest less that of the second (topk_margin) and "entropy" the negative entropy, both
            after shaping; "random" is uniform noise.
        position_temperature: Gumbel noise added to the scores over it (Dream's alg_temp): positions are then drawn
            without replacement, in proportion to `exp(score / position_temperature)`; 0 adds none.
        banned: tokens that are never proposed (LLaDA's logits_eos_inf bans the end of text).
        late: tokens that are proposed with score 0, and so committed last (confidence_eos_eot_inf); the probabilities
            of the others are renormalised, as there.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    score: str = "confidence"
    position_temperature: float = 0.0
    banned: tuple[int, ...] = ()
    late: tuple[int, ...] = ()

    def __post_init__(self):
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}")
        if not _is_count(self.top_k):
            raise ValueError(f"top_k must be a whole number of at least 0, got {self.top_k!r}")
        for name in ("banned", "late"):
            ids = getattr(self, name)
            if not isinstance(ids, tuple) or not all(map(_is_count, ids)):
                raise ValueError(f"{name} must be a tuple of token ids, got {ids!r}")
        for name in ("temperature", "position_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)!r}")

    def propose(self, keys_BxT: jax.Array, logits_BxTxV: jax.Array, mask_id: int) -> tuple[jax.Array, jax.Array]:
        """Tokens int32 `[B, T]` and their scores float32 `[B, T]`.

        Args:
            keys_BxT: one key a position; used only where something is random.
            logits_BxTxV: float32.
            mask_id: never proposed.
        """
        ids = lambda *these: jnp.isin(jnp.arange(logits_BxTxV.shape[-1]), jnp.array(these, jnp.int32))[None, None]
        allowed_BxTxV = jnp.where(ids(mask_id, *self.banned), -jnp.inf, logits_BxTxV)
        if self.top_k or self.top_p < 1:
            allowed_BxTxV = jnp.where(self._shaped(allowed_BxTxV) > -jnp.inf, allowed_BxTxV, -jnp.inf)
        noisy_BxTxV = allowed_BxTxV
        if self.temperature:
            gumbel = lambda key: jax.random.gumbel(key, logits_BxTxV.shape[-1:], jnp.float32, mode="high")
            noisy_BxTxV += self.temperature * jax.vmap(jax.vmap(gumbel))(keys_BxT)
        tokens_BxT = jnp.argmax(noisy_BxTxV, axis=-1).astype(jnp.int32)
        late_BxTxV = jnp.where(ids(*self.late), -jnp.inf, logits_BxTxV) if self.late else logits_BxTxV
        score_BxT = self._score(keys_BxT, late_BxTxV, tokens_BxT)
        if self.position_temperature:
            noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, 2), mode="high")))
            score_BxT = score_BxT / self.position_temperature + noise(keys_BxT)
        return tokens_BxT, score_BxT

    def _score(self, keys_BxT, logits_BxTxV, tokens_BxT) -> jax.Array:
        if self.score == "random":
            return jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1))))(keys_BxT)
        raw = self.score == "confidence"
        log_prob_BxTxV = jax.nn.log_softmax(logits_BxTxV) if raw else self._shaped(logits_BxTxV)
        if self.score == "margin":
            first, second = jnp.moveaxis(jax.lax.top_k(jnp.exp(log_prob_BxTxV), 2)[0], -1, 0)
            return first - second
        if self.score == "entropy":
            prob_BxTxV = jnp.exp(log_prob_BxTxV)
            return jnp.sum(prob_BxTxV * jnp.log(prob_BxTxV + 1e-10), axis=-1)
        return jnp.exp(jnp.take_along_axis(log_prob_BxTxV, tokens_BxT[..., None], axis=-1)[..., 0])

    def _shaped(self, logits_BxTxV: jax.Array) -> jax.Array:
        """Log-probabilities after temperature, top_p, then top_k."""
        shaped = shape_log_prob(logits_BxTxV, self.temperature or 1.0, None if self.top_p == 1 else self.top_p)
        if self.top_k:
            least = jax.lax.top_k(shaped, min(self.top_k, shaped.shape[-1]))[0][..., -1:]
            shaped = jax.nn.log_softmax(jnp.where(shaped >= least, shaped, -jnp.inf))
        return shaped


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def log_prob_of(logits_BxTxV: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
    """Log-probability of given tokens at temperature 1, float32 `[B, T]`."""
    log_prob_BxTxV = jax.nn.log_softmax(logits_BxTxV)
    return jnp.take_along_axis(log_prob_BxTxV, tokens_BxT[..., None], axis=-1)[..., 0]
