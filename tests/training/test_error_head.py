"""The error head: what it is trained on, that it learns, and that it finds its way into the sampler."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmd_jax.model.error_head import ErrorCritic, ErrorHead, error_logits
from ssmd_jax.sampling import policy
from ssmd_jax.sampling.policies.star import Star
from ssmd_jax.training import error_head
from tests.launch import programs
from tests.sampling.policies.cases import NETWORK, network

LENGTH = 8


def head(hidden=16):
    return ErrorHead(hidden).init(jax.random.key(0), jnp.zeros((1, 1, NETWORK.width)))["params"]


def tokens(batch, seed=0):
    """Rows that repeat one token: what differs from its neighbours is an error."""
    return np.tile(np.random.default_rng(seed).integers(0, NETWORK.num_tokens, (batch, 1)), (1, LENGTH)).astype(
        np.int32
    )


def test_rows_are_completed_from_the_draft():
    """Revealed tokens are never wrong, masked ones as often as the draft says; positions are permutations."""
    model, true = network(), tokens(512)
    done = jax.jit(error_head.complete)(model, true, jax.random.key(1))
    positions = np.asarray(done.positions_BxD)
    assert (np.sort(positions, axis=1) == np.arange(LENGTH)).all()
    in_order = np.take_along_axis(true, positions, axis=1)
    np.testing.assert_array_equal(np.asarray(done.tokens_BxD) != in_order, done.is_wrong_BxD)
    assert (np.asarray(done.tokens_BxD) < NETWORK.num_tokens).all()
    # Rows reveal 0..7 tokens, evenly, as a prefix: the first track is wrong in an eighth of the rows at most.
    wrong = np.asarray(done.is_wrong_BxD).mean(axis=0)
    assert wrong[0] < 1 / 8 and wrong[-1] > 0.5 and (np.diff(wrong) > -0.05).all()


@pytest.mark.slow
def test_padding_is_neither_filled_nor_counted():
    """Padded rows are masked, filled and judged as the same rows without their padding, whatever else is behind."""
    model, true = network(), tokens(6, seed=3)
    lengths = np.array([8, 3, 5, 1, 8, 2])
    padded = np.where(np.arange(LENGTH)[None] < lengths[:, None], true, NETWORK.num_tokens).astype(np.int32)
    complete, loss_fn = (jax.jit(f, static_argnames="padded") for f in (error_head.complete, error_head.loss_fn))
    done = complete(model, padded, jax.random.key(1), padded=True)
    behind = np.arange(LENGTH)[None] >= lengths[:, None]
    np.testing.assert_array_equal(done.lengths_B, lengths)
    assert (np.asarray(done.tokens_BxD) == NETWORK.num_tokens).tolist() == behind.tolist()
    assert not np.asarray(done.is_wrong_BxD)[behind].any() and np.asarray(done.is_wrong_BxD).any()

    wide = np.pad(padded, ((0, 0), (0, 5)), constant_values=NETWORK.num_tokens)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), head())
    narrow, other = (loss_fn(params, model, rows, jax.random.key(1), padded=True) for rows in (padded, wide))
    assert float(narrow[0]) == pytest.approx(float(other[0]), rel=1e-5)
    logits, labels, counted = (np.asarray(x) for x in narrow[1])
    np.testing.assert_array_equal(counted, ~behind)
    expected = optax.sigmoid_binary_cross_entropy(logits[counted], labels[counted].astype(np.float32))
    assert float(narrow[0]) == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.mark.slow
def test_tracks_are_filled_in_chunks(monkeypatch):
    """Whatever the size of a chunk the draws are the same, and no array holds logits of a whole row."""
    model, true = network(), tokens(4)
    expected = jax.jit(error_head.complete)(model, true, jax.random.key(1))
    monkeypatch.setattr(error_head, "CHUNK", 3)
    # A function of its own: jit has compiled the other.
    chunked = lambda *args: error_head.complete(*args)
    np.testing.assert_array_equal(jax.jit(chunked)(model, true, jax.random.key(1)).tokens_BxD, expected.tokens_BxD)
    shape = f"[4,{LENGTH},{NETWORK.num_tokens}]"
    assert shape not in str(jax.make_jaxpr(chunked)(model, true, jax.random.key(1)))


@pytest.mark.slow
def test_all_held_out_rows_are_judged():
    """Rows of three batches, each its own; the figures are those of all their tokens."""
    model, rows = network(), tokens(6, seed=1)
    assert len(np.unique(rows[:, 0])) > 2
    found = error_head.judge(head(), model, rows.reshape(3, 2, LENGTH), jax.random.key(0))
    complete = jax.jit(error_head.complete)
    wrong = [
        np.asarray(complete(model, two, jax.random.fold_in(jax.random.key(0), n)).is_wrong_BxD)
        for n, two in enumerate(rows.reshape(3, 2, LENGTH))
    ]
    assert found["share_wrong"] == pytest.approx(np.mean(wrong)) and found["loss"] == pytest.approx(math.log(2), 1e-4)
    assert found["ranking_quality"] == pytest.approx(0.5)


@pytest.mark.slow
def test_head_starts_blind_and_learns():
    model, params = network(), head()
    loss, _ = error_head.loss_fn(params, model, tokens(64), jax.random.key(0))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
    optimizer = optax.adamw(1e-2)
    step, opt_state, losses = error_head.make_train_step(model, optimizer), optimizer.init(params), []
    for n in range(60):
        params, opt_state, loss = step(params, opt_state, tokens(64, n), jax.random.fold_in(jax.random.key(2), n))
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < losses[0] - 0.1


@pytest.mark.slow
def test_critic_sees_the_complete_row_in_sequence_order():
    """Scores are the head's on a pass over all tokens; padding changes nothing; G-Star draws with it."""
    params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), head())
    model, rows = network(), np.array([[0, 1, 2, 3, 4, 0, 1, 2]], np.int32)
    critic = ErrorCritic(model, params)
    positions, full = np.arange(LENGTH)[None], np.array([LENGTH])
    h_BxDxC, *_ = model.hidden(rows, positions, jnp.array([LENGTH]), full)
    scores = critic.scores(jnp.asarray(rows), full)
    np.testing.assert_allclose(scores, error_logits(params, h_BxDxC), rtol=1e-5)
    padded = np.array([[0, 1, 2, 3, 4, 5, 5, 5]], np.int32)
    short = critic.scores(jnp.asarray(padded), jnp.array([5]))[:, :5]
    np.testing.assert_allclose(short, critic.scores(jnp.asarray(rows[:, :5]), np.array([5])), rtol=1e-4, atol=1e-5)
    result = policy.sample(model, jax.random.key(0), Star(steps=4), batch_size=2, length=LENGTH, critic=critic)
    # From t = .5 on, the last step apart.
    assert (np.asarray(result.verify_rounds) == 1).all()
    np.testing.assert_allclose(result.nfe, (result.trunk_passes + result.verify_rounds) * model.trunk_cost, rtol=1e-6)


def test_ranking_quality():
    logits, wrong = np.array([[0.1, 0.9], [0.5, 0.5]]), np.array([[False, True], [True, False]])
    # Pairs (wrong, right): .9 beats both, .5 beats .1 and ties once.
    assert error_head.ranking_quality(logits, wrong) == pytest.approx(3.5 / 4)
    assert math.isnan(error_head.ranking_quality(logits, np.zeros((2, 2), bool)))


@pytest.mark.slow
def test_program():
    """A tiny run from the command line; then the sampler finds the head, and without one says what is missing."""
    folder = f"--workdir={programs.workdir()}"
    missing, bad = ([folder, "--sampler=gstar", "--num_samples=1"], [folder, "--steps=0"])
    programs.check_refused(programs.run("sample", [missing])[0], "error head")
    outcomes = programs.run("error_head", [bad, [folder, "--steps=3", "--batch_size=4", "--hidden=8"]])
    programs.check_refused(outcomes[0], "steps")
    status, out, err = outcomes[1]
    assert status == 0, err
    found = json.loads(out.splitlines()[-1])
    assert 0 < found["loss"] < 2 and 0 < found["share_wrong"] < 1
    status, out, err = programs.run("sample", [[*missing, "--sampler_args=steps=4"]])[0]
    assert status == 0, err
    result = programs.last_json(out)
    assert result["sampler"] == "gstar" and result["rounds"] == 1
