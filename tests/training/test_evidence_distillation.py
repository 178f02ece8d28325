"""Evidence taught by its trunk: the loss against a plain twin, and that it learns what the trunk would say."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import distillation, evidence_distillation, flops, keys, state, step
from ssmd_jax.training.config import MeshConfig
from tests.training import tiny
from tests.training.test_step import make

KEY = jax.random.key(0)
FROZEN = LossConfig(freeze_trunk=True, teacher_passes=3, teacher_span=6, teacher_tracks=5, temperature=0.6)
LEARNING = dataclasses.replace(FROZEN, freeze_trunk=False, draft_weight=0.7, target_weight=0.5)
NUM_TOKENS = 27
PASSES = range(FROZEN.teacher_passes)


@pytest.fixture(scope="module")
def network():
    return HybridTransformer(tiny.config(model__causal_form="evidence").network_config(NUM_TOKENS))


def moved(params, seed, by):
    noise = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(lambda x: x + by * jax.random.normal(next(noise), x.shape), params)


@pytest.fixture(scope="module")
def params(network):
    """As after training: the maps that start at zero would make the target the draft."""
    return moved(nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY)), 3, 0.3)


@pytest.fixture(scope="module")
def teacher(params):
    return state.trunk_of(moved(params, 4, 0.2))


@pytest.mark.parametrize("lengths", [None, (16, 9, 1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("config", [FROZEN, LEARNING], ids=["frozen", "learning"])
def test_loss_equals_a_twin_that_asks_one_law_at_a_time(network, params, teacher, config, lengths, monkeypatch):
    """The twin tells a track of the tokens between two passes by hiding all others from a causal pass over the row."""
    monkeypatch.setattr(evidence_distillation, "NEAR", 3)
    taught_by = teacher if config.keeps_teacher else None
    tokens, lengths_B = jnp.asarray(tiny.data().train[np.arange(4)]), None if lengths is None else jnp.asarray(lengths)
    rows = np.full(4, 16) if lengths is None else np.asarray(lengths)
    of = jax.jit(lambda *args: step.loss_fn(args[0], network, args[1], args[2], KEY, config, True, args[3]))
    total, terms = of(params, tokens, lengths_B, taught_by)

    order = orders.uniform_order(keys.row_keys(keys.stream(KEY, "order"), 4), jnp.asarray(rows), 16)
    true = orders.to_order_space(tokens, order)
    revealed = np.asarray(distillation.revealed_of_passes(KEY, jnp.asarray(rows), config))
    tracks = np.asarray(
        evidence_distillation.tracks_to_learn(jnp.asarray(revealed), jnp.asarray(rows), config.teacher_tracks)
    )
    log_law = lambda own, h: jax.nn.log_softmax(network.apply({"params": own}, h, method="head") / 0.6)

    @jax.jit
    def hidden(own, num_revealed):
        masked = masking.mask_suffix(true, num_revealed, NUM_TOKENS)
        return network.apply({"params": own}, masked, order, lengths_B, method="trunk")

    @jax.jit
    def told(h, start, end):
        """Laws of all tracks that have seen nothing of a row but `h` and the tokens of tracks `start .. end - 1`."""
        u = network.apply({"params": params}, h, method="token_free_input")
        index = jnp.arange(16)[None]
        hidden_from_all = (index < start[:, None]) | (index >= end[:, None])
        h, _ = network.apply(
            {"params": params}, h, u, true, order, lengths_B, True, hidden_from_all, method="causal_full"
        )
        return log_law(params, h)

    own = [hidden(params, jnp.asarray(revealed[:, p])) for p in PASSES]
    other = [hidden(teacher, jnp.asarray(revealed[:, p])) for p in PASSES] if taught_by is not None else own
    as_array = lambda x: np.asarray(x, np.float64)
    drafts = [as_array(log_law(params, h)) for h in own]
    laws = [as_array(log_law(params if taught_by is None else teacher, h)) for h in other]
    divergence = lambda law, student: np.sum(np.exp(law) * (law - student))
    names = ("draft_loss", "target_loss", "draft_near", "target_near")
    found, drift = {name: [[] for _ in range(4)] for name in names}, [[] for _ in range(4)]
    for t in PASSES:
        for row in range(4):
            drift[row].append(np.mean([divergence(laws[t][row, k], drafts[t][row, k]) for k in tracks[row, t]]))
        for s in range(t):
            targets = as_array(told(own[s], jnp.asarray(revealed[:, s]), jnp.asarray(revealed[:, t])))
            for row in range(4):
                distance = revealed[row, t] - revealed[row, s]
                if not rows[row] or not 1 <= distance < config.teacher_span:
                    continue
                at = tracks[row, t]
                assert at[0] == revealed[row, t] and (at >= at[0]).all() and (at < rows[row]).all()
                for kind, students in (("draft", drafts[s]), ("target", targets)):
                    value = np.mean([divergence(laws[t][row, k], students[row, k]) for k in at])
                    found[f"{kind}_loss"][row].append(value)
                    if distance < 3:
                        found[f"{kind}_near"][row].append(value)

    def mean(by_row):
        weights = rows * np.array([bool(x) for x in by_row])
        return np.average([np.mean(x) if x else 0.0 for x in by_row], weights=weights) if weights.any() else 0.0

    for name, by_row in found.items():
        np.testing.assert_allclose(terms[name], mean(by_row), rtol=2e-4, err_msg=name)
    if rows.any():
        assert terms["target_loss"] > 1e-3 and terms["draft_loss"] != terms["target_loss"]
    expected = config.target_weight * mean(found["target_loss"])
    if taught_by is not None:
        np.testing.assert_allclose(terms["drift"], mean(drift), rtol=2e-4)
        expected += config.draft_weight * mean(drift)
    np.testing.assert_allclose(total, expected, rtol=2e-4)


def test_each_pass_teaches_at_its_next_tracks():
    revealed, lengths = jnp.asarray([[0, 9], [0, 3], [0, 0], [0, 0]]), jnp.asarray([12, 4, 1, 0])
    tracks = np.asarray(evidence_distillation.tracks_to_learn(revealed, lengths, 5))
    assert tracks[0].tolist() == [[0, 1, 2, 3, 4], [9, 10, 11, 9, 10]]
    assert tracks[1].tolist() == [[0, 1, 2, 3, 0], [3] * 5] and not tracks[2:].any()


@pytest.mark.parametrize("config", [FROZEN, LEARNING], ids=["frozen", "learning"])
def test_the_target_nears_what_the_trunk_would_say(network, teacher, config):
    """Adam from evidence that says nothing; a frozen trunk has no gradient, one that learns keeps its drafts."""
    gradient = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True), static_argnums=(1, 5, 6))
    tokens = jnp.asarray(tiny.data().train[np.arange(16)])
    fresh = nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY))["causal"]
    trained, rule, found = {**teacher, "causal": fresh}, optax.adam(3e-3), []
    moments, taught_by = rule.init(trained), teacher if config.keeps_teacher else None
    for n in range(120):
        (_, terms), grads = gradient(trained, network, tokens, None, jax.random.key(n), config, True, taught_by)
        if config.freeze_trunk:
            still = {name: part for name, part in grads.items() if name != "causal"}
            assert not any(np.any(x) for x in jax.tree.leaves(still))
        updates, moments = rule.update(grads, moments)
        trained = optax.apply_updates(trained, updates)
        found.append({name: float(value) for name, value in terms.items()})
    assert found[0]["target_loss"] == pytest.approx(found[0]["draft_loss"], rel=1e-5)
    last = {name: np.mean([terms[name] for terms in found[-20:]]) for name in found[0]}
    assert last["target_loss"] < 0.75 * last["draft_loss"]
    assert last.get("drift", 0) < 0.1 * last["draft_loss"]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("axes", [(4, 1, 1), (1, 2, 2)], ids=str)
def test_a_mesh_changes_nothing(axes, freeze):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: tests/conftest.py sets 8 CPU devices")
    fields = {
        "model__causal_form": "evidence",
        "loss__freeze_trunk": freeze,
        "loss__teacher_passes": 3,
        "loss__teacher_tracks": 4,
        "training__accumulation": 2,
    }
    found = []
    for mesh_config in (MeshConfig(*axes), MeshConfig(data=1)):
        _, run, first, tokens, key = make(mesh_config, **fields)
        for _ in range(2):
            first, metrics = run(first, tokens, key)
        names = ("loss", "draft_loss", "target_loss", "grad_norm", *(() if freeze else ("drift",)))
        found.append({name: float(metrics[name]) for name in names})
    assert found[0] == pytest.approx(found[1], rel=2e-4)


def test_a_step_charges_passes_and_pairs(network):
    """By hand, from the widths of the tiny network."""
    width, length = 16, 16
    block = 2 * (4 * width**2 + 3 * width * 32) + 4 * length * width
    pair = 12 * width**2 * (6 + 5) + 4 * 6 * 5 * width
    head = 2 * width * NUM_TOKENS * 5
    of = lambda config: flops.step_flops_per_token(network.config, length, config)
    assert of(FROZEN) == pytest.approx(3 * block + (3 * (3 * pair + 3 * head) + 3 * head) / length)
    assert of(LEARNING) == pytest.approx(4 * 3 * block + (3 * (3 * pair + 4 * head) + 3 * 4 * head) / length)
    assert of(LossConfig()) == 3 * (block + 24 * width**2 + 2 * length * width + 2 * 2 * width * NUM_TOKENS)


def test_a_frozen_trunk_has_no_dropout_and_one_that_learns_has(teacher):
    network = HybridTransformer(
        tiny.config(model__dropout=0.5, model__causal_form="evidence").network_config(NUM_TOKENS)
    )
    params = moved(nn.unbox(jax.jit(lambda key: state.init_boxed_params(network, key))(KEY)), 3, 0.3)
    tokens = jnp.asarray(tiny.data().train[np.arange(8)])
    loss = jax.jit(step.loss_fn, static_argnums=(1, 5, 6))
    for config, taught_by, same in ((FROZEN, None, True), (LEARNING, teacher, False)):
        dropped, whole = (loss(params, network, tokens, None, KEY, config, x, taught_by)[1] for x in (False, True))
        for name in ("draft_loss", "target_loss"):
            assert (abs(float(dropped[name] - whole[name])) < 1e-6) == same


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="teacher_tracks"):
        LossConfig(freeze_trunk=True, teacher_passes=2, teacher_tracks=0)
