"""Recommended settings: exact on a tabular model, and what is written is read again."""

import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import FullWindow, TableWindow
from ssmd_jax.evaluation import likelihood, tuning
from ssmd_jax.sampling import ancestral, keys, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.recommend import Profile, best_windows, recommend
from tests.tabular import tabular_model

LENGTH, VOCABULARY = 5, 3
MODEL = tabular_model(LENGTH, VOCABULARY)
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (12, LENGTH)).astype(np.int32)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def profile():
    return tuning.measure(MODEL, TOKENS, KEY, batch_size=6)


def orders_of(count):
    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(np.arange(count))
    return np.asarray(tuning.orders.uniform_order(keys, np.full(count, LENGTH, np.int32), LENGTH))


def test_the_profile_against_the_numpy_twin(profile):
    log_softmax = lambda x: x - np.log(np.exp(x).sum())
    draft, target, rejected = np.zeros((3, LENGTH, LENGTH))
    for row, order in zip(TOKENS, orders_of(len(TOKENS)), strict=True):
        tokens = row[order]
        for i in range(LENGTH):
            for k in range(i, LENGTH):
                log_p = log_softmax(MODEL.numpy_draft_logits(tokens, order, i, k))
                log_q = log_softmax(MODEL.numpy_target_logits(tokens, order, i, k))
                draft[i, k - i] -= log_p[tokens[k]] / len(TOKENS)
                target[i, k - i] -= log_q[tokens[k]] / len(TOKENS)
                rejected[i, k - i] += np.maximum(np.exp(log_p) - np.exp(log_q), 0).sum() / len(TOKENS)
    inside = np.arange(LENGTH)[:, None] + np.arange(LENGTH)[None] < LENGTH
    for found, twin in zip(profile[:3], (draft, target, rejected), strict=True):
        np.testing.assert_allclose(found[inside], twin[inside], rtol=1e-4)
    assert profile.num_sequences == len(TOKENS)


@pytest.mark.parametrize("tie_first", [False, True])
def test_the_predicted_bound_is_the_samplers_exact_likelihood(profile, tie_first):
    """On the very sequences and orders of the profile."""
    for budget in (1.7, 2.5, 4.0, 9.0):
        config = recommend(profile, budget, tie_first=tie_first)
        log_prob, _ = likelihood.likelihood.log_likelihood(MODEL, TOKENS, orders_of(len(TOKENS)), config)
        predicted = best_windows(profile, budget, tie_first=tie_first)
        assert predicted.nfe <= budget
        assert -np.mean(log_prob) == pytest.approx(predicted.nll, rel=1e-4)


def test_a_plain_network_has_no_rounds():
    """They are not measured, and not asked for by the plain sampler's windows."""
    plain = tuning.measure(MODEL.replace(trunk_cost=1.0, verify_cost=0.0), TOKENS, KEY, batch_size=6)
    assert plain.rounds_DxS is None and best_windows(plain, 2.5, plain=True).nfe <= 2.5
    with pytest.raises(ValueError, match="is of a plain network, which has no verify rounds"):
        best_windows(plain, 2.5, shared_noise=True)


def test_the_plain_samplers_passes_are_those_predicted(profile):
    predicted = best_windows(profile, 2.5, plain=True)
    config = recommend(profile, 2.5, plain=True)
    result = ancestral.sample(MODEL, KEY, config, batch_size=3, length=LENGTH)
    np.testing.assert_allclose(result.nfe, predicted.nfe)
    assert (np.asarray(result.nfe) <= 2.5).all()


def test_the_mean_nfe_of_samples_is_near_the_prediction():
    """Predicted on text, spent on samples: near each other where the text is the sampler's own."""
    for budget in (2.0, 3.0):
        text = speculative.sample(MODEL, KEY, SpeculativeConfig(FullWindow(), LENGTH), batch_size=2000, length=LENGTH)
        own = tuning.measure(MODEL, np.asarray(text.tokens), jax.random.key(4), batch_size=2000)
        predicted = best_windows(own, budget)
        result = speculative.sample(MODEL, jax.random.key(5), recommend(own, budget), batch_size=2000, length=LENGTH)
        assert float(np.mean(result.nfe)) == pytest.approx(predicted.nfe, rel=0.03)
        assert float(np.mean(result.rejected)) > 0.2


def test_rounds_with_shared_noise_against_a_loop(profile):
    """Every number of revealed tokens is a start here; the same noise, one row after another."""
    expected = np.zeros((LENGTH, LENGTH))
    for b, (row, order) in enumerate(zip(TOKENS, orders_of(len(TOKENS)), strict=True)):
        draft_key = jax.random.fold_in(jax.random.fold_in(KEY, b), keys.DRAFT)
        for i in range(LENGTH):
            noise = {
                k: np.asarray(
                    jax.random.gumbel(
                        jax.random.fold_in(jax.random.fold_in(draft_key, i), k), (VOCABULARY,), mode="high"
                    )
                )
                for k in range(i, LENGTH)
            }
            given = tuple(row[order][:i])
            hand = [np.argmax(MODEL.numpy_draft_logits(given, order, i, k) + noise[k]) for k in range(i, LENGTH)]
            settled, number = i, 0
            while settled < LENGTH:
                number += 1
                tracks = range(settled, LENGTH)
                logits = [MODEL.numpy_target_logits((*given, *hand[: k - i]), order, i, k) for k in tracks]
                drawn = [np.argmax(logits_V + noise[k]) for logits_V, k in zip(logits, tracks, strict=True)]
                end = next((k + 1 for k, v in zip(tracks, drawn, strict=True) if v != hand[k - i]), LENGTH)
                expected[i, settled - i : end - i] += number / len(TOKENS)
                hand[settled - i :], settled = drawn, end
    inside = np.arange(LENGTH)[:, None] + np.arange(LENGTH)[None] < LENGTH
    np.testing.assert_allclose(profile.rounds_DxS[inside], expected[inside], rtol=1e-6)
    assert expected.max() > 1.5


def test_the_mean_nfe_with_shared_noise_is_near_the_prediction():
    text = speculative.sample(MODEL, KEY, SpeculativeConfig(FullWindow(), LENGTH), batch_size=2000, length=LENGTH)
    own = tuning.measure(MODEL, np.asarray(text.tokens), jax.random.key(4), batch_size=2000)
    for budget in (2.0, 3.0):
        predicted = best_windows(own, budget, shared_noise=True)
        config = recommend(own, budget, shared_noise=True)
        assert config.shared_noise and predicted.nll <= best_windows(own, budget).nll + 1e-6
        result = speculative.sample(MODEL, jax.random.key(5), config, batch_size=2000, length=LENGTH)
        assert float(np.mean(result.nfe)) == pytest.approx(predicted.nfe, rel=0.03)


def test_a_profile_without_rounds_serves_all_but_shared_noise(profile, tmp_path):
    """As profiles were written before there was shared noise."""
    profile._replace(rounds_DxS=None).save(tmp_path / "profile.npz")
    old = Profile.load(tmp_path / "profile.npz")
    assert old.rounds_DxS is None
    again = Profile.load(tmp_path / "profile.npz")._replace(rounds_DxS=profile.rounds_DxS)
    for laws in ({}, {"plain": True}):
        assert recommend(old, 3.0, **laws) == recommend(again, 3.0, **laws)
    with pytest.raises(ValueError, match=r"no rounds with shared noise: .* launch/tune\.py"):
        recommend(old, 3.0, shared_noise=True)


def test_interpolated_rounds():
    """Straight lines between starts; behind the last start that has the track, its rounds."""
    found = tuning.interpolated(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 99.0]]), np.array([0, 2]), 4)
    np.testing.assert_allclose(found[:, 0], [1.0, 1.5, 2.0, 2.0])
    np.testing.assert_allclose(found[:, 1], [2.0, 3.0, 4.0, 4.0])
    np.testing.assert_allclose(found[:, 2], 3.0)


def test_a_profile_is_read_as_it_was_written(profile, tmp_path):
    profile.save(tmp_path / "profile.npz")
    again = Profile.load(tmp_path / "profile.npz")
    for name, value in profile._asdict().items():
        np.testing.assert_allclose(getattr(again, name), value, rtol=1e-3)
    assert isinstance(again.trunk_cost, float) and isinstance(again.num_sequences, int)
    with pytest.raises(ValueError, match=r"launch/tune\.py measures one"):
        Profile.load(tmp_path / "nothing.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no profile"):
        Profile.load(tmp_path / "bad.npz")


def test_options_and_budgets(profile):
    config = recommend(profile, 3.0, temperature=0.5, verify_rounds=1)
    assert config.temperature == 0.5 and config.verify_rounds == 1 and isinstance(config.window, TableWindow)
    with pytest.raises(ValueError, match="below the NFE of the cheapest windows"):
        recommend(profile, 0.5)
