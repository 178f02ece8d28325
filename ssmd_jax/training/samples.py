"""Sample text during training, by the speculative sampler (METHOD.md section 5)."""

import functools

import jax
import numpy as np

from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling import speculative
from ssmd_jax.training import keys, sharding
from ssmd_jax.training.config import ExperimentConfig

# As many sequences, or a few more where the mesh shares out its rows to more devices.
NUM_SAMPLES = 4


def draw(
    params,
    network_config: HybridConfig,
    config: ExperimentConfig,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    step: int,
    law: LengthLaw | None = None,
) -> np.ndarray:
    """A few sequences from the model as it is, the same at every run of the same step.

    The parameters stay sharded as they are: a model that fits no single device is sampled too.

    Args:
        params: of the network, on the mesh.
        network_config: the network.
        config: `length` and the `sampling` section.
        mesh: the active one.
        key: root key.
        step: steps done.
        law: what the rows' lengths are drawn from; None for full rows.

    Returns:
        int tokens `[B, D]` in sequence order; the mask id behind the end of a row.
    """
    ways = sharding.batch_ways(mesh)
    model = HybridModel(params, network_config)
    key = jax.random.fold_in(keys.stream(key, "sample"), np.uint32(step))
    rows = -(-NUM_SAMPLES // ways) * ways
    lengths_B = None if law is None else law.draw(step, rows)
    result = speculative.sample(
        model, key, config.sampling.speculative(), batch_size=rows, length=config.length, lengths=lengths_B
    )
    # Every process may hold a share of the rows alone.
    return jax.device_get(_everywhere(sharding.replicated(mesh))(result.tokens))


@functools.cache
def _everywhere(where: jax.sharding.Sharding):
    """Kept: a new function would be compiled anew at every draw."""
    return jax.jit(lambda x: x, out_shardings=where)


def texts(tokens_BxD: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of `NUM_SAMPLES` rows."""
    return [tokenizer.decode(row[row < tokenizer.num_tokens]) for row in tokens_BxD[:NUM_SAMPLES]]
