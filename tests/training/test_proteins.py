"""Training on sequences of any length, and a causal part on a frozen trunk in ESM-2's layout."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import ssmd_jax
from ssmd_jax.data import tokenizers
from ssmd_jax.data.buckets import Sequences
from ssmd_jax.data.cache import TokenStream
from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.data.pipeline import Data
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.evaluation import generate
from ssmd_jax.model import esm2_weights
from ssmd_jax.model.networks import make_network
from ssmd_jax.training import loading, loop, optimizer, step, validation
from tests.model.test_esm2 import CONFIG, params, tensors
from tests.training import tiny

LENGTH = 24
TRUNK = {"model__trunk": "esm2", "data__tokenizer": "esm2", "data__rows": "sequences", "data__num_buckets": 2}
# A pattern that a small network can learn: each letter follows from its neighbour.
LETTERS = np.array([4, 9, 14, 19, 23])


def sequences(count, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, LENGTH + 1, count)
    rows = [np.r_[LETTERS[(rng.integers(5) + np.arange(n)) % 5], 2] for n in lengths]
    stream = TokenStream(np.concatenate(rows).astype(np.uint8), np.cumsum([len(row) for row in rows]), "all used")
    return Sequences(stream, 1, LENGTH, 32, 2)


def data():
    return Data(sequences(150, 0), sequences(60, 1), None, tokenizers.make_tokenizer("esm2"))


def config(**fields):
    return tiny.config(length=LENGTH, **{**TRUNK, **fields})


def batch():
    """Rows of different lengths, and the same with more padding."""
    tokens = sequences(8, 2).rows(np.arange(8), LENGTH)
    wider = np.pad(tokens, ((0, 0), (0, 5)), constant_values=32)
    return jnp.asarray(tokens), jnp.asarray(wider)


@pytest.mark.slow
def test_padding_changes_no_nll():
    """Under the same orders and masks a row's terms are those of the row alone, however wide its batch."""
    network = make_network(CONFIG)
    tokens, wider = batch()
    lengths = step.row_lengths(tokens, 32)
    np.testing.assert_array_equal(lengths, step.row_lengths(wider, 32))
    order = jnp.stack([jnp.r_[jnp.arange(int(n))[::-1], jnp.arange(int(n), LENGTH + 5)] for n in lengths])
    apply = jax.jit(lambda *args: network.apply({"params": params()}, *args))
    true = jnp.take_along_axis(wider, order, axis=1)
    masked = jnp.where(jnp.arange(LENGTH + 5)[None] < 3, true, 32)
    wide = apply(masked, true, order, lengths)
    narrow = apply(masked[:, :LENGTH], true[:, :LENGTH], order[:, :LENGTH], lengths)
    for a, b in zip(wide, narrow, strict=True):
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(a[row, :n, 4:24], b[row, :n, 4:24], atol=1e-4)


@pytest.mark.slow
def test_accumulated_padded_gradient_is_that_of_the_mean_by_tokens():
    network = make_network(CONFIG)
    tokens, _ = batch()
    accumulate = jax.jit(step.accumulated_gradient, static_argnums=(1, 4, 5, 6))
    key = jax.random.key(0)
    metrics, gradient = accumulate(params(), network, tokens, key, LossConfig(), 2, True)
    loss_fn = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True), static_argnums=(1, 5, 6))
    expected_loss, expected, total = 0.0, jax.tree.map(np.zeros_like, params()), int((tokens < 32).sum())
    for m in range(2):
        rows = tokens[m::2]
        weight = int((rows < 32).sum()) / total
        (loss, _), part = loss_fn(
            params(), network, rows, step.row_lengths(rows, 32), jax.random.fold_in(key, m), LossConfig(), True
        )
        expected_loss += weight * loss
        expected = jax.tree.map(lambda a, b, w=weight: a + w * b, expected, part)
    np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, expected)


def test_validation_weighs_batches_by_their_tokens():
    sums = {"draft_sums": np.ones(8), "target_sums": np.ones(8), "counts": np.ones(8)}
    told = iter([(1.0, 10), (4.0, 30)])

    def eval_step(params, tokens, key):
        loss, count = next(told)
        return {"draft_loss": loss, "target_loss": 2 * loss, **sums, "tokens": count}

    result = validation.validate(eval_step, None, [None, None], jax.random.key(0))
    assert result.draft_loss == pytest.approx(3.25) and result.target_loss == pytest.approx(6.5)


@pytest.fixture(scope="module")
def trunk_run(tmp_path_factory):
    """A trunk trained as masked diffusion, with no causal part."""
    directory = tmp_path_factory.mktemp("trunk")
    fields = {"model__n_causal": 0, "loss__target_weight": 0.0, "training__num_steps": 6, "data__num_buckets": 1}
    summary = loop.train(config(**fields), directory, data())
    return directory, summary


@pytest.fixture(scope="module")
def head_run(trunk_run, tmp_path_factory):
    """A causal part trained on that trunk."""
    directory = tmp_path_factory.mktemp("head")
    fields = {"loss__freeze_trunk": True, "training__init_from": str(trunk_run[0]), "training__num_steps": 12}
    summary = loop.train(config(**fields, training__sample_every=12), directory, data())
    return directory, summary


@pytest.mark.slow
def test_a_frozen_trunk_stays_bit_for_bit(trunk_run, head_run):
    before, after = (loading.load_params(run[0])[0] for run in (trunk_run, head_run))
    for name in before:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    assert set(after) - set(before) == {"causal"}
    assert np.abs(after["causal"]["output"]).max() > 0


@pytest.mark.slow
def test_what_a_run_on_sequences_leaves(head_run):
    directory, summary = head_run
    assert summary["finished"] and summary["valid_target_loss"] < summary["valid_draft_loss"]
    law = LengthLaw.load(directory / "lengths.json")
    assert law == LengthLaw.of(data().train.lengths)
    lines = (directory / "metrics.jsonl").read_text()
    assert '"tokens"' in lines
    drawn = (directory / "samples.txt").read_text()
    assert set("LRINC") & set(drawn) and "_" not in drawn


@pytest.mark.slow
def test_samples_have_lengths_of_the_data(head_run):
    """Of the program that draws from a workdir: lengths of training sequences, the same for a seed, nothing behind."""
    drawn = generate.draw(head_run[0], num_samples=5, batch_size=3, window="full", seed=1)
    lengths = loading.load_lengths(head_run[0]).draw(1, 5)
    assert [len(text) for text in drawn.texts()] == lengths.tolist() and len(set(lengths)) > 1


def test_frozen_parameters_have_no_state_and_no_gradient():
    experiment = config(loss__freeze_trunk=True)
    schedule = optimizer.make_schedule(experiment.optimizer, 10)
    rule = optimizer.make_optimizer(experiment.optimizer, schedule, freeze_trunk=True)
    numbers = sum(x.size for x in jax.tree.leaves(rule.init(params())) if x.ndim)
    assert numbers == 2 * sum(x.size for x in jax.tree.leaves(params()["causal"]))
    tokens, _ = batch()
    _, gradient = jax.jit(step.accumulated_gradient, static_argnums=(1, 4, 5, 6))(
        params(), make_network(CONFIG), tokens, jax.random.key(0), LossConfig(freeze_trunk=True), 1, True
    )
    for name, part in gradient.items():
        largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(part))
        assert (largest > 0) == (name == "causal"), name


def test_trunk_rate_scales_the_updates_of_the_trunk_alone():
    gradient = jax.tree.map(np.ones_like, params())
    updates = []
    for rate in (1.0, 0.1):
        experiment = config(optimizer__trunk_rate=rate)
        rule = optimizer.make_optimizer(experiment.optimizer, optimizer.make_schedule(experiment.optimizer, 10))
        updates.append(jax.jit(rule.update)(gradient, rule.init(params()), params())[0])
    for name in updates[0]:
        factor = 1.0 if name == "causal" else 0.1
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(f * a, b, rtol=1e-5), *(u[name] for u in updates)
        )


@pytest.mark.slow
def test_a_run_from_published_weights(tmp_path):
    """Two layers as Hugging Face stores them; the trunk that is trained on is that one."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    fields = {"model__num_heads": 4, "model__n_noncausal": 2, "training__num_steps": 1, "training__ema_decay": 0.0}
    fields["training__eval_batches"] = 1
    given = {"loss__freeze_trunk": True, "training__init_from": str(path), **fields}
    loop.train(config(**given), tmp_path / "run", data())
    model, tokenizer, _ = ssmd_jax.load(tmp_path / "run")
    expected = esm2_weights.convert(tensors(), model.config)
    for name, part in expected.items():
        jax.tree.map(np.testing.assert_array_equal, part, model.params[name])
    assert tokenizer.kind == "esm2"
    with pytest.raises(ValueError, match="the weights hold tensors that are not of this network"):
        loop.train(config(**{**given, "model__n_noncausal": 1}), tmp_path / "other", data())


def test_a_description_that_differs_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}')
    save_file(tensors(), tmp_path / "model.safetensors")
    tokenizer = types.SimpleNamespace(fingerprint=lambda: "")
    with pytest.raises(ValueError, match=r"has model.token_dropout False, not True"):
        loading.load_start(tmp_path, CONFIG, tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__tokenizer": "text8"}, 'data.rows "sequences" is for proteins'),
        ({"data__tokenizer": "text8", "data__rows": "stream"}, "needs the ids of data.tokenizer 'esm2'"),
        ({"data__rows": "proteins"}, 'data.rows "proteins" is unknown'),
        ({"data__num_buckets": 0}, "data.num_buckets must be at least 1"),
        ({"optimizer__trunk_rate": 0.0}, "optimizer.trunk_rate must be positive"),
    ],
)
def test_bad_settings_are_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)
