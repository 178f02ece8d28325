"""The samplers' laws, exactly: recursion against enumeration, frequencies against both (METHOD.md section 6)."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from ssmd_jax.sampling import ancestral, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.likelihood import log_likelihood
from tests.enumeration import Law, SharedNoiseLaw
from tests.tabular import tabular_model

NUM_SAMPLES = 20_000
LENGTH = 4

CONFIGS = {
    "paper": SpeculativeConfig(FullWindow(), 1),
    "two at a time": SpeculativeConfig(ConstantWindow(2), 2),
    "three, one round": SpeculativeConfig(ConstantWindow(3), 1),
    "growing": SpeculativeConfig(LinearWindow(1, 3), 3),
    "cosine": SpeculativeConfig(CosineWindow(0.4), 2),
    "full, two rounds": SpeculativeConfig(FullWindow(), 2),
    "exact": SpeculativeConfig(FullWindow(), LENGTH),
    "tied": SpeculativeConfig(FullWindow(), 2, tie_first=True),
    "left to right": SpeculativeConfig(ConstantWindow(3), 2, order="left_to_right"),
    "cool": SpeculativeConfig(FullWindow(), 2, temperature=0.6, draft_temperature=1.7),
    "nucleus": SpeculativeConfig(FullWindow(), 2, top_p=0.7, draft_temperature=0.8),
    "stopped": SpeculativeConfig(FullWindow(), 2, confidence_stop=0.8, draft_temperature=1.4),
    "diverged": SpeculativeConfig(FullWindow(), 3, divergence_stop=0.3, draft_temperature=1.4),
    "diverged nucleus": SpeculativeConfig(FullWindow(), 3, divergence_stop=0.5, top_p=0.7, tie_first=True),
    "diverged greedy": SpeculativeConfig(FullWindow(), 3, divergence_stop=0.5, temperature=0.0),
    "greedy": SpeculativeConfig(ConstantWindow(3), 1, temperature=0.0),
}


def chi_square(counts, expected, num_samples):
    """p-value of counts against probabilities; outcomes with fewer than five expected are pooled."""
    assert set(counts) <= set(expected), "an outcome of probability zero was drawn"
    total = sum(expected.values())
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    rare = [key for key, prob in expected.items() if prob * num_samples < 5]
    groups = [[key] for key in expected if key not in set(rare)]
    if sum(expected[key] for key in rare) * num_samples >= 5:
        groups.append(rare)
    elif groups:
        groups[-1] = groups[-1] + rare
    observed = [sum(counts.get(key, 0) for key in group) for group in groups]
    predicted = [num_samples * sum(expected[key] for key in group) for group in groups]
    if len(groups) == 1:
        return 1.0
    return scipy.stats.chisquare(observed, np.array(predicted) * sum(observed) / sum(predicted)).pvalue


def counts_of(result):
    """`{(tokens, passes, rounds): count}`."""
    rows = zip(
        np.asarray(result.tokens).tolist(),
        np.asarray(result.trunk_passes).tolist(),
        np.asarray(result.verify_rounds).tolist(),
        strict=True,
    )
    counts = {}
    for tokens, passes, rounds in rows:
        key = (tuple(tokens), passes, rounds)
        counts[key] = counts.get(key, 0) + 1
    return counts


def all_sequences(num_tokens, length):
    return np.array(list(itertools.product(range(num_tokens), repeat=length)), np.int32)


def check_totals(result, num_generated):
    np.testing.assert_array_equal(result.accepted + result.rejected + result.unverified, num_generated)
    generated = np.asarray(result.status) > 0
    np.testing.assert_array_equal(generated.sum(axis=1), num_generated)
    assert ((np.asarray(result.revealed_in) > 0) == generated).all()
    np.testing.assert_array_equal(np.asarray(result.revealed_in).max(axis=1), result.trunk_passes)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if not config.divergence_stop])
def test_recursion_equals_enumeration(name):
    """Each sequence's probability and NFE, along several orders: in particular they sum to one."""
    model, config = tabular_model(LENGTH), CONFIGS[name]
    sequences = all_sequences(model.num_tokens, LENGTH)
    for order in [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)]:
        orders = np.tile(np.array(order, np.int32), (len(sequences), 1))
        log_prob, nfe = log_likelihood(model, sequences, orders, config)
        joint = Law(model, config, LENGTH).of_order(order)
        for row, sequence in enumerate(sequences.tolist()):
            outcomes = [(p, m, n) for (s, m, n), p in joint.items() if s == tuple(sequence)]
            prob = sum(p for p, _, _ in outcomes)
            np.testing.assert_allclose(np.exp(log_prob[row]), prob, atol=2e-6)
            if prob > 0:
                mean = sum(p * (m * model.trunk_cost + n * model.verify_cost) for p, m, n in outcomes) / prob
                np.testing.assert_allclose(nfe[row], mean, rtol=2e-4)
            else:
                assert np.isneginf(log_prob[row]) and np.isnan(nfe[row])
        np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, atol=1e-5)


def test_windows_end_where_the_target_has_diverged():
    """A bound that bites and one that never does; the law is the target's along the windows in both."""
    model, config = tabular_model(LENGTH), dataclasses.replace(CONFIGS["diverged"], verify_rounds=LENGTH)
    draw = lambda config: speculative.sample(model, jax.random.key(1), config, batch_size=2000, length=LENGTH)
    passes = lambda stop: float(draw(dataclasses.replace(config, divergence_stop=stop)).trunk_passes.mean())
    assert passes(1e9) == passes(0.0) == 1.0 < passes(1.0) < passes(0.3) < passes(1e-6) == LENGTH
    with pytest.raises(ValueError, match="divergence_stop"):
        log_likelihood(model, all_sequences(2, LENGTH), np.tile(np.arange(LENGTH, dtype=np.int32), (16, 1)), config)
    with pytest.raises(ValueError, match="divergence_stop"):
        dataclasses.replace(config, divergence_stop=-1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_sampler_follows_its_law(name):
    """Frequencies of tokens, passes and rounds together; the mean NFE is the sum of probability times expected NFE."""
    model, config = tabular_model(LENGTH), CONFIGS[name]
    result = speculative.sample(model, jax.random.key(1), config, batch_size=NUM_SAMPLES, length=LENGTH)
    check_totals(result, LENGTH)
    joint = Law(model, config, LENGTH).joint()
    assert chi_square(counts_of(result), joint, NUM_SAMPLES) > 1e-3
    nfe = np.asarray(result.nfe, np.float64)
    expected = sum(p * (m * model.trunk_cost + n * model.verify_cost) for (_, m, n), p in joint.items())
    assert abs(nfe.mean() - expected) < 4 * nfe.std() / np.sqrt(NUM_SAMPLES) + 1e-5


def test_sampler_follows_the_recursion_along_its_own_orders():
    """Invariant 2 without the enumeration: the recursion, averaged over orders, predicts the frequencies."""
    model, config = tabular_model(LENGTH, num_tokens=3), SpeculativeConfig(ConstantWindow(3), 2)
    sequences = all_sequences(3, LENGTH)
    orders = np.array(list(itertools.permutations(range(LENGTH))), np.int32)
    tokens, order = np.repeat(sequences, len(orders), axis=0), np.tile(orders, (len(sequences), 1))
    log_prob, nfe = (np.asarray(x, np.float64) for x in log_likelihood(model, tokens, order, config))
    prob = np.exp(log_prob).reshape(len(sequences), len(orders)) / len(orders)
    expected = dict(zip(map(tuple, sequences.tolist()), prob.sum(axis=1), strict=True))
    result = speculative.sample(model, jax.random.key(2), config, batch_size=NUM_SAMPLES, length=LENGTH)
    counts = {}
    for row in np.asarray(result.tokens).tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert chi_square(counts, expected, NUM_SAMPLES) > 1e-3
    mean_nfe = (prob * nfe.reshape(prob.shape)).sum()
    sampled = np.asarray(result.nfe, np.float64)
    assert abs(sampled.mean() - mean_nfe) < 4 * sampled.std() / np.sqrt(NUM_SAMPLES)


@pytest.mark.parametrize("order", ["random", "left_to_right", "dilated", "spread", "confidence", "entropy"])
@pytest.mark.parametrize("plain", [False, True], ids=["speculative", "plain"])
def test_orders_and_prompts(order, plain):
    """Given tokens anywhere in the row; adaptive orders by enumeration."""
    model = tabular_model(LENGTH, seed=3)
    stop = 0.7 if order == "confidence" else 0.0
    config = SpeculativeConfig(
        ConstantWindow(3 if stop else 2), 2, order=order, draft_temperature=1.3, confidence_stop=stop
    )
    module = ancestral if plain else speculative
    for given in ({}, {2: 1}, {0: 0, 3: 1}):
        prompt, mask = np.zeros((NUM_SAMPLES, LENGTH), np.int32), np.zeros((NUM_SAMPLES, LENGTH), bool)
        for position, token in given.items():
            prompt[:, position], mask[:, position] = token, True
        result = module.sample(
            model, jax.random.key(4), config, batch_size=NUM_SAMPLES, length=LENGTH, prompt=prompt, prompt_mask=mask
        )
        check_totals(result, LENGTH - len(given))
        joint = Law(model, config, LENGTH, plain=plain).joint(given)
        assert chi_square(counts_of(result), joint, NUM_SAMPLES) > 1e-3


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.0, 2.25, 3.0, 3.5])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_budget(budget, order):
    """Never exceeded, everything revealed, and the law is the one enumerated."""
    model = tabular_model(LENGTH, seed=5)
    config = SpeculativeConfig(ConstantWindow(1), 2, budget_nfe=budget, order=order)
    if budget >= 3:
        config = dataclasses.replace(config, window=LinearWindow(1, 3), verify_rounds=3, divergence_stop=0.4)
    result = speculative.sample(model, jax.random.key(6), config, batch_size=NUM_SAMPLES, length=LENGTH)
    assert (np.asarray(result.nfe) <= budget + 1e-4).all()
    assert (np.asarray(result.tokens) < model.num_tokens).all()
    check_totals(result, LENGTH)
    joint = Law(model, config, LENGTH).joint()
    assert chi_square(counts_of(result), joint, NUM_SAMPLES) > 1e-3


def test_budget_caps_merged_windows():
    """After rejections fewer passes remain than planned; the window is capped and the rest goes unverified."""
    model = tabular_model(6, seed=5, trunk_cost=0.5, verify_cost=0.5)
    config = SpeculativeConfig(LinearWindow(1, 3), 1, budget_nfe=2.0, order="left_to_right")
    law = Law(model, config, 6)
    assert law.size == 3 and law._merged(1, 1) == 5, "the cap would never bite here"
    result = speculative.sample(model, jax.random.key(6), config, batch_size=NUM_SAMPLES, length=6)
    assert (np.asarray(result.nfe) <= 2 + 1e-4).all() and np.asarray(result.unverified).max() > 2
    check_totals(result, 6)
    assert chi_square(counts_of(result), law.joint(), NUM_SAMPLES) > 1e-3


@pytest.mark.parametrize("budget", [0.75, 1.5, 2.9])
def test_budget_of_the_plain_sampler(budget):
    model = tabular_model(LENGTH, seed=5)
    config = SpeculativeConfig(ConstantWindow(1), 1, budget_nfe=budget)
    result = ancestral.sample(model, jax.random.key(7), config, batch_size=NUM_SAMPLES, length=LENGTH)
    assert (np.asarray(result.nfe) <= budget + 1e-4).all()
    check_totals(result, LENGTH)
    joint = Law(model, config, LENGTH, plain=True).joint()
    assert chi_square(counts_of(result), joint, NUM_SAMPLES) > 1e-3


def any_order(model, config, sequence, order, full):
    """`prod_k q_{0,k}` (full) or `prod_k q_{k,k}`, invariants 3 and 4."""
    law, tokens = Law(model, config, len(order)), [sequence[x] for x in order]
    return np.prod([law.target(tuple(tokens[:k]), order, 0 if full else k, k)[tokens[k]] for k in range(len(order))])


@pytest.mark.parametrize("tie_first", [False, True])
@pytest.mark.parametrize("full", [True, False], ids=["full window, N = D", "window of one"])
def test_exact_limits(tie_first, full):
    """The sampler's law is the target's own, whatever the draft is."""
    for seed in range(3):
        model = tabular_model(LENGTH, seed=seed)
        window, rounds = (FullWindow(), LENGTH) if full else (ConstantWindow(1), 1)
        config = SpeculativeConfig(window, rounds, tie_first=tie_first, draft_temperature=1 + seed)
        sequences, order = all_sequences(2, LENGTH), (1, 3, 0, 2)
        orders = np.tile(np.array(order, np.int32), (len(sequences), 1))
        log_prob, _ = log_likelihood(model, sequences, orders, config)
        expected = [any_order(model, config, s, order, full) for s in sequences.tolist()]
        np.testing.assert_allclose(np.exp(log_prob), expected, atol=2e-6)


def test_equal_draft_and_target_never_reject():
    """Invariant 5: then the sampler is the plain one, token for token."""
    model = tabular_model(LENGTH, same=True, num_tokens=3)
    for window in (FullWindow(), ConstantWindow(2)):
        config = SpeculativeConfig(window, 2)
        arguments = (model, jax.random.key(8), config)
        verified = speculative.sample(*arguments, batch_size=500, length=LENGTH)
        plain = ancestral.sample(*arguments, batch_size=500, length=LENGTH)
        assert not np.asarray(verified.rejected).any()
        np.testing.assert_array_equal(verified.tokens, plain.tokens)
        np.testing.assert_array_equal(verified.order, plain.order)
        np.testing.assert_array_equal(verified.trunk_passes, plain.trunk_passes)


def test_likelihood_of_prompts_and_lengths():
    """Conditional on the prompt; a shorter row equals the cut one."""
    model, config = tabular_model(LENGTH, seed=9), SpeculativeConfig(ConstantWindow(2), 2)
    order = (2, 0, 3, 1)
    sequences = all_sequences(2, LENGTH)
    orders = np.tile(np.array(order, np.int32), (len(sequences), 1))
    log_prob, nfe = log_likelihood(model, sequences, orders, config, num_given=np.full(len(sequences), 2))
    for row, sequence in enumerate(sequences.tolist()):
        prompt = tuple(sequence[x] for x in order[:2])
        joint = Law(model, config, LENGTH).of_order(order, prompt)
        outcomes = [(p, m, n) for (s, m, n), p in joint.items() if s == tuple(sequence)]
        prob = sum(p for p, _, _ in outcomes)
        np.testing.assert_allclose(np.exp(log_prob[row]), prob, atol=2e-6)
        mean = sum(p * (m * model.trunk_cost + n * model.verify_cost) for p, m, n in outcomes) / prob
        np.testing.assert_allclose(nfe[row], mean, rtol=2e-4)
    whole, whole_nfe = log_likelihood(model, sequences, orders, config, num_given=np.full(len(sequences), LENGTH))
    assert not np.asarray(whole).any() and not np.asarray(whole_nfe).any()

    short = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], np.int32)
    short_orders = np.array([[1, 2, 0, 3], [0, 2, 1, 3]], np.int32)
    padded = log_likelihood(model, short, short_orders, config, lengths=np.array([3, 3]))
    cut = log_likelihood(model, short[:, :3], short_orders[:, :3], config)
    np.testing.assert_allclose(padded[0], cut[0], atol=1e-6)
    np.testing.assert_allclose(padded[1], cut[1], atol=1e-5)


def test_likelihood_gradient_is_finite():
    """Impossible paths (a nucleus, q <= p everywhere) must not poison the gradient."""
    base, config = tabular_model(LENGTH), SpeculativeConfig(FullWindow(), 2, top_p=0.8)
    sequences = all_sequences(2, LENGTH)
    orders = np.tile(np.arange(LENGTH, dtype=np.int32), (len(sequences), 1))

    def total(model):
        log_prob, _ = log_likelihood(model, sequences, orders, config)
        return jnp.sum(jnp.where(jnp.isfinite(log_prob), log_prob, 0.0))

    for leaf in jax.tree.leaves(jax.grad(total)(base)) + jax.tree.leaves(
        jax.grad(total)(tabular_model(LENGTH, same=True))
    ):
        assert np.isfinite(leaf).all()
    gradient = jax.tree.leaves(jax.grad(total)(base))
    assert any(np.abs(leaf).max() > 1e-3 for leaf in gradient)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("left to right", "cosine")])
def test_shared_noise_follows_its_law(name):
    """Tokens, passes and rounds together, with rounds enough and with too few."""
    model, config = tabular_model(LENGTH), dataclasses.replace(CONFIGS[name], shared_noise=True)
    result = speculative.sample(model, jax.random.key(1), config, batch_size=NUM_SAMPLES, length=LENGTH)
    check_totals(result, LENGTH)
    assert chi_square(counts_of(result), SharedNoiseLaw(model, config, LENGTH).joint(), NUM_SAMPLES) > 1e-3


@pytest.mark.parametrize(
    ("budget", "order", "stop"),
    [(1.0, "random", 0.0), (2.25, "confidence", 0.0), (3.5, "random", 0.0), (3.5, "spread", 0.4)],
)
def test_shared_noise_under_a_budget(budget, order, stop):
    model = tabular_model(LENGTH, seed=5)
    config = SpeculativeConfig(
        LinearWindow(1, 3), 3, budget_nfe=budget, order=order, shared_noise=True, divergence_stop=stop
    )
    result = speculative.sample(model, jax.random.key(6), config, batch_size=NUM_SAMPLES, length=LENGTH)
    assert (np.asarray(result.nfe) <= budget + 1e-4).all()
    check_totals(result, LENGTH)
    assert chi_square(counts_of(result), SharedNoiseLaw(model, config, LENGTH).joint(), NUM_SAMPLES) > 1e-3


@pytest.mark.parametrize("name", ["two at a time", "growing", "exact", "tied", "cool", "nucleus"])
def test_shared_noise_with_rounds_enough_has_the_law_of_rejection(name):
    """Both are the product of the target's conditionals over the windows, sequence by sequence."""
    model = tabular_model(LENGTH, seed=2)
    config = dataclasses.replace(CONFIGS[name], verify_rounds=LENGTH)
    laws = []
    for law in (Law(model, config, LENGTH), SharedNoiseLaw(model, config, LENGTH)):
        totals = {}
        for (sequence, _, _), prob in law.of_order((2, 0, 3, 1)).items():
            totals[sequence] = totals.get(sequence, 0.0) + prob
        laws.append(totals)
    assert laws[0].keys() >= laws[1].keys()
    for sequence, prob in laws[0].items():
        np.testing.assert_allclose(laws[1].get(sequence, 0.0), prob, atol=1e-12)


def test_likelihood_knows_rejection_alone():
    config = SpeculativeConfig(FullWindow(), LENGTH, shared_noise=True)
    with pytest.raises(ValueError, match="shared_noise"):
        log_likelihood(tabular_model(LENGTH), np.zeros((1, LENGTH), int), np.arange(LENGTH)[None], config)
