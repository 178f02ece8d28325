"""What the rules are made of: draws, scores of positions, and the best so many of them. One row at a time.

Every draw has a key of its own, from the row's key, a counter of the rule and the position.
"""

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion.speculation import categorical, shape_log_prob
from ssmd_jax.sampling.policy import View

# Streams below the key of a step.
TOKENS, POSITIONS, REMASK = range(3)
SCORES = ("confidence", "margin", "entropy", "random")
# Positions whose tokens are drawn at a time.
CHUNK = 64


def position_keys(key: jax.Array, stream: int, length: int) -> jax.Array:
    """One key a position, `[D]`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, stream), jnp.arange(length))


def uniform(key: jax.Array, stream: int, length: int) -> jax.Array:
    """Uniform numbers in [0, 1), float32 `[D]`."""
    return jax.vmap(jax.random.uniform)(position_keys(key, stream, length))


def gumbel(key: jax.Array, stream: int, length: int) -> jax.Array:
    """Gumbel noise of high dynamic range, float32 `[D]`."""
    draw = lambda key: jax.random.gumbel(key, (), jnp.float32, mode="high")
    return jax.vmap(draw)(position_keys(key, stream, length))


def draw_tokens(policy, view: View, key: jax.Array) -> jax.Array:
    """One token a position from the policy's law, int32 `[D]`.

    Noise and nucleus take several times the memory of the logits: they are made for a chunk of positions at a time.
    """
    keys_D = position_keys(key, TOKENS, len(view.masked_D))
    draw = lambda one: categorical(one[0], policy.log_prob(one[1]))
    return jax.lax.map(draw, (keys_D, view.logits_DxV), batch_size=min(CHUNK, len(keys_D)))


def log_confidence(view: View, tokens_D: jax.Array) -> jax.Array:
    """Log probability of each token under the network, at temperature 1; float32 `[D]`, nats."""
    log_prob_DxV = shape_log_prob(view.logits_DxV)
    return jnp.take_along_axis(log_prob_DxV, tokens_D[:, None], axis=1)[:, 0]


def entropy(logits_DxV: jax.Array) -> jax.Array:
    """Entropy of the network's distributions, float32 `[D]`, nats."""
    log_prob_DxV = shape_log_prob(logits_DxV)
    prob_DxV = jnp.exp(log_prob_DxV)
    return -jnp.sum(jnp.where(prob_DxV > 0, prob_DxV * log_prob_DxV, 0.0), axis=1)


def margin(logits_DxV: jax.Array) -> jax.Array:
    """Largest probability minus the second, float32 `[D]`; the network's own, at temperature 1."""
    prob_DxV = jnp.exp(shape_log_prob(logits_DxV))
    first_D = jnp.argmax(prob_DxV, axis=1)
    rest_DxV = jnp.where(jnp.arange(prob_DxV.shape[1])[None] == first_D[:, None], 0.0, prob_DxV)
    return jnp.max(prob_DxV, axis=1) - jnp.max(rest_DxV, axis=1)


def score(name: str, view: View, tokens_D: jax.Array, key: jax.Array) -> jax.Array:
    """A score of `SCORES`, higher for what is revealed first; float32 `[D]`.

    Args:
        name: "confidence" of the drawn token (log probability), "margin", "entropy" (negated), or "random".
        view: the row.
        tokens_D: the tokens drawn.
        key: of the step, for "random".
    """
    if name == "confidence":
        return log_confidence(view, tokens_D)
    if name == "margin":
        return margin(view.logits_DxV)
    if name == "entropy":
        return -entropy(view.logits_DxV)
    return uniform(key, POSITIONS, len(tokens_D))


def rank(priority_D: jax.Array, candidate_D: jax.Array) -> jax.Array:
    """Place of each position, 0 for the highest priority; candidates before others, ties to the smaller position."""
    return jnp.argsort(jnp.lexsort((-priority_D, ~candidate_D)))


def top(priority_D: jax.Array, candidate_D: jax.Array, count: jax.Array) -> jax.Array:
    """bool `[D]`: the `count` candidates of highest priority."""
    return candidate_D & (rank(priority_D, candidate_D) < count)


def current_block(view: View, block: int | None) -> tuple[jax.Array, jax.Array]:
    """The masked positions of the first block that has any, and its number; blocks are `block` neighbours.

    Args:
        view: the row.
        block: positions a block; None for the whole row.

    Returns:
        bool `[D]` and int32 scalar.
    """
    if block is None:
        return view.masked_D, jnp.int32(0)
    block_D = view.positions_D // block
    number = jnp.min(jnp.where(view.masked_D, block_D, len(view.masked_D))).astype(jnp.int32)
    return view.masked_D & (block_D == number), number
