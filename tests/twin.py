"""The speculative sampler of one row as a plain Python loop over the same keys: the dumb twin of the jitted loop."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import categorical
from ssmd_jax.sampling import keys


def _fold(key, *counters):
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key


def speculative_row(model, row_key, config, order, tokens, length, draft, target):
    """One row from a starting order.

    Args:
        model: gives num_tokens and costs.
        row_key: the row's key.
        config: a `SpeculativeConfig` with a fixed order.
        order: list of `length` positions; the first `len(tokens)` are given.
        tokens: the given tokens, in that order.
        draft, target: `(tokens, order, i, k) -> logits` and the same for the target, with NumPy rows.

    Returns:
        Dictionary of the fields of `SampleResult` for this row.
    """
    num_tokens, tokens = model.num_tokens, list(tokens)
    table, laws = config.window.table(length), config.laws
    status, revealed_in, rejected_token, settled_in = ([value] * length for value in (0, 0, num_tokens, 0))
    passes = rounds = 0
    log = lambda logits, law: np.asarray(law(jnp.asarray(logits, jnp.float32)))
    while len(tokens) < length:
        i = len(tokens)
        end = i + int(table[i])
        passes += 1
        p = {k: log(draft(tokens, order, i, k), laws.proposal) for k in range(i, end)}
        drafts = [
            int(categorical(_fold(row_key, keys.DRAFT, passes, k)[None], jnp.asarray(p[k])[None])[0])
            for k in range(i, end)
        ]
        tokens, j, n = tokens + drafts, i, 0
        while j < end and n < config.verify_rounds:
            round_key = _fold(row_key, keys.VERIFY, passes, n)
            rounds, n = rounds + 1, n + 1
            while j < end:
                logits = (draft if config.tie_first and j == i else target)(tokens, order, i, j)
                q = log(logits, laws.plain)
                u = np.float32(jax.random.uniform(_fold(round_key, 0, j)))
                revealed_in[j], settled_in[j] = passes, n
                if np.log(u) < q[tokens[j]] - p[j][tokens[j]]:
                    status[j], j = 1, j + 1
                    continue
                surplus = np.maximum(np.exp(q) - np.exp(p[j]), 0)
                with np.errstate(divide="ignore"):
                    weight = jnp.asarray(np.log(surplus) if surplus.any() else q)
                rejected_token[j], status[j] = tokens[j], 2
                tokens[j] = int(categorical(_fold(round_key, 1, j)[None], weight[None])[0])
                j += 1
                break
        tokens = tokens[:j]
    sequence = [tokens[order.index(position)] for position in range(length)]
    return {
        "tokens": sequence,
        "order": order,
        "trunk_passes": passes,
        "verify_rounds": rounds,
        "nfe": passes * model.trunk_cost + rounds * model.verify_cost,
        "accepted": status.count(1),
        "rejected": status.count(2),
        "unverified": 0,
        "status": status,
        "revealed_in": revealed_in,
        "rejected_token": rejected_token,
        "settled_in": settled_in,
    }
