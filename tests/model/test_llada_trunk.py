"""LLaDA as a trunk: its logits are LLaDA's, and the causal part, the sampler and the loss on it."""

import collections
import dataclasses
import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.data import tokenizers
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.diffusion.window import FullWindow, LinearWindow
from ssmd_jax.model import dream, llada_trunk, pretrained
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.model.networks import make_network
from ssmd_jax.sampling import speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.training import loading, optimizer, step
from ssmd_jax.training.config import OptimizerConfig
from tests import fixtures
from tests.enumeration import Law
from tests.model.published import DREAM, LLADA
from tests.sampling.test_laws import chi_square, counts_of
from tests.sampling.test_memory import largest_array, speculate

# The tokenizer has no entry for the last id; 18 and 20 are special too.
CONFIG = HybridConfig(
    num_tokens=22, trunk="llada", width=16, num_heads=4, n_noncausal=2, n_causal=1, mlp_width=24, dtype="float32",
    vocab_size=23, mask_id=21, eos_id=19, special_from=18,
)  # fmt: skip
DRAWN = [*range(18), 19]
NEVER = [18, 20, 21]
B, D = 3, 6
LENGTHS = np.array([6, 4, 5])
TOKENIZER = types.SimpleNamespace(fingerprint=lambda: "")


@functools.cache
def params(config=CONFIG):
    """Parameters none of which is zero; scales of norms near one."""
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(make_network(config).init, jax.random.key(0), token, token, token))["params"]
    rng = np.random.default_rng(1)
    draw = lambda path, x: (path[-1].key == "scale") + 0.25 * rng.normal(size=x.shape).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs():
    """Text and positions in order space; behind a row's length the mask, id V, and the left-over positions."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(DRAWN, (B, D))
    tokens[np.arange(D)[None] >= LENGTHS[:, None]] = CONFIG.num_tokens
    positions = np.stack([np.r_[rng.permutation(n), np.arange(n, D)] for n in LENGTHS])
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32)


def mask(tokens_BxD, num_revealed):
    return jnp.where(jnp.arange(D)[None] < num_revealed, tokens_BxD, CONFIG.num_tokens)


@functools.partial(jax.jit, static_argnames="config")
def full(params, config, masked, tokens, positions, lengths):
    """Draft and target logits of all tracks, as in training."""
    return make_network(config).apply({"params": params}, masked, tokens, positions, lengths)


@functools.partial(jax.jit, static_argnames=("config", "size"))
def windows(params, config, tokens, positions, start, size):
    """Draft and target logits of a window."""
    bound = HybridModel(params, config)
    context = bound.trunk(tokens, positions, start, jnp.asarray(LENGTHS))
    return bound.draft_logits(context, start, size), bound.target_logits(context, tokens, positions, start, size)


@functools.partial(jax.jit, static_argnames="config")
def llada_logits(params, config, ids, is_text):
    """Of our LLaDA on one row in sequence order."""
    model = MaskedLanguageModel(params, config)
    return model.logits(model.hidden(ids[None], None, None, is_text[None])[0])[0]


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("num_revealed", [0, 2])
def test_draft_is_lladas_in_sequence_order(num_revealed, num_kv_heads):
    """Whatever the order of the tracks and the padding of the row; what is special has no probability."""
    published = dataclasses.replace(LLADA, num_kv_heads=num_kv_heads)
    config = dataclasses.replace(CONFIG, num_kv_heads=num_kv_heads % 4)
    (tokens, positions), weights = inputs(), params(config)
    masked = mask(tokens, num_revealed)
    draft = np.asarray(full(weights, config, masked, tokens, positions, jnp.asarray(LENGTHS))[0])
    assert draft.shape == (B, D, 22) and draft.dtype == np.float32 and np.isfinite(draft).all()
    for b, n in enumerate(LENGTHS):
        # One length, so that it compiles once; what pads the row is masked for LLaDA too.
        ids = np.zeros(D, np.int32)
        ids[positions[b, :n]] = np.where(masked[b, :n] == 22, 21, masked[b, :n])
        expected = np.asarray(llada_logits(weights["network"], published, ids, np.arange(D) < n))[positions[b, :n]]
        np.testing.assert_allclose(draft[b, :n][:, DRAWN], expected[:, DRAWN], atol=1e-5)
    assert (draft[..., NEVER] < -1e8).all()


def test_logits_of_the_public_implementation(tmp_path):
    """Through the folder that `training.init_from` names, tracks in reverse."""
    folder, expected = fixtures.llada_tiny(tmp_path)
    config = HybridConfig(num_tokens=128, **llada_trunk.read_fields(folder), n_causal=0, dtype="float32")
    weights = loading.load_start(folder, config, TOKENIZER)
    ids = jnp.asarray(expected["full_ids"][:, ::-1], jnp.int32)
    positions = jnp.arange(ids.shape[1])[None, ::-1]
    draft = np.asarray(full(weights, config, ids, ids, positions, None)[0])[0, ::-1]
    drawn = np.arange(128) != config.mask_id
    np.testing.assert_allclose(draft[:, drawn], expected["full_logits"][:, drawn], atol=1e-4)


@functools.cache
def fresh():
    token = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(jax.jit(make_network(CONFIG).init)(jax.random.key(0), token, token, token))["params"]["causal"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_target_equals_draft_at_initialisation(dtype):
    """Exactly, on any weights of the trunk: the output map of a fresh causal part is zero."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    (tokens, positions), grafted = inputs(), {**params(), "causal": fresh()}
    draft, target = full(grafted, config, mask(tokens, 3), tokens, positions, jnp.asarray(LENGTHS))
    np.testing.assert_array_equal(draft, target)


def test_window_equals_full():
    (tokens, positions), start = inputs(), jnp.array([2, 0, 4])
    masked = jnp.where(jnp.arange(D)[None] < start[:, None], tokens, CONFIG.num_tokens)
    whole = full(params(), CONFIG, masked, tokens, positions, jnp.asarray(LENGTHS))
    for logits, of_all in zip(windows(params(), CONFIG, tokens, positions, start, 4), whole, strict=True):
        for b, n in enumerate(LENGTHS):
            count = min(4, n - int(start[b]))
            rows = slice(int(start[b]), int(start[b]) + count)
            np.testing.assert_allclose(logits[b, :count, :18], of_all[b, rows, :18], atol=1e-4)
    assert np.abs(whole[1] - whole[0])[0, :, :18].max() > 0.1, "the causal part does nothing"


def test_the_target_of_a_track_sees_the_tokens_before_it_alone():
    (tokens, positions), known = inputs(), mask(inputs()[0], 2)
    target = lambda tokens: np.asarray(full(params(), CONFIG, known, tokens, positions, None)[1])[0, :, :18]
    for track in range(2, D):
        moved = np.abs(target(tokens.at[0, track].set((tokens[0, track] + 1) % 18)) - target(tokens)).max(axis=-1)
        assert (moved[: track + 1] == 0).all() and (moved[track + 1 :] > 1e-5).all()


class Enumerated:
    """A bound network as the enumeration asks it: one track at a time, remembered."""

    def __init__(self, model):
        self.model, self.num_tokens = model, model.num_tokens
        self.trunk_cost, self.verify_cost = model.trunk_cost, model.verify_cost

    @functools.cache  # noqa: B019
    def _logits(self, tokens, positions, revealed):
        """Draft and target of all tracks; a target hangs on the tokens before its track alone."""
        given = np.array([tokens + (0,) * (len(positions) - len(tokens))])
        masked = np.where(np.arange(len(positions))[None] < revealed, given, self.num_tokens)
        pair = full(self.model.params, self.model.config, masked, given, np.array([positions]), None)
        return [np.asarray(logits, np.float64)[0] for logits in pair]

    def numpy_draft_logits(self, tokens, positions, revealed, track):
        return self._logits(tuple(tokens[:revealed]), tuple(positions), revealed)[0][track]

    def numpy_target_logits(self, tokens, positions, revealed, track):
        return self._logits(tuple(tokens[:track]), tuple(positions), revealed)[1][track]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SpeculativeConfig(FullWindow(), 1), marks=pytest.mark.slow),
        SpeculativeConfig(LinearWindow(1, 2), 2, draft_temperature=1.5),
    ],
    ids=["full", "growing"],
)
def test_sampler_follows_its_law(config):
    """Tokens, passes and rounds, enumerated; of the ids 0 to 3 the mask, 2, is never drawn."""
    shape = dataclasses.replace(CONFIG, num_tokens=4, vocab_size=5, mask_id=2, eos_id=3, special_from=2, n_noncausal=1)
    model = HybridModel(params(shape), shape)
    result = speculative.sample(model, jax.random.key(1), config, batch_size=4000, length=3)
    law = {key: prob for key, prob in Law(Enumerated(model), config, 3).joint().items() if prob > 0}
    assert chi_square(counts_of(result), law, 4000) > 1e-3
    drawn = collections.Counter(np.asarray(result.tokens).ravel().tolist())
    assert set(drawn) == {0, 1, 3}


@pytest.mark.slow
def test_sampler_never_holds_logits_of_all_tracks():
    shape = dataclasses.replace(CONFIG, num_tokens=520, vocab_size=521, mask_id=520, eos_id=-1, special_from=0)
    assert largest_array(speculate, HybridModel(params(shape), shape)) < 3 * 29 * 520


@pytest.mark.slow
def test_training_never_holds_logits_of_all_tracks():
    """One chunk of them at a time."""
    config = dataclasses.replace(CONFIG, num_tokens=4200, vocab_size=4224, mask_id=4210, special_from=0, eos_id=-1)
    tokens = jnp.zeros((16, 64), jnp.int32)
    token = tokens[:1, :1]
    network = make_network(config)
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), token, token, token))["params"]
    gradient = jax.grad(
        lambda p, key: step.loss_fn(p, network, tokens, None, key, LossConfig(freeze_trunk=True), True)[0]
    )
    train = lambda key, length: gradient(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), key)["causal"]
    assert largest_array(lambda _, key, length: train(key, length), jnp.zeros(1)) < 16 * 64 * 4200 / 3


def test_loss_is_that_of_the_logits():
    """The head with its rule, as the trainer's cross entropy takes it, is the head that samplers read."""
    network = make_network(CONFIG)
    apply = jax.jit(lambda method, h: network.apply({"params": params()}, h, method=method), static_argnums=0)
    h_BxDxC = np.random.default_rng(0).normal(size=(B, D, CONFIG.width)).astype(np.float32)
    product = (apply("readout", h_BxDxC) @ network.head_of(params()))[..., : CONFIG.num_tokens]
    logits = apply("head", h_BxDxC)
    np.testing.assert_allclose(product[..., DRAWN], logits[..., DRAWN], atol=1e-5)
    assert (product[..., NEVER] < -1e8).all()


def test_without_a_vocabulary_of_its_own_the_mask_is_behind_the_tokens():
    config = dataclasses.replace(CONFIG, vocab_size=0, mask_id=0, eos_id=-1, special_from=0)
    trunk = llada_trunk.trunk_config(config)
    assert (trunk.vocab_size, trunk.mask_id) == (23, 22)
    np.testing.assert_array_equal(llada_trunk.is_drawn(config), np.arange(23) < 22)


def test_rates_of_muon_know_the_trunks_kernels():
    """Every kernel of its blocks is a matrix of its own inputs and outputs; embedding and head are Adam's."""
    found = optimizer.muon_dimensions(params())["network"]
    assert found["embedding"] is None and found["head"] is None
    for part in ("attention", "mlp"):
        assert None not in jax.tree.leaves(found["blocks_0"][part], is_leaf=lambda x: x is None)
    rule = optimizer.make_optimizer(OptimizerConfig(name="muon"), lambda step: 1e-2)
    jax.eval_shape(rule.init, params())
    decays = optimizer.decay_mask(params())["network"]
    assert not decays["embedding"] and decays["blocks_1"]["attention"]["qkv"]


def test_muon_orthogonalises_each_tensor_of_the_files_apart():
    """Queries, keys and values, gate and value: the step of a joined kernel is that of its tensors alone."""
    block = params()["network"]["blocks_0"]
    rule = optimizer.make_optimizer(OptimizerConfig(name="muon", clip_norm=0.0), lambda step: 1e-2)

    def step(kernel, name):
        tree = {"blocks_0": {name: kernel}}
        return rule.update(tree, rule.init(tree), tree)[0]["blocks_0"][name]

    qkv_CxKx3xE, gate_up_Cx2xF = block["attention"]["qkv"], block["mlp"]["gate_up"]
    joined = np.asarray(step(qkv_CxKx3xE, "qkv"))
    for part in range(3):
        # As a plain matrix, which the second kernel of the MLP is.
        alone = step(qkv_CxKx3xE[:, :, part].reshape(16, 16), "down")
        np.testing.assert_allclose(joined[:, :, part].reshape(16, 16), alone, atol=1e-6)
    # Two queries to a key: each is apart, too.
    grouped_CxKx4xE = jax.random.normal(jax.random.key(0), (16, 2, 4, 4))
    joined = np.asarray(step(grouped_CxKx4xE, "qkv"))
    for part in range(4):
        alone = step(grouped_CxKx4xE[:, :, part].reshape(16, 8), "down")
        np.testing.assert_allclose(joined[:, :, part].reshape(16, 8), alone, atol=1e-6)
    joined = np.asarray(step(gate_up_Cx2xF, "gate_up"))
    for part in range(2):
        np.testing.assert_allclose(joined[:, part], step(gate_up_Cx2xF[:, part], "down"), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 21, "mask_id": 20}, "model.vocab_size 21 is below the tokenizer's 22 tokens"),
        ({"mask_id": 23}, "model.mask_id 23 lies outside the 23 ids of model.vocab_size"),
        ({"vocab_size": 0}, "model.mask_id 21 lies outside the 0 ids"),
        ({"special_from": -1}, "model.special_from must be a whole number of at least 0"),
    ],
)
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def tokenizer_json(symbols):
    """The smallest tokenizer.json: a vocabulary of words."""
    hf = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    model = hf.models.WordLevel({symbol: n for n, symbol in enumerate(symbols)}, unk_token=symbols[0])
    return hf.Tokenizer(model).to_str().encode()


def test_published_folders_that_do_not_fit_are_named(tmp_path):
    pretrained.save(tmp_path / "llada", MaskedLanguageModel(params()["network"], LLADA))
    start = lambda folder, **change: loading.load_start(
        tmp_path / folder, dataclasses.replace(CONFIG, **change), TOKENIZER
    )
    found = start("llada")
    jax.tree.map(np.testing.assert_array_equal, found["network"], params()["network"])
    with pytest.raises(ValueError, match=r"has model.rope_theta 500000.0, not 10000.0"):
        start("llada", rope_theta=1e4)
    with pytest.raises(ValueError, match=r"set model.trunk to 'esm2' or 'llada'"):
        start("llada", trunk="own", vocab_size=0, mask_id=0)
    (tmp_path / "llada" / "tokenizer.json").write_bytes(tokenizer_json("ab"))
    with pytest.raises(ValueError, match=r"has another tokenizer than data gives: take its tokenizer.json"):
        start("llada")
    same = tokenizers.make_tokenizer("huggingface", tmp_path / "llada" / "tokenizer.json")
    assert set(loading.load_start(tmp_path / "llada", CONFIG, same)) == {"network"}
    (tmp_path / "dream").mkdir()
    (tmp_path / "dream" / "model.safetensors").touch()
    (tmp_path / "dream" / "config.json").write_text(json.dumps(dream.to_fields(DREAM)))
    with pytest.raises(ValueError, match="holds no LLaDA: its network predicts the token behind"):
        start("dream")
    (tmp_path / "llada" / "config.json").write_text(json.dumps({"model_type": "esm"}))
    with pytest.raises(ValueError, match="model_type 'esm' is none of llada, Dream"):
        start("llada")
