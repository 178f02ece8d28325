"""A pass of the network over masked rows, as all training losses make it (METHOD.md section 4)."""

import jax
import jax.numpy as jnp

from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.training import cross_entropy, keys


def in_random_order(
    tokens_BxD: jax.Array, lengths_B: jax.Array | None, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws each row's order; row `b` from `fold_in(key, b)`, so that neither sharding nor the batch's size matter.

    Args:
        tokens_BxD: int tokens in sequence order.
        lengths_B: int `[B]`, or None where all rows are full.
        key: key of this batch.

    Returns:
        Tokens in order space, orders, `[B, D]` each, and the lengths `[B]`.
    """
    batch, length = tokens_BxD.shape
    all_lengths_B = jnp.full((batch,), length, jnp.int32) if lengths_B is None else lengths_B
    order_BxD = orders.uniform_order(keys.row_keys(keys.stream(key, "order"), batch), all_lengths_B, length)
    return orders.to_order_space(tokens_BxD, order_BxD), order_BxD, all_lengths_B


def hidden_pair(
    params,
    network: SpeculativeNetwork,
    true_BxD: jax.Array,
    order_BxD: jax.Array,
    num_revealed_B: jax.Array,
    lengths_B: jax.Array | None,
    key: jax.Array,
    loss_config: LossConfig,
    deterministic: bool,
) -> tuple[jax.Array, jax.Array]:
    """Vectors of draft and target that the head's product reads, `[B, D, K]` each, with a suffix masked.

    Dropout draws from `key`; a frozen trunk has none, since it is to stay what it was.
    """
    return network.apply(
        {"params": params},
        masking.mask_suffix(true_BxD, num_revealed_B, network.config.num_tokens),
        true_BxD,
        order_BxD,
        lengths_B,
        deterministic,
        loss_config.freeze_trunk,
        rngs=None if deterministic else {"dropout": keys.stream(key, "dropout")},
        method="hidden_pair",
    )


def trunk_hidden(
    params,
    network: SpeculativeNetwork,
    true_BxD: jax.Array,
    order_BxD: jax.Array,
    num_revealed_B: jax.Array,
    lengths_B: jax.Array | None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """The trunk's vectors `h`, `[B, D, C]`; `params` may lack the causal part's. No key, no dropout."""
    masked_BxD = masking.mask_suffix(true_BxD, num_revealed_B, network.config.num_tokens)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return network.apply(
        {"params": params}, masked_BxD, order_BxD, lengths_B, dropout_key is None, rngs=rngs, method="trunk"
    )


def weighted_nll(
    params,
    network: SpeculativeNetwork,
    x_BxDxK: jax.Array,
    true_BxD: jax.Array,
    weights_BxD: jax.Array,
    counted_BxD: jax.Array,
    loss_config: LossConfig,
) -> tuple[jax.Array, jax.Array]:
    """`cross_entropy.weighted_nll` of the network's head on such vectors, at the loss's temperature."""
    num_tokens = network.config.num_tokens
    kernel_KxV = network.head_of(params) / loss_config.temperature
    # Padding may hold the mask id, which has no logit; those tracks never count.
    scored_BxD = jnp.minimum(true_BxD, num_tokens - 1)
    return cross_entropy.weighted_nll(x_BxDxK, kernel_KxV, scored_BxD, weights_BxD, counted_BxD, num_tokens)
