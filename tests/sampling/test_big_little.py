"""Big-Little against a plain Python loop, and where its law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.speculation import categorical
from ssmd_jax.diffusion.window import ConstantWindow, LinearWindow
from ssmd_jax.sampling import ancestral, big_little, keys
from ssmd_jax.sampling.big_little import BigLittleConfig
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.enumeration import Law, shape
from tests.sampling.test_any_subset import token_counts, token_law
from tests.sampling.test_laws import chi_square
from tests.tabular import tabular_model

LENGTH = 6
CASES = {
    "sampled": BigLittleConfig(window=ConstantWindow(4), fallback=0.5, rollback=0.9),
    "greedy": BigLittleConfig(window=LinearWindow(2, 5), fallback=0.4, rollback=1.0, temperature=0.0),
    "nucleus": BigLittleConfig(window=ConstantWindow(3), fallback=0.0, rollback=0.5, top_p=0.9),
}


def twin(model, config, row_key, order, tokens):
    """One row; fields of `SampleResult`."""
    tokens, given = list(tokens), len(tokens)
    status, revealed_in, rejected = [0] * LENGTH, [0] * LENGTH, [model.num_tokens] * LENGTH
    table, passes = config.window.table(LENGTH), 0
    fold = lambda *counters: jax.tree_util.tree_reduce(jax.random.fold_in, [row_key, *counters])
    law = lambda logits: np.log(np.maximum(shape(logits, config.temperature, config.top_p), 1e-300))
    pick = lambda key, logits: int(categorical(key[None], jnp.asarray(law(logits), jnp.float32)[None])[0])
    own = lambda logits: shape(logits, 1.0, 1.0)
    while len(tokens) < LENGTH:
        i, passes = len(tokens), passes + 1
        for s in range(int(table[i])):
            k = i + s
            logits = model.numpy_draft_logits(tokens, order, i, k)
            target = model.numpy_target_logits(tokens, order, i, k)
            token, revealed_in[k] = pick(fold(keys.DRAFT, passes, k), logits), passes
            unlikely = -np.log(own(target)[token]) > config.rollback and int(np.argmax(target)) != token
            if own(logits).max() < config.fallback or unlikely:
                tokens.append(pick(fold(keys.VERIFY, passes, k), target))
                status[k], rejected[k] = 2, token
                break
            tokens.append(token)
            status[k] = 1
    assert all(s > 0 for s in status[given:])
    return {
        "tokens": [tokens[order.index(x)] for x in range(LENGTH)],
        "trunk_passes": passes,
        "verify_rounds": passes,
        "nfe": passes * (model.trunk_cost + model.verify_cost),
        "status": status,
        "revealed_in": revealed_in,
        "rejected_token": rejected,
    }


@pytest.mark.parametrize("name", CASES)
def test_python_loop(name):
    model, config, batch = tabular_model(LENGTH, num_tokens=4, seed=2), CASES[name], 8
    rng = np.random.default_rng(0)
    prompt, mask = rng.integers(0, 4, (batch, LENGTH)), rng.random((batch, LENGTH)) < 0.2
    rows = {"prompt": prompt, "prompt_mask": mask}
    key = jax.random.key(3)
    result = big_little.sample(model, key, config, batch_size=batch, length=LENGTH, **rows)
    for b in range(batch):
        order = np.asarray(result.order[b]).tolist()
        given = prompt[b, order[: mask[b].sum()]].tolist()
        for field, value in twin(model, config, jax.random.fold_in(key, b), order, given).items():
            np.testing.assert_allclose(np.asarray(getattr(result, field))[b], value, rtol=1e-6, err_msg=field)
    assert np.asarray(result.rejected).sum() and np.asarray(result.accepted).sum()

    if name != "sampled":
        return
    one = {field: value[2:3] for field, value in rows.items()}
    alone = big_little.sample(model, keys.row_keys(key, batch)[2:3], config, batch_size=1, length=LENGTH, **one)
    np.testing.assert_array_equal(alone.tokens[0], result.tokens[2])

    tight = BigLittleConfig(**{**vars(config), "budget_nfe": 2.5})
    result = big_little.sample(model, key, tight, batch_size=batch, length=LENGTH, **rows)
    assert (np.asarray(result.nfe) <= 2.5 + 1e-4).all() and (np.asarray(result.tokens) < 4).all()
    total = np.asarray(result.accepted + result.rejected + result.unverified)
    np.testing.assert_array_equal(total, (~mask).sum(axis=1))


def test_known_laws():
    """Never cut it is the plain sampler, token for token; always cut at once it is the target with windows of one."""
    model = tabular_model(4, num_tokens=3, seed=1)
    never = BigLittleConfig(window=ConstantWindow(2), fallback=0.0, rollback=float("inf"))
    plain = SpeculativeConfig(ConstantWindow(2), 1)
    arguments = {"batch_size": 500, "length": 4}
    result = big_little.sample(model, jax.random.key(0), never, **arguments)
    np.testing.assert_array_equal(result.tokens, ancestral.sample(model, jax.random.key(0), plain, **arguments).tokens)
    always = BigLittleConfig(window=ConstantWindow(3), fallback=1.0)
    result = big_little.sample(model, jax.random.key(0), always, batch_size=20_000, length=4)
    law = token_law(Law(model, SpeculativeConfig(ConstantWindow(1), 1), 4).joint())
    assert chi_square(token_counts(result), law, 20_000) > 1e-3


def test_bad_settings():
    for change, words in [({"fallback": 1.5}, "fallback"), ({"rollback": -1.0}, "rollback"), ({"top_p": 0.0}, "top_p")]:
        with pytest.raises(ValueError, match=words):
            BigLittleConfig(**change)
