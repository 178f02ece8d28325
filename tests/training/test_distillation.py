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
from ssmd_jax.training import distillation, flops, keys, state, step
from ssmd_jax.training.config import MeshConfig
from tests.training import tiny
from tests.training.test_step import make

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

    def mean_divergence(which, least):
        means = np.zeros(4), np.zeros(4)
        for row in range(4):
            found = []
            for s in range(3):
                for t in range(3):
                    at = revealed[row, t]
                    if least <= at - revealed[row, s] < CONFIG.teacher_span:
                        teacher, law = by_pass[t][0][row, at], by_pass[s][which][row, at]
                        found.append(np.sum(np.exp(teacher) * (teacher - law)))
            if found and rows[row]:
                means[0][row], means[1][row] = np.mean(found), rows[row]
        return np.average(means[0], weights=means[1])

    np.testing.assert_allclose(terms["draft_loss"], mean_divergence(0, 1), rtol=1e-4)
    np.testing.assert_allclose(terms["target_loss"], mean_divergence(1, 1), rtol=1e-4)
    np.testing.assert_allclose(total, CONFIG.target_weight * mean_divergence(1, 0), rtol=1e-4)
    assert terms["draft_loss"] > 1e-3 and terms["target_loss"] > 1e-3


def test_passes_lie_within_the_span_and_reveal_every_number_alike():
    lengths = jnp.full(2000, 10)
    config = LossConfig(freeze_trunk=True, teacher_passes=4, teacher_span=6)
    revealed = np.asarray(distillation.revealed_of_passes(KEY, lengths, config))
    for each in revealed.T:
        counts = np.bincount(each, minlength=10)
        assert len(counts) == 10 and counts.min() > 150 and counts.max() < 250
    first = np.asarray(masking.stratified_num_revealed(keys.stream(KEY, "reveal"), lengths))
    further = (revealed - first[:, None]) % 10
    assert set(further.ravel()) == set(range(6))
    # Rows draw their own; small distances are as frequent as their logarithm says: floor(7^u) - 1 = 0 for u < 0.356.
    assert len({tuple(row) for row in further}) > 10
    np.testing.assert_allclose(np.mean(further == 0), np.log(2) / np.log(7), atol=0.02)
    odd = distillation.revealed_of_passes(KEY, jnp.asarray([400, 3, 1, 0]), config)
    assert (np.asarray(odd) < np.maximum([[400], [3], [1], [0]], 1)).all() and (np.asarray(odd) >= 0).all()


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


@pytest.mark.parametrize("lengths", [None, (16, 9, 1, 0)])
def test_a_trunk_that_learns_on_does_so_by_the_drafts_bound(network, params, loss, lengths):
    """The draft's term of the ordinary loss, the mean over the passes, each with its own masks, at the temperature."""
    learning = dataclasses.replace(CONFIG, freeze_trunk=False, draft_weight=0.7, target_weight=0.5)
    tokens, lengths_B = jnp.asarray(tiny.data().train[np.arange(4)]), None if lengths is None else jnp.asarray(lengths)
    rows = jnp.full(4, 16) if lengths is None else lengths_B
    tokens = jnp.where(jnp.arange(16)[None] < rows[:, None], tokens, NUM_TOKENS)
    total, terms = loss(params, tokens, lengths_B, learning)
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), rows, 16)
    true = orders.to_order_space(tokens, order)
    bounds = []
    for revealed in np.asarray(distillation.revealed_of_passes(KEY, rows, learning)).T:
        masked = masking.mask_suffix(true, jnp.asarray(revealed), NUM_TOKENS)
        draft, _ = network.apply({"params": params}, masked, true, order, lengths_B)
        nll = token_nll(draft / CONFIG.temperature, jnp.minimum(true, NUM_TOKENS - 1))
        bounds.append(diffusion_loss(nll, jnp.asarray(revealed), rows))
    np.testing.assert_allclose(terms["draft_nll"], np.mean(bounds), rtol=1e-5)
    frozen = loss(params, tokens, lengths_B, dataclasses.replace(CONFIG, target_weight=0.5))[0]
    np.testing.assert_allclose(total, 0.7 * np.mean(bounds) + frozen, rtol=1e-5)


def test_a_learning_trunk_is_a_student_and_no_teacher(network, params, monkeypatch):
    """The target's divergence reaches the trunk, and otherwise than if the teacher were to learn as well."""
    tokens = jnp.asarray(tiny.data().train[np.arange(4)])
    learning = dataclasses.replace(CONFIG, freeze_trunk=False, draft_weight=1e-9)
    of = lambda p: step.loss_fn(p, network, tokens, None, KEY, learning, True)[0]
    gradient = lambda p: jax.jit(jax.grad(lambda p: of(p)))(p)  # traced anew at each call
    largest = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree["trunk_blocks"]))
    as_it_is = gradient(params)
    assert largest(as_it_is) > 1e-4
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    assert largest(jax.tree.map(jnp.subtract, as_it_is, gradient(params))) > 1e-4


def test_a_frozen_teacher_has_no_dropout():
    network = HybridTransformer(tiny.config(model__dropout=0.5).network_config(NUM_TOKENS))
    params = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    params = jax.tree.map(lambda x: x + 0.05, params)
    tokens = jnp.asarray(tiny.data().train[np.arange(8)])
    loss = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    dropped, whole = (loss(params, network, tokens, None, KEY, CONFIG, x)[1] for x in (False, True))
    np.testing.assert_allclose(dropped["draft_loss"], whole["draft_loss"], rtol=1e-6)
    assert dropped["target_loss"] != whole["target_loss"]


@pytest.mark.parametrize("axes", [(4, 1, 1), (1, 2, 2)], ids=str)
def test_a_mesh_changes_nothing(axes):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: tests/conftest.py sets 8 CPU devices")
    fields = {"loss__freeze_trunk": True, "loss__teacher_passes": 3, "training__accumulation": 2}
    found = []
    for mesh_config in (MeshConfig(*axes), MeshConfig(data=1)):
        _, run, first, tokens, key = make(mesh_config, **fields)
        for _ in range(2):
            first, metrics = run(first, tokens, key)
        found.append({name: float(metrics[name]) for name in ("loss", "draft_loss", "target_loss", "grad_norm")})
    assert found[0] == pytest.approx(found[1], rel=2e-4)


def test_logits_are_divided_by_the_temperature(network, params):
    """In the ordinary loss too, of draft and target."""
    tokens, config = jnp.asarray(tiny.data().train[np.arange(4)]), LossConfig(temperature=0.6)
    found = step.token_losses(params, network, tokens, None, KEY, config, True)
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), jnp.full(4, 16), 16)
    true = orders.to_order_space(tokens, order)
    masked = masking.mask_suffix(true, found.num_revealed_B, NUM_TOKENS)
    for nll, logits in zip(
        (found.draft_nll_BxD, found.target_nll_BxD), network.apply({"params": params}, masked, true, order), strict=True
    ):
        expected = jnp.where(masked == NUM_TOKENS, token_nll(logits / 0.6, true), 0.0)
        np.testing.assert_allclose(nll, expected, rtol=1e-4, atol=1e-5)


def test_a_step_charges_every_pass(network):
    """And the head on the tracks that it is applied to alone, where nothing but the target learns."""
    once = lambda freeze, head=None: flops.train_flops_per_token(network.config, 16, freeze, head)
    of = lambda config: flops.step_flops_per_token(network.config, 16, config)
    assert of(LossConfig()) == once(False) and of(LossConfig(freeze_trunk=True)) == once(True)
    assert of(CONFIG) == 3 * once(True, 3 / 16)
    assert of(dataclasses.replace(CONFIG, freeze_trunk=False)) == 3 * once(False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"teacher_passes": 1}, "teacher_passes"),
        ({"teacher_passes": -2}, "teacher_passes"),
        ({"teacher_passes": 2, "freeze_trunk": False, "draft_weight": 0.0}, "draft_weight"),
        ({"teacher_passes": 2, "teacher_span": 1}, "teacher_span"),
        ({"teacher_passes": 2, "freeze_trunk": False, "target_weight": 0.0}, "target_weight"),
        ({"teacher_passes": 2, "tie_first": True}, "tie_first"),
        ({"teacher_passes": 2, "target_tracks": 3}, "target_tracks"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_settings_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        LossConfig(**{"freeze_trunk": True, **fields})


@pytest.mark.parametrize("fields", [{"model__n_causal": 0, "loss__freeze_trunk": False}, {"model__dropout": 0.1}])
def test_bad_experiments_are_named(fields):
    with pytest.raises(ValueError, match="teacher_passes"):
        tiny.config(loss__teacher_passes=2, **fields)
