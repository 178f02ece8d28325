"""A tabular model of a few lines that satisfies the samplers' protocol, and its twin in NumPy.

Draft and target are arbitrary, unrelated distributions: no law below holds because they happen to agree.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

# So that nothing is uniform when nothing is revealed.
BIAS = 0.7


@flax.struct.dataclass
class TabularModel:
    """Logits from sums of table entries of what each distribution may see.

    Attributes:
        seen_DxVxF: feature of a revealed (position, token), seen by both.
        drafted_DxVxF: feature of a (position, token) behind the revealed prefix, seen by the target alone.
        draft_DxFxV, target_DxFxV: from features to logits, by position.
    """

    seen_DxVxF: jax.Array
    drafted_DxVxF: jax.Array
    draft_DxFxV: jax.Array
    target_DxFxV: jax.Array
    trunk_cost: float = flax.struct.field(pytree_node=False, default=0.75)
    verify_cost: float = flax.struct.field(pytree_node=False, default=0.25)

    @property
    def num_tokens(self):
        return self.draft_DxFxV.shape[-1]

    def _sum(self, table_DxVxF, tokens_BxD, positions_BxD, from_B, to_B):
        tracks = jnp.arange(tokens_BxD.shape[1])[None]
        inside = (tracks >= from_B[:, None]) & (tracks < to_B[:, None])
        features = table_DxVxF[positions_BxD, jnp.minimum(tokens_BxD, self.num_tokens - 1)]
        return jnp.sum(jnp.where(inside[..., None], features, 0.0), axis=1)

    def trunk(self, tokens_BxD, positions_BxD, num_revealed_B, lengths_B):
        zeros_B = jnp.zeros_like(num_revealed_B)
        seen_BxF = self._sum(self.seen_DxVxF, tokens_BxD, positions_BxD, zeros_B, num_revealed_B)
        return {"seen": seen_BxF, "positions": positions_BxD, "num_revealed": num_revealed_B}

    def _rows(self, start_B, size, positions_BxD):
        index = jnp.clip(start_B[:, None] + jnp.arange(size)[None], 0, positions_BxD.shape[1] - 1)
        return jnp.take_along_axis(positions_BxD, index, axis=1)

    def draft_logits(self, context, start_B, size):
        positions_BxS = self._rows(start_B, size, context["positions"])
        return jnp.einsum("BF,BSFV->BSV", jnp.tanh(BIAS + context["seen"]), self.draft_DxFxV[positions_BxS])

    def target_logits(self, context, tokens_BxD, positions_BxD, start_B, size):
        def row(s):
            drafted = self._sum(self.drafted_DxVxF, tokens_BxD, positions_BxD, start_B, start_B + s)
            return jnp.tanh(BIAS + context["seen"] + drafted)

        features_BxSxF = jnp.stack([row(s) for s in range(size)], axis=1)
        positions_BxS = self._rows(start_B, size, positions_BxD)
        return jnp.einsum("BSF,BSFV->BSV", features_BxSxF, self.target_DxFxV[positions_BxS])

    def reorder(self, context, permutation_BxD):
        return {**context, "positions": jnp.take_along_axis(context["positions"], permutation_BxD, axis=1)}

    # The twin, for one row: plain sums over lists.
    def numpy_draft_logits(self, tokens, positions, i, k):
        seen = sum((np.asarray(self.seen_DxVxF)[positions[m], tokens[m]] for m in range(i)), np.zeros(self._features))
        return np.tanh(BIAS + seen) @ np.asarray(self.draft_DxFxV)[positions[k]]

    def numpy_target_logits(self, tokens, positions, i, k):
        seen = sum((np.asarray(self.seen_DxVxF)[positions[m], tokens[m]] for m in range(i)), np.zeros(self._features))
        seen = sum((np.asarray(self.drafted_DxVxF)[positions[m], tokens[m]] for m in range(i, k)), seen)
        return np.tanh(BIAS + seen) @ np.asarray(self.target_DxFxV)[positions[k]]

    @property
    def _features(self):
        return self.seen_DxVxF.shape[-1]


def tabular_model(length=4, num_tokens=2, features=3, seed=0, scale=1.5, same=False, **costs) -> TabularModel:
    """A random model; with `same` the target ignores what is drafted and equals the draft."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    seen, drafted = normal(length, num_tokens, features), normal(length, num_tokens, features)
    draft, target = (scale * normal(length, features, num_tokens) for _ in range(2))
    if same:
        drafted, target = np.zeros_like(drafted), draft
    return TabularModel(*(jnp.asarray(x) for x in (seen, drafted, draft, target)), **costs)
