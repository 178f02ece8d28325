"""A model that raises on every use of the protocol that the contract rules out. For loops run without jit."""

import collections

import jax.numpy as jnp
import numpy as np


class StrictModel:
    """Wraps a tabular model; contexts remember the pass that made them. Rows past the end are large garbage."""

    def __init__(self, model):
        self.model = model
        self.num_tokens, self.trunk_cost, self.verify_cost = model.num_tokens, model.trunk_cost, model.verify_cost
        self.calls = collections.Counter()

    def trunk(self, tokens_BxD, positions_BxD, num_revealed_B, lengths_B):
        self.calls["trunk"] += 1
        tokens, positions, revealed, lengths = map(np.asarray, (tokens_BxD, positions_BxD, num_revealed_B, lengths_B))
        assert (revealed >= 0).all() and (revealed <= lengths).all(), "num_revealed outside the row"
        for b in range(len(tokens)):
            assert (tokens[b, : revealed[b]] < self.num_tokens).all(), "a mask inside the revealed prefix"
            assert sorted(positions[b, : lengths[b]]) == list(range(lengths[b])), "positions are no permutation"
        context = self.model.trunk(tokens_BxD, positions_BxD, num_revealed_B, jnp.asarray(lengths_B))
        pass_B = jnp.full(len(tokens), self.calls["trunk"])
        return {**context, "pass": pass_B, "tokens": jnp.asarray(tokens_BxD), "lengths": jnp.asarray(lengths_B)}

    def _check(self, context):
        assert (np.asarray(context["pass"]) == self.calls["trunk"]).all(), "a stale context"

    def _garbage(self, logits_BxSxV, context, start_B):
        tracks = np.asarray(start_B)[:, None] + np.arange(logits_BxSxV.shape[1])[None]
        past = tracks >= np.asarray(context["lengths"])[:, None]
        garbage_V = 1e4 * (-1.0) ** np.arange(self.num_tokens)
        return jnp.where(past[..., None], garbage_V[None, None], logits_BxSxV)

    def draft_logits(self, context, start_B, size):
        self.calls["draft_logits"] += 1
        self._check(context)
        return self._garbage(self.model.draft_logits(context, start_B, size), context, start_B)

    def target_logits(self, context, tokens_BxD, positions_BxD, start_B, size):
        self.calls["target_logits"] += 1
        self._check(context)
        start = np.asarray(start_B)
        assert (start == np.asarray(context["num_revealed"])).all(), "start is not the pass's num_revealed"
        assert (np.asarray(positions_BxD) == np.asarray(context["positions"])).all(), "positions are not the pass's"
        for b in range(len(start)):
            same = np.asarray(tokens_BxD)[b, : start[b]] == np.asarray(context["tokens"])[b, : start[b]]
            assert same.all(), "revealed tokens are not the pass's"
        logits = self.model.target_logits(context, tokens_BxD, positions_BxD, start_B, size)
        return self._garbage(logits, context, start_B)

    def reorder(self, context, permutation_BxD):
        self.calls["reorder"] += 1
        self._check(context)
        permutation = np.asarray(permutation_BxD)
        for b, i in enumerate(np.asarray(context["num_revealed"])):
            assert (permutation[b, :i] == np.arange(i)).all(), "the revealed prefix is not left in place"
            assert sorted(permutation[b]) == list(range(permutation.shape[1])), "no permutation"
        return self.model.reorder(context, permutation_BxD)
