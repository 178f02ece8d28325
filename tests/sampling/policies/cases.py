"""The policies that all tests of this folder run through, and the models they run on."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling import policy as policy_lib
from ssmd_jax.sampling.policies import (
    confidence,
    dilated,
    entropy_bounded,
    grid,
    klass,
    path_planning,
    remdm,
    star,
)
from tests.model.test_hybrid import random_params
from tests.tabular import tabular_model

LENGTH, BATCH = 7, 6
NETWORK = HybridConfig(num_tokens=5, width=16, num_heads=2, n_noncausal=2, n_causal=1, dtype="float32")


@flax.struct.dataclass
class TabularCritic:
    """Any function of the complete row will do: a table entry of each token and its left neighbour."""

    table_VxV: jax.Array
    cost: float = flax.struct.field(pytree_node=False, default=0.5)

    def scores(self, tokens_BxD, lengths_B):
        tokens_BxD = jnp.minimum(tokens_BxD, len(self.table_VxV) - 1)
        left_BxD = jnp.concatenate([tokens_BxD[:, :1], tokens_BxD[:, :-1]], axis=1)
        return self.table_VxV[left_BxD, tokens_BxD]

    def of_row(self, tokens):
        table = np.asarray(self.table_VxV, np.float64)
        return [table[tokens[max(x - 1, 0)], token] for x, token in enumerate(tokens)]


POLICIES = {
    "mdlm": grid.Mdlm(steps=12),
    "mdlm, few steps": grid.Mdlm(steps=4, temperature=0.8),
    "mdlm, every step": grid.Mdlm(steps=9, skip=False),
    "md4": grid.Md4(steps=6, top_p=0.8),
    "md4, linear": grid.Md4(steps=8, grid_name="linear", skip=True),
    "first hitting": grid.FirstHitting(),
    "first hitting, groups": grid.FirstHitting(passes=3),
    "maskgit": confidence.TopK(steps=4, schedule="cosine", choice_temperature=4.5),
    "llada": confidence.TopK(steps=4, block=4, temperature=0.5),
    "greedy": confidence.TopK(steps=5, temperature=0.0),
    "margin": confidence.TopK(steps=3, score="margin"),
    "entropy": confidence.TopK(steps=3, score="entropy", block=3),
    "threshold": confidence.Threshold(threshold=0.6, block=4),
    "factor": confidence.Factor(factor=1.2),
    "eb": entropy_bounded.EntropyBounded(gamma=1.0),
    "eb, by confidence": entropy_bounded.EntropyBounded(gamma=1.5, score="confidence", block=5),
    "klass": klass.Klass(threshold=0.3, divergence=0.3, steps=7),
    "klass, blocks": klass.Klass(threshold=0.2, divergence=0.4, history=1, steps=5, block=4),
    "dus": dilated.Dilated(block=4),
    "dus, waiting": dilated.Dilated(block=7, base=2, threshold=0.5),
    "spaced eb": dilated.Spaced(inner=entropy_bounded.EntropyBounded(gamma=3.0), gap=4.0),
    "spaced threshold": dilated.Spaced(inner=confidence.Threshold(threshold=0.2, block=5), block=5),
    "spaced dus, waiting": dilated.Spaced(inner=dilated.Dilated(block=7, threshold=0.9), block=7),
    "spaced remdm": dilated.Spaced(inner=remdm.Remdm(steps=8, eta=0.3), gap=4.0),
    "remdm cap": remdm.Remdm(steps=10, rule="cap", eta=0.2),
    "remdm rescale": remdm.Remdm(steps=10, rule="rescale", eta=0.4, skip=False),
    "remdm conf": remdm.Remdm(steps=8, rule="conf"),
    "remdm loop": remdm.Remdm(steps=16, rule="loop", eta=0.1),
    "p2": path_planning.PathPlanning(steps=5, eta=1.3),
    "p2, random": path_planning.PathPlanning(steps=4, score="random"),
    "p2, planner": path_planning.PathPlanning(steps=5, planner=True),
    "star": star.Star(steps=8, guided=False),
    "g-star": star.Star(steps=6, t_on=0.7, remask_temperature=0.5),
}


@functools.cache
def tabular():
    return tabular_model(LENGTH, num_tokens=4, seed=2)


@functools.cache
def network():
    return HybridModel(random_params(NETWORK), NETWORK)


def critic_of(policy, model):
    """What the policy asks, if it asks; and the same for one row of the twin."""
    if not policy.asks_critic:
        return None, None
    if isinstance(policy, path_planning.PathPlanning):
        planner = path_planning.ModelPlanner(model)
        score = jax.jit(planner.scores)
        one = lambda tokens: np.asarray(score(jnp.asarray(tokens)[None], np.array([len(tokens)])))[0].tolist()
        return planner, one
    table = np.random.default_rng(0).normal(size=(model.num_tokens, model.num_tokens)).astype(np.float32)
    critic = TabularCritic(jnp.asarray(table))
    return critic, critic.of_row


def of_tabular(model):
    """The tabular model's own NumPy twin, as `twins.run` asks it."""

    def network(tokens, masked):
        positions = sorted(tokens) + list(masked)
        in_order = [tokens[x] for x in sorted(tokens)]
        rows = {x: model.numpy_draft_logits(in_order, positions, len(tokens), k) for k, x in enumerate(positions)}
        return [rows[x] for x in range(len(positions))]

    return network


def of_network(model):
    """One row through the network's own trunk and head."""
    score = jax.jit(policy_lib.draft_logits)

    def network(tokens, masked):
        length = len(tokens) + len(masked)
        tokens_1xD = np.array([[tokens.get(x, model.num_tokens) for x in range(length)]])
        masked_1xD = np.array([[x in masked for x in range(length)]])
        return score(model, tokens_1xD, masked_1xD, np.array([length]))[0]

    return network


def ragged(seed=0):
    """Prompts of any pattern and lengths: an open row, a full one, a short one, and so on."""
    rng = np.random.default_rng(seed)
    lengths = np.array([LENGTH, LENGTH, 4, LENGTH, 5, LENGTH])
    prompt, given = rng.integers(0, 4, (BATCH, LENGTH)), rng.random((BATCH, LENGTH)) < 0.3
    given &= np.arange(LENGTH)[None] < lengths[:, None]
    given[0], given[1] = False, True
    given[2:, 1] = True
    return {"prompt": prompt, "prompt_mask": given, "lengths": lengths}
