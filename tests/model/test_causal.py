"""The causal part on a trunk that it was not made for: anything with hidden vectors and a head of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.model.causal import CausalPart, SpeculativeNetwork
from ssmd_jax.model.config import HybridConfig

V, D, START = 5, 6, 2
CONFIG = HybridConfig(num_tokens=V, width=16, num_heads=2, n_noncausal=1, n_causal=2, dtype="float32")


class BagOfTokens(SpeculativeNetwork):
    """A trunk that is no transformer: a track sees the sum of all embeddings and its own position."""

    def setup(self):
        normal = nn.initializers.normal(1.0)
        self.table = self.param("table", normal, (V + 1, self.config.width))
        self.places = self.param("places", normal, (D, self.config.width))
        self.kernel = self.param("kernel", normal, (self.config.width, V))
        self.causal = CausalPart(self.config)

    def trunk(self, tokens_BxD, positions_BxD, lengths_B=None, deterministic=True):
        return self.table[tokens_BxD].sum(axis=1, keepdims=True) + self.places[positions_BxD]

    def embed(self, tokens_BxS):
        return self.table[tokens_BxS]

    def readout(self, h_BxSxC):
        return jnp.tanh(h_BxSxC) ** 2

    def logits(self, readout_BxSxK):
        return readout_BxSxK @ self.kernel

    def head_of(self, params):
        return params["kernel"]


def inputs():
    rng = np.random.default_rng(0)
    tokens, positions = rng.integers(0, V, (1, D)), rng.permutation(D)[None]
    return jnp.asarray(tokens), jnp.asarray(positions)


def initial():
    tokens, positions = inputs()
    return nn.unbox(BagOfTokens(CONFIG).init(jax.random.key(0), tokens, tokens, positions))["params"]


def masked(tokens):
    return jnp.where(jnp.arange(D)[None] < START, tokens, V)


def test_target_equals_draft_at_initialisation_and_draft_is_the_trunks_own():
    (tokens, positions), params = inputs(), initial()
    draft, target = BagOfTokens(CONFIG).apply({"params": params}, masked(tokens), tokens, positions)
    np.testing.assert_array_equal(draft, target)
    h = params["table"][masked(tokens)].sum(1, keepdims=True) + params["places"][positions]
    np.testing.assert_allclose(draft, np.tanh(h) ** 2 @ params["kernel"], rtol=1e-4)


def test_the_target_of_a_track_sees_the_tokens_before_it_alone():
    (tokens, positions), params = inputs(), initial()
    rng = np.random.default_rng(1)
    params = {**params, "causal": jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), params["causal"])}
    target = lambda tokens, known: BagOfTokens(CONFIG).apply({"params": params}, masked(known), tokens, positions)[1]
    before = target(tokens, tokens)
    for track in range(START, D):
        after = target(tokens.at[0, track].set((tokens[0, track] + 1) % V), tokens)
        moved = np.abs(after - before).max(axis=-1)[0]
        assert (moved[: track + 1] == 0).all() and (moved[track + 1 :] > 1e-5).all()
