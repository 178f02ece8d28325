"""Which network a configuration means."""

from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.esm2 import Esm2Network
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.model.llada_trunk import LladaNetwork

NETWORKS = {"own": HybridTransformer, "esm2": Esm2Network, "llada": LladaNetwork}


def make_network(config: HybridConfig) -> SpeculativeNetwork:
    """The network of `config.trunk`, unbound."""
    return NETWORKS[config.trunk](config)
