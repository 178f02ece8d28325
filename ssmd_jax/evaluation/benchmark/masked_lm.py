"""A masked language model of random weights, made on the device, and what a pass of it must read and compute."""

import functools
import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.evaluation.benchmark.ceilings import Ceilings
from ssmd_jax.model.bidirectional import BidirectionalConfig
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.model.pretrained import boxed_params

# Kernels whose inputs are more than their first axis.
INPUT_AXES = {"out": 2}


def abstract_model(config: BidirectionalConfig) -> MaskedLanguageModel:
    """Shapes of the parameters, in the dtype of computation."""
    shaped = lambda x: jax.ShapeDtypeStruct(x.shape, config.compute_dtype)
    return MaskedLanguageModel(jax.tree.map(shaped, nn.unbox(boxed_params(config))), config)


def random_model(config: BidirectionalConfig, seed: int) -> MaskedLanguageModel:
    """Random weights in the dtype of computation, on the first device.

    Parameter by parameter: initialised at once, in float32, they would be in memory three times. Embedding and kernels
    have the deviations of a fresh network, so that what a pass computes stays finite; norms are ones.
    """
    flat = flax.traverse_util.flatten_dict(abstract_model(config).params)
    key = jax.random.key(seed)
    made = {}
    for number, (path, x) in enumerate(flat.items()):
        if path[-1] == "scale":
            made[path] = jnp.ones(x.shape, x.dtype)
            continue
        fan_in = 1 if path[-1] == "embedding" else math.prod(x.shape[: INPUT_AXES.get(path[-1], 1)])
        made[path] = _normal(jax.random.fold_in(key, number), np.float32(fan_in**-0.5), shape=x.shape, dtype=x.dtype)
    return MaskedLanguageModel(jax.block_until_ready(flax.traverse_util.unflatten_dict(made)), config)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key, deviation, *, shape, dtype):
    return jax.random.normal(key, shape, dtype) * deviation.astype(dtype)


def weight_bytes(model: MaskedLanguageModel) -> int:
    """What every pass reads: all parameters but the embedding, of which it looks up single rows."""
    everything = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.params))
    embedding = model.params["embedding"]
    return everything - embedding.size * embedding.dtype.itemsize


def pass_flops(config: BidirectionalConfig, batch: int, fed: float, length: int, predicted: int) -> float:
    """Floating-point operations of a pass, a product counted as 2 a multiplication; norms and softmax are left out.

    Args:
        config: of the network.
        batch: rows.
        fed: positions fed of each row.
        length: positions that they attend to.
        predicted: positions of each row that need logits.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kernels = config.width * (2 * queries + 2 * keys + 3 * config.mlp_width)
    layers = config.num_layers * fed * 2 * (kernels + 2 * length * queries)
    return float(batch * (layers + 2 * predicted * config.width * config.vocab_size))


def roofline_seconds(
    model: MaskedLanguageModel, ceilings: Ceilings, batch: int, fed: float, length: int, predicted: int
) -> float:
    """Least seconds of a pass, arguments as `pass_flops`: reading the weights, or computing, whichever takes longer."""
    reading = weight_bytes(model) / ceilings.copy_bytes
    return max(reading, pass_flops(model.config, batch, fed, length, predicted) / ceilings.matmul_flops)
