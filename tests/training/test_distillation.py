"""A causal part taught by its trunk: the loss against a plain twin, its optimum, and what it refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.loss import LossConfig, diffusion_loss, token_nll
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import distillation, keys, state, step
from tests.training import tiny

KEY = jax.random.key(0)
CONFIG = LossConfig(freeze_trunk=True, teacher_passes=3, teacher_span=5, temperature=0.6)
NUM_TOKENS = 27


@pytest.fixture(scope="module")
def network():
    return HybridTransformer(tiny.config().network_config(NUM_TOKENS))


@pytest.fixture(scope="module")
def params(network):
    """As after training: the map that starts at zero would make the target the draft."""
    noise = iter(jax.random.split(jax.random.key(3), 99))
    first = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), first)


@pytest.fixture(scope="module")
def loss(network):
    jitted = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    return lambda params, tokens, lengths, config: jitted(params, network, tokens, lengths, KEY, config, True)


@pytest.mark.parametrize("lengths", [None, (16, 9, 1, 0)])
def test_loss_equals_a_twin_that_asks_one_law_at_a_time(network, params, loss, lengths):
    tokens = jnp.asarray(tiny.data().train[np.arange(4)])
    lengths_B = None if lengths is None else jnp.asarray(lengths)
    total, terms = loss(params, tokens, lengths_B, CONFIG)
    rows = np.full(4, 16) if lengths is None else np.asarray(lengths)
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), jnp.asarray(rows), 16)
    true = orders.to_order_space(tokens, order)
    revealed = np.asarray(distillation.revealed_of_passes(KEY, jnp.asarray(rows), CONFIG))

    @jax.jit
    def laws(num_revealed):
        masked = masking.mask_suffix(true, jnp.asarray(num_revealed), NUM_TOKENS)
        pair = network.apply({"params": params}, masked, true, order, lengths_B)
        return [jax.nn.log_softmax(x / CONFIG.temperature) for x in pair]

    by_pass = [[np.asarray(x, np.float64) for x in laws(revealed[:, p])] for p in range(3)]
    found = {"draft_loss": [], "target_loss": []}
    for row in range(4):
        for s in range(3):
            for t in range(3):
                at = revealed[row, t]
                if 0 <= at - revealed[row, s] < CONFIG.teacher_span and rows[row]:
                    teacher = by_pass[t][0][row, at]
                    for name, law in zip(found, by_pass[s], strict=True):
                        found[name].append(np.sum(np.exp(teacher) * (teacher - law[row, at])))
    for name, values in found.items():
        np.testing.assert_allclose(terms[name], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(total, terms["target_loss"], rtol=1e-6)
    assert terms["draft_loss"] > 1e-3 and terms["target_loss"] > 1e-3


def test_passes_of_a_row_are_distinct_and_within_the_span():
    lengths = jnp.asarray([400, 90, 3, 1])
    config = LossConfig(freeze_trunk=True, teacher_passes=64)
    revealed = np.asarray(distillation.revealed_of_passes(KEY, lengths, config))
    first = np.asarray(masking.stratified_num_revealed(keys.stream(KEY, "reveal"), lengths))
    further = (revealed - first[:, None]) % np.asarray(lengths)[:, None]
    assert (revealed >= 0).all() and (revealed < np.asarray(lengths)[:, None]).all()
    assert further[0].max() < 64 and len(set(further[0])) > 10
    # Half of them within the square root of the span.
    assert 0.3 < np.mean(further[0] < 8) < 0.75


def test_a_target_that_is_the_draft_diverges_as_the_draft(network, loss):
    first = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    _, terms = loss(first, jnp.asarray(tiny.data().train[np.arange(4)]), None, CONFIG)
    np.testing.assert_allclose(terms["target_loss"], terms["draft_loss"], rtol=1e-5)


def test_only_the_causal_part_learns_and_it_nears_its_teacher(network, params):
    """Adam on the loss: the divergence falls below a half, the trunk has no gradient."""
    gradient = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True), static_argnums=(1, 5, 6))
    tokens = jnp.asarray(tiny.data().train[np.arange(16)])
    rule = optax.adam(1e-2)
    trained, moments, losses = params, rule.init(params), []
    for n in range(60):
        (value, _), grads = gradient(trained, network, tokens, None, jax.random.key(n), CONFIG, True)
        still = {name: part for name, part in grads.items() if name != "causal"}
        assert not any(np.any(x) for x in jax.tree.leaves(still))
        updates, moments = rule.update(grads, moments)
        trained = optax.apply_updates(trained, updates)
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_a_trunk_that_learns_on_does_so_by_the_drafts_bound(network, params, loss):
    """The draft's term of the ordinary loss, the mean over the passes, each with its own masks."""
    learning = dataclasses.replace(CONFIG, freeze_trunk=False, draft_weight=0.7, target_weight=0.5, temperature=1.0)
    tokens, lengths = jnp.asarray(tiny.data().train[np.arange(4)]), jnp.full(4, 16)
    total, terms = loss(params, tokens, None, learning)
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), lengths, 16)
    true = orders.to_order_space(tokens, order)
    bounds = []
    for revealed in np.asarray(distillation.revealed_of_passes(KEY, lengths, learning)).T:
        masked = masking.mask_suffix(true, jnp.asarray(revealed), NUM_TOKENS)
        draft, _ = network.apply({"params": params}, masked, true, order)
        bounds.append(diffusion_loss(token_nll(draft, true), jnp.asarray(revealed), lengths))
    np.testing.assert_allclose(total, 0.7 * np.mean(bounds) + 0.5 * terms["target_loss"], rtol=1e-5)


def test_a_learning_trunk_is_a_student_and_no_teacher(network, params, monkeypatch):
    """Its gradient through the target is that of the divergence from a law held fixed."""
    tokens = jnp.asarray(tiny.data().train[np.arange(4)])
    learning = dataclasses.replace(CONFIG, freeze_trunk=False, draft_weight=1e-9)
    gradient = jax.grad(lambda p: step.loss_fn(p, network, tokens, None, KEY, learning, True)[0])
    as_it_is = gradient(params)
    assert np.any(as_it_is["trunk_blocks"]["blocks"]["mlp"]["up"])
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), as_it_is, gradient(params))
    assert max(jax.tree.leaves(differences["trunk_blocks"])) > 1e-4


def test_a_step_charges_every_pass():
    assert LossConfig().passes == 1 and CONFIG.passes == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"teacher_passes": 1}, "teacher_passes"),
        ({"teacher_passes": -2}, "teacher_passes"),
        ({"teacher_passes": 2, "freeze_trunk": False, "draft_weight": 0.0}, "draft_weight"),
        ({"teacher_passes": 2, "teacher_span": 0}, "teacher_span"),
        ({"teacher_passes": 2, "tie_first": True}, "tie_first"),
        ({"teacher_passes": 2, "target_tracks": 3}, "target_tracks"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_settings_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        LossConfig(**{"freeze_trunk": True, **fields})
