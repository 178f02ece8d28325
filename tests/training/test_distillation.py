"""A causal part taught by its trunk: the loss against a plain twin, its optimum, and what it refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.loss import LossConfig, token_nll
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import checkpoint, distillation, flops, keys, loading, loop, programs, sharding, state, step
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


def drawn(tokens, rows, config):
    """Orders of four rows, their tokens along these, and the revealed tracks of each pass."""
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), jnp.asarray(rows), 16)
    revealed = np.asarray(distillation.revealed_of_passes(KEY, jnp.asarray(rows), config))
    return order, orders.to_order_space(tokens, order), revealed


@pytest.mark.parametrize("lengths", [None, (16, 9, 1, 0)])
def test_loss_equals_a_twin_that_asks_one_law_at_a_time(network, params, lengths, monkeypatch):
    monkeypatch.setattr(distillation, "NEAR", 4)
    traced_anew = jax.jit(
        lambda params, tokens, lengths: step.loss_fn(params, network, tokens, lengths, KEY, CONFIG, True)
    )
    tokens = jnp.asarray(tiny.data().train[np.arange(4)])
    lengths_B = None if lengths is None else jnp.asarray(lengths)
    total, terms = traced_anew(params, tokens, lengths_B)
    rows = np.full(4, 16) if lengths is None else np.asarray(lengths)
    order, true, revealed = drawn(tokens, rows, CONFIG)

    @jax.jit
    def laws(num_revealed):
        masked = masking.mask_suffix(true, jnp.asarray(num_revealed), NUM_TOKENS)
        pair = network.apply({"params": params}, masked, true, order, lengths_B)
        return [jax.nn.log_softmax(x / CONFIG.temperature) for x in pair]

    by_pass = [[np.asarray(x, np.float64) for x in laws(revealed[:, p])] for p in range(3)]

    def mean_divergence(which, least, below=CONFIG.teacher_span):
        means = np.zeros(4), np.zeros(4)
        for row in range(4):
            found = []
            for s in range(3):
                for t in range(3):
                    at = revealed[row, t]
                    if least <= at - revealed[row, s] < below:
                        teacher, law = by_pass[t][0][row, at], by_pass[s][which][row, at]
                        found.append(np.sum(np.exp(teacher) * (teacher - law)))
            if found and rows[row]:
                means[0][row], means[1][row] = np.mean(found), rows[row]
        return np.average(means[0], weights=means[1]) if means[1].any() else 0.0

    np.testing.assert_allclose(terms["draft_loss"], mean_divergence(0, 1), rtol=1e-4)
    np.testing.assert_allclose(terms["target_loss"], mean_divergence(1, 1), rtol=1e-4)
    np.testing.assert_allclose(terms["draft_near"], mean_divergence(0, 1, 4), rtol=1e-4)
    np.testing.assert_allclose(terms["target_near"], mean_divergence(1, 1, 4), rtol=1e-4)
    np.testing.assert_allclose(terms["target_first"], mean_divergence(1, 0, 1), rtol=1e-4)
    np.testing.assert_allclose(total, CONFIG.target_weight * mean_divergence(1, 0), rtol=1e-4)
    assert terms["draft_loss"] > 1e-3 and terms["target_loss"] > 1e-3
    if lengths is None:
        assert 1e-3 < terms["draft_near"] != terms["draft_loss"] and terms["target_first"] > 1e-3


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


@pytest.fixture(scope="module")
def teacher(params):
    """Another trunk, whose own parameters alone are there."""
    noise = iter(jax.random.split(jax.random.key(4), 99))
    moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)
    return state.trunk_of(moved)


LEARNING = dataclasses.replace(CONFIG, freeze_trunk=False, draft_weight=0.7, target_weight=0.5)


@pytest.mark.parametrize("lengths", [None, (16, 9, 1, 0)])
def test_a_trunk_that_learns_is_taught_by_another(network, params, teacher, lengths, monkeypatch):
    """Loss and terms against a twin that asks one law at a time of either network."""
    tokens, lengths_B = jnp.asarray(tiny.data().train[np.arange(4)]), None if lengths is None else jnp.asarray(lengths)
    rows = np.full(4, 16) if lengths is None else np.asarray(lengths)
    monkeypatch.setattr(distillation, "NEAR", 4)
    of = jax.jit(lambda *args: step.loss_fn(args[0], network, args[1], args[2], KEY, LEARNING, True, args[3]))
    total, terms = of(params, tokens, lengths_B, teacher)
    order, true, revealed = drawn(tokens, rows, LEARNING)

    @jax.jit
    def laws(num_revealed):
        masked = masking.mask_suffix(true, jnp.asarray(num_revealed), NUM_TOKENS)
        own = network.apply({"params": params}, masked, true, order, lengths_B)
        other = network.apply({"params": {**params, **teacher}}, masked, true, order, lengths_B)[0]
        return [jax.nn.log_softmax(x / CONFIG.temperature) for x in (*own, other)]

    by_pass = [[np.asarray(x, np.float64) for x in laws(revealed[:, p])] for p in range(3)]
    names = ("draft_loss", "target_loss", "draft_near", "target_near", "target_first", "drift")
    sums = {name: np.zeros((4, 2)) for name in names}
    learnt = np.zeros((4, 2))
    for row in range(4):
        for s in range(3):
            for t in range(3):
                at, distance = revealed[row, t], revealed[row, t] - revealed[row, s]
                if not rows[row] or not 0 <= distance < LEARNING.teacher_span:
                    continue
                divergence = lambda law, student: np.sum(np.exp(law) * (law - student))
                draft, target, other = (x[row, at] for x in by_pass[s])
                following = by_pass[t][2][row, at]
                sums["drift"][row] += divergence(other, draft), 1
                learnt[row] += divergence(following, target), 1
                if not distance:
                    sums["target_first"][row] += divergence(following, target), 1
                for kind in ("loss", "near") if 0 < distance < 4 else ("loss",) if distance else ():
                    sums[f"draft_{kind}"][row] += divergence(following, draft), 1
                    sums[f"target_{kind}"][row] += divergence(following, target), 1

    def mean(x):
        weights = rows * (x[:, 1] > 0)
        return np.average(x[:, 0] / np.maximum(x[:, 1], 1), weights=weights) if weights.any() else 0.0

    for name, found in sums.items():
        np.testing.assert_allclose(terms[name], mean(found), rtol=1e-4)
    np.testing.assert_allclose(total, 0.5 * mean(learnt) + 0.7 * mean(sums["drift"]), rtol=1e-4)


def test_a_learning_trunk_is_held_to_its_teacher_and_lends_itself_to_the_target(network, params, teacher):
    """Adam from the teacher's own trunk: the target comes nearer than on a frozen trunk, and the drafts stay."""
    gradient = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True), static_argnums=(1, 5, 6))
    tokens = jnp.asarray(tiny.data().train[np.arange(16)])
    fresh = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))["causal"]
    rule, last = optax.adam(1e-2), {}
    for config, taught_by in ((CONFIG, None), (LEARNING, teacher)):
        trained, found = {**teacher, "causal": fresh}, []
        moments = rule.init(trained)
        for n in range(100):
            args = (tokens, None, jax.random.key(n), config, True, taught_by)
            (_, terms), grads = gradient(trained, network, *args)
            updates, moments = rule.update(grads, moments)
            trained = optax.apply_updates(trained, updates)
            found.append({name: float(value) for name, value in terms.items()})
        assert found[0].get("drift", 0) == pytest.approx(0, abs=1e-6)
        last[config] = {name: np.mean([terms[name] for terms in found[-20:]]) for name in found[0]}
    frozen, learning = last[CONFIG], last[LEARNING]
    assert learning["target_loss"] < 0.97 * frozen["target_loss"] < 0.8 * frozen["draft_loss"]
    assert 0 < learning["drift"] < 0.1 * learning["draft_loss"]


def test_the_teacher_is_the_trunk_that_the_run_starts_from(tmp_path):
    """It stands still, in the checkpoint too, and a run that is resumed goes on with it."""

    def train(name, **fields):
        loop.train(tiny.config_dict(**fields), tmp_path / name, tiny.data())

    train("trunk", model__n_causal=0, loss__target_weight=0.0, training__num_steps=2)
    fields = {"loss__teacher_passes": 2, "training__init_from": str(tmp_path / "trunk"), "training__num_steps": 4}
    train("both", **fields)
    train("resumed", **fields, training__stop_step=2)
    train("resumed", **fields)
    start, _, _ = loading.load_params(tmp_path / "trunk")
    config = tiny.config(**fields)
    abstract = programs.make_programs(config, sharding.make_mesh(config.mesh), NUM_TOKENS).abstract
    states = []
    for name in ("both", "resumed"):
        with checkpoint.Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            states.append(checkpoints.restore(abstract, print).state)
    for found in states:
        jax.tree.map(np.testing.assert_array_equal, found.teacher_params, start)
        is_moved = lambda x, y: bool(np.any(np.asarray(x) != np.asarray(y)))
        assert all(jax.tree.leaves(jax.tree.map(is_moved, state.trunk_of(found.params), start)))
    jax.tree.map(np.testing.assert_array_equal, states[0], states[1])


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


def test_a_frozen_teacher_has_no_dropout():
    network = HybridTransformer(tiny.config(model__dropout=0.5).network_config(NUM_TOKENS))
    params = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    params = jax.tree.map(lambda x: x + 0.05, params)
    tokens = jnp.asarray(tiny.data().train[np.arange(8)])
    loss = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    dropped, whole = (loss(params, network, tokens, None, KEY, CONFIG, x)[1] for x in (False, True))
    np.testing.assert_allclose(dropped["draft_loss"], whole["draft_loss"], rtol=1e-6)
    assert dropped["target_loss"] != whole["target_loss"]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("axes", [(4, 1, 1), (1, 2, 2)], ids=str)
def test_a_mesh_changes_nothing(axes, freeze):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: tests/conftest.py sets 8 CPU devices")
    fields = {"loss__freeze_trunk": freeze, "loss__teacher_passes": 3, "training__accumulation": 2}
    found = []
    for mesh_config in (MeshConfig(*axes), MeshConfig(data=1)):
        _, run, first, tokens, key = make(mesh_config, **fields)
        for _ in range(2):
            first, metrics = run(first, tokens, key)
        names = ("loss", "draft_loss", "target_loss", "grad_norm", *(() if freeze else ("drift",)))
        found.append({name: float(metrics[name]) for name in names})
        if not freeze:  # split as the trunk is
            own, kept = state.trunk_of(first.params), first.teacher_params
            assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, own, kept))
    assert found[0] == pytest.approx(found[1], rel=2e-4)
    assert freeze or found[0]["drift"] > 1e-6


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
    trunk = dataclasses.replace(network.config, n_causal=0)
    teacher = flops.train_flops_per_token(trunk, 16, head_tracks=3 / 16) / 3
    assert of(LEARNING) == pytest.approx(3 * (once(False, 3 / 16) + teacher))


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


def test_bad_experiments_are_named(tmp_path):
    with pytest.raises(ValueError, match="teacher_passes"):
        tiny.config(loss__teacher_passes=2, model__n_causal=0)
    with pytest.raises(ValueError, match=r"name a trained one in training\.init_from"):
        loop.train(tiny.config_dict(loss__teacher_passes=2), tmp_path, tiny.data())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("config", "has_teacher"), [(CONFIG, True), (LEARNING, False)])
def test_a_teacher_stands_beside_a_trunk_that_learns_and_no_other(network, params, config, has_teacher):
    tokens, taught_by = jnp.asarray(tiny.data().train[np.arange(4)]), state.trunk_of(params) if has_teacher else None
    with pytest.raises(ValueError, match="needs a teacher beside it, and a frozen one is its own"):
        step.loss_fn(params, network, tokens, None, KEY, config, True, taught_by)


def test_a_checkpoint_without_a_teacher_does_not_fit_a_run_with_one(tmp_path):
    loop.train(tiny.config_dict(training__num_steps=2), tmp_path, tiny.data())
    config = tiny.config(loss__teacher_passes=2, training__num_steps=2)
    abstract = programs.make_programs(config, sharding.make_mesh(config.mesh), NUM_TOKENS).abstract
    refused = pytest.raises(ValueError, match="does not fit this model and optimizer: teacher_params is absent there")
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints, refused:
        checkpoints.restore(abstract, pytest.fail)
