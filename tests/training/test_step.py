"""The loss and the train step, against a NumPy twin, a golden number, and themselves in other arrangements."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.sampling import likelihood
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.training import flops, keys, optimizer, sharding, state, step, validation
from ssmd_jax.training.config import MeshConfig
from tests.training import tiny

KEY = jax.random.key(0)
GOLDEN = 7.459428


def make(mesh_config=None, batch_size=8, **fields):
    """Network, jitted step, first state and tokens of the tiny experiment."""
    config = tiny.config(**fields)
    network = HybridTransformer(config.network_config(27))
    schedule = optimizer.make_schedule(config.optimizer, config.training.num_steps)
    rule = optimizer.make_optimizer(config.optimizer, schedule, config.loss.freeze_trunk)
    train_step = step.make_train_step(
        network, rule, schedule, config.loss, accumulation=config.training.accumulation, ema_decay=0.9
    )
    tokens = tiny.data().train[np.arange(batch_size)]
    mesh = sharding.make_mesh(mesh_config or MeshConfig(data=1))
    rules = sharding.rules_for(mesh, 27)
    keeps_teacher = config.loss.keeps_teacher
    abstract = state.abstract_state(network, rule, True, mesh, keeps_teacher)
    with sharding.activate(mesh, rules):
        shardings = state.shardings_of(abstract)
        init = functools.partial(state.init_state, network, rule, True, keeps_teacher=keeps_teacher)
        first = jax.jit(init, out_shardings=shardings)(KEY)
        tokens = sharding.to_devices(mesh, tokens)
        key = jax.device_put(KEY, sharding.replicated(mesh))
    jitted = jax.jit(train_step, out_shardings=(shardings, sharding.replicated(mesh)))

    def run(state, tokens, key):
        with sharding.activate(mesh, rules):
            return jitted(state, tokens, key)

    run.lower = lambda *args: jitted.lower(*args)
    return network, run, first, tokens, key


@pytest.fixture(scope="module")
def one_device():
    return make()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum())


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_loss_equals_numpy_twin(one_device):
    """Full rows and rows with lengths, from the logits on."""
    network, _, first, tokens, _ = one_device
    # The map that starts at zero would make both terms equal.
    params = jax.tree.map(lambda x: x + 0.05, first.params)
    tokens = np.asarray(tokens)
    for lengths in (None, np.array([16, 12, 9, 16, 1, 5, 16, 2], np.int32)):
        weights = LossConfig(draft_weight=0.5, target_weight=2.0)
        total, terms = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))(
            params, network, tokens, lengths, KEY, weights, True
        )
        full = np.full(8, 16) if lengths is None else lengths
        order = np.asarray(orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 8), jnp.asarray(full), 16))
        u = float(jax.random.uniform(keys.stream(KEY, "reveal")))
        num_revealed = np.minimum(
            ((masking.strata(8) / np.float32(8) + np.float32(u)) % 1 * full).astype(int), full - 1
        )
        true = np.take_along_axis(tokens, order, 1)
        masked = np.where(np.arange(16) < num_revealed[:, None], true, 27)
        draft, target = jax.jit(network.apply)({"params": params}, masked, true, order, lengths)
        draft_sum = target_sum = 0.0
        for b in range(8):
            i, end = num_revealed[b], full[b]
            for k in range(i, end):
                draft_sum -= end / (end - i) * log_softmax(np.asarray(draft)[b, k])[true[b, k]]
                target_sum -= end / (end - i) * log_softmax(np.asarray(target)[b, k])[true[b, k]]
        np.testing.assert_allclose(terms["draft_loss"], draft_sum / full.sum(), rtol=1e-5)
        np.testing.assert_allclose(terms["target_loss"], target_sum / full.sum(), rtol=1e-5)
        np.testing.assert_allclose(total, (0.5 * draft_sum + 2 * target_sum) / full.sum(), rtol=1e-5)


def test_losses_are_equal_at_first_and_fall(one_device):
    _, run, current, tokens, key = one_device
    losses = []
    for _ in range(8):
        current, metrics = run(current, tokens, key)
        losses.append(float(metrics["draft_loss"] + metrics["target_loss"]))
        if len(losses) == 1:
            np.testing.assert_allclose(metrics["draft_loss"], metrics["target_loss"], rtol=1e-6)
        assert bool(metrics["finite"])
    assert losses[-1] < 0.9 * losses[0]
    assert int(current.step) == 8


def test_golden_loss(one_device):
    _, run, current, tokens, key = one_device
    for _ in range(3):
        current, metrics = run(current, tokens, key)
    np.testing.assert_allclose(
        float(metrics["loss"]),
        GOLDEN,
        rtol=1e-4,
        err_msg="The loss after 3 steps at seed 0 has changed. If initialisation, architecture, order, masking, loss "
        "or optimiser was changed on purpose, set GOLDEN in this file to the new value and say why in the commit; "
        "otherwise this is a fault.",
    )


def test_moving_average_is_the_mean_of_both(one_device):
    _, run, first, tokens, key = one_device
    after, _ = run(first, tokens, key)
    # step 0: decay min(0.9, 1 / 10)
    for old, new, mean in zip(leaves(first.ema_params), leaves(after.params), leaves(after.ema_params), strict=True):
        np.testing.assert_allclose(mean, 0.1 * old + 0.9 * new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "axes", [(8, 1, 1), (1, 8, 1), (1, 1, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str
)
def test_sharded_step_equals_one_device(one_device, axes):
    """Two steps on data, fsdp, tensor, or all of them: same losses and parameters; the sharding is really there."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py sets 8 CPU devices")
    _, run, first, tokens, key = make(MeshConfig(*axes))
    _, run_1, first_1, tokens_1, key_1 = one_device
    for a, b in zip(leaves(first), leaves(first_1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    with_state = jax.tree.leaves(first.opt_state)
    if axes[1] * axes[2] > 1:
        assert any(not x.sharding.is_fully_replicated for x in with_state)
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(first.ema_params))
    for _ in range(2):
        first, metrics = run(first, tokens, key)
        first_1, metrics_1 = run_1(first_1, tokens_1, key_1)
        for name in ("loss", "draft_loss", "target_loss", "grad_norm"):
            np.testing.assert_allclose(metrics[name], metrics_1[name], rtol=2e-5)
    for a, b in zip(leaves(first.params), leaves(first_1.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_constraints_are_in_the_program_and_a_lost_mesh_raises(one_device):
    network, run, first, tokens, key = one_device
    with sharding.activate(sharding.make_mesh(MeshConfig(data=1))):
        assert run.lower(first, tokens, key).as_text().count("sharding_constraint") > 5
    with pytest.raises(ValueError, match="no mesh"), nn.logical_axis_rules(sharding.RULES):
        step.loss_fn(first.params, network, tokens, None, KEY, LossConfig(), True)


def test_accumulation_is_the_mean_over_micro_batches(one_device):
    network, _, first, tokens, _ = one_device
    tokens = np.asarray(tokens)
    accumulate = jax.jit(step.accumulated_gradient, static_argnums=(1, 4, 5))
    metrics, gradient = accumulate(first.params, network, tokens, KEY, LossConfig(), 4)
    one = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True), static_argnums=(1, 5, 6))
    parts = [
        one(first.params, network, tokens[m::4], None, jax.random.fold_in(KEY, m), LossConfig(), True) for m in range(4)
    ]
    np.testing.assert_allclose(metrics["loss"], np.mean([float(part[0][0]) for part in parts]), rtol=1e-5)
    assert len({float(part[0][0]) for part in parts}) == 4
    mean = jax.tree.map(lambda *xs: sum(xs) / 4, *[part[1] for part in parts])
    for a, b in zip(leaves(gradient), leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_frozen_trunk_stays_and_has_no_optimizer_state():
    _, run, first, tokens, key = make(loss__freeze_trunk=True, optimizer__weight_decay=0.1)
    after, metrics = run(first, tokens, key)
    after, metrics = run(after, tokens, key)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first.params, after.params)
    assert all(jax.tree.leaves({name: part for name, part in same.items() if name != "causal"}))
    assert not all(jax.tree.leaves(same["causal"]))
    # two moments for each trained number, a few counters, and nothing else
    trained = state.count_params(first.params["causal"])
    assert 2 * trained <= state.count_params(first.opt_state) <= 2 * trained + 8
    assert float(metrics["grad_norm"]) > 0


def test_a_frozen_trunk_has_no_dropout():
    config = tiny.config(model__dropout=0.5, loss__freeze_trunk=True)
    network = HybridTransformer(config.network_config(27))
    params = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    params = jax.tree.map(lambda x: x + 0.05, params)  # the map that starts at zero would hide the causal part
    tokens = tiny.data().train[np.arange(8)]
    loss = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    dropped, whole = (loss(params, network, tokens, None, KEY, config.loss, x)[1] for x in (False, True))
    np.testing.assert_allclose(dropped["draft_loss"], whole["draft_loss"], rtol=1e-6)
    assert dropped["target_loss"] != whole["target_loss"]


def test_an_update_that_is_not_finite_is_told():
    _, run, current, tokens, key = make(optimizer__learning_rate=1e39, optimizer__warmup_steps=0)
    _, metrics = run(current, tokens, key)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert not metrics["finite"]


def test_a_wide_causal_block_adds_the_operations_of_its_kernels(one_device):
    """Three products a track of its MLP, twice, forward and backward: 6 operations a parameter."""
    config = one_device[0].config
    wide = dataclasses.replace(config, causal_mlp_width=config.hidden + 32)
    more = flops.train_flops_per_token(wide, 16) - flops.train_flops_per_token(config, 16)
    assert more == 6 * config.n_causal * 3 * config.width * 32


def test_muon_reads_the_causal_part_as_the_trunk():
    """Kernel by kernel, though its blocks are named as those of another layout."""
    _, _, current, _, _ = make(model__n_causal=2)
    found = optimizer.muon_dimensions(current.params)
    trunk = found["trunk_blocks"]["blocks"]
    for block in ("blocks_0", "blocks_1"):
        for part, kernels in (("attention", ("qkv", "out")), ("mlp", ("up", "down"))):
            for name in kernels:
                assert found["causal"][block][part][name] == trunk[part][name] is not None


def test_muon_trains():
    _, run, current, tokens, key = make(optimizer__name="muon")
    losses = []
    for _ in range(6):
        current, metrics = run(current, tokens, key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.95 * losses[0]
    # Momentum alone for matrices: fewer numbers of state than Adam's two.
    assert state.count_params(current.opt_state) < 2 * state.count_params(current.params)


def test_windows_give_the_likelihood_of_the_sampler(one_device, monkeypatch):
    """The target's term, over all draws of a row, is minus the log likelihood under a sampler with rounds enough."""
    network, _, first, tokens, _ = one_device
    # The causal part as it is after training: not the draft.
    noise = iter(jax.random.split(jax.random.key(3), 99))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), nn.unbox(first.params))
    rows, length = tokens[:2], tokens.shape[1]
    config = LossConfig(draft_weight=0.0, window_step=0.1)
    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 2), jnp.full(2, length), length)
    sampler = SpeculativeConfig(CosineWindow(0.1), verify_rounds=length)
    log_prob, _ = likelihood.log_likelihood(HybridModel(params, network.config), rows, order, sampler)
    total, at = 0.0, jax.jit(lambda drawn: _loss_at(params, network, rows, config, drawn, monkeypatch))
    for drawn in range(length):
        total += float(at(jnp.full(2, drawn)))
    np.testing.assert_allclose(total / length, -float(log_prob.sum()) / (2 * length), rtol=1e-4)


def test_validation_looks_at_all_masked_tracks(one_device):
    """Whatever windows the loss is trained on; the sums of the training loss do differ."""
    network, _, first, tokens, _ = one_device
    evaluate = lambda config: validation.make_eval_step(network, config)(first.params, tokens, KEY)
    jax.tree.map(np.testing.assert_array_equal, evaluate(LossConfig(window_step=0.3)), evaluate(LossConfig()))
    of = lambda config: float(step.loss_fn(first.params, network, tokens, None, KEY, config, True)[0])
    assert of(LossConfig(window_step=0.3)) != of(LossConfig())


def _loss_at(params, network, rows, config, drawn_B, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(masking, "stratified_num_revealed", lambda key, lengths_B: drawn_B)
        return step.loss_fn(params, network, rows, None, KEY, config, True)[0]


def test_dropout_changes_the_loss_of_training_alone():
    config = tiny.config(model__dropout=0.5)
    network = HybridTransformer(config.network_config(27))
    params = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))
    tokens = tiny.data().train[np.arange(8)]
    loss = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    with_dropout, without = (float(loss(params, network, tokens, None, KEY, LossConfig(), x)[0]) for x in (False, True))
    assert with_dropout != without
