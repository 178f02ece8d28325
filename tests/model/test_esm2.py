"""ESM-2: its logits against a twin in NumPy and against transformers, and the causal part on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssmd_jax.diffusion.window import LinearWindow
from ssmd_jax.model import esm2, esm2_weights, layers
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.networks import make_network
from ssmd_jax.sampling import speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.strict import StrictModel

CONFIG = HybridConfig(
    num_tokens=32, trunk="esm2", width=16, num_heads=4, n_noncausal=2, n_causal=1, mlp_width=32, dtype="float32"
)
B, D = 3, 6
LENGTHS = np.array([6, 4, 5])


@functools.cache
def tensors(config=CONFIG, seed=0):
    """Random tensors by their names in a file; norms' weights near one."""
    rng = np.random.default_rng(seed)
    shapes = esm2_weights.expected_shapes(config)
    return {n: ("orm.weight" in n) + rng.normal(size=s).astype(np.float32) * 0.3 for n, s in shapes.items()}


@functools.cache
def causal_params(config=CONFIG):
    """A causal part none of whose parameters is zero."""
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(make_network(config).init, jax.random.key(0), token, token, token))["params"]
    rng = np.random.default_rng(1)
    draw = lambda path, x: (path[-1].key == "scale") + 0.25 * rng.normal(size=x.shape).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes["causal"])


def params(config=CONFIG):
    trunk = esm2_weights.convert(tensors(dataclasses.replace(config, dtype="float32")), config)
    return {**trunk, "causal": causal_params(config)}


def model(config=CONFIG):
    return HybridModel(params(config), config)


def inputs(seed=0):
    """Tokens and positions in order space; behind a row's length masks and the left-over positions."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(esm2.FIRST_LETTER, esm2.LAST_LETTER + 1, (B, D))
    tokens[np.arange(D)[None] >= LENGTHS[:, None]] = esm2.MASK
    positions = np.stack([np.r_[rng.permutation(n), np.arange(n, D)] for n in LENGTHS])
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32)


def mask(tokens_BxD, num_revealed):
    return jnp.where(jnp.arange(D)[None] < num_revealed, tokens_BxD, esm2.MASK)


def sequences(tokens, positions):
    """Rows as a file of proteins has them: `<cls> sequence <eos>`, padded."""
    ids = np.full((B, D + 2), esm2.PAD)
    for b, n in enumerate(LENGTHS):
        ids[b, 0], ids[b, n + 1] = esm2.CLS, esm2.EOS
        ids[b, 1 + np.asarray(positions[b, :n])] = np.asarray(tokens[b, :n])
    return ids


def twin_logits(tensors, ids, config=CONFIG):
    """ESM-2 of one sequence without padding, `[L] -> [L, 33]`, in NumPy and float64."""
    from scipy.special import erf

    get = lambda name: np.asarray(tensors[name], np.float64)
    linear = lambda x, name: x @ get(f"{name}.weight").T + get(f"{name}.bias")
    gelu = lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * get(f"{name}.weight") + get(f"{name}.bias")

    def turned(x):  # [L, E]: the rotation of each pair of channels as a complex product
        half = config.head_dim // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)[None]
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=1)

    table = get("esm.embeddings.word_embeddings.weight")
    x = table[ids]
    if config.token_dropout:
        masked = ids == esm2.MASK
        x = np.where(masked[:, None], 0, x * 0.88 / (1 - masked.mean()))
    for layer in range(config.n_noncausal):
        name = f"esm.encoder.layer.{layer}"
        y = norm(x, f"{name}.attention.LayerNorm")
        heads = []
        for h in range(config.num_heads):
            part = slice(h * config.head_dim, (h + 1) * config.head_dim)
            q, k, v = (linear(y, f"{name}.attention.self.{n}")[:, part] for n in ("query", "key", "value"))
            scores = turned(q) @ turned(k).T / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + linear(np.concatenate(heads, axis=1), f"{name}.attention.output.dense")
        y = gelu(linear(norm(x, f"{name}.LayerNorm"), f"{name}.intermediate.dense"))
        x = x + linear(y, f"{name}.output.dense")
    x = norm(x, "esm.encoder.emb_layer_norm_after")
    return norm(gelu(linear(x, "lm_head.dense")), "lm_head.layer_norm") @ table.T + get("lm_head.bias")


@functools.partial(jax.jit, static_argnames="config")
def draft_of(config, params, masked, positions, lengths):
    """The trunk's logits of all ids, and of letters alone."""
    apply = functools.partial(make_network(config).apply, {"params": params})
    h_BxDxC = apply(masked, positions, lengths, method="trunk")
    return apply(h_BxDxC, method="id_logits"), apply(h_BxDxC, method="head")


@functools.partial(jax.jit, static_argnames=("config", "size"))
def windows(params, config, tokens, positions, start, size):
    """Draft and target logits of a window."""
    bound = HybridModel(params, config)
    context = bound.trunk(tokens, positions, start, jnp.asarray(LENGTHS))
    return bound.draft_logits(context, start, size), bound.target_logits(context, tokens, positions, start, size)


@functools.partial(jax.jit, static_argnames="config")
def full(params, config, masked, tokens, positions):
    """Draft and target logits of all tracks, as in training."""
    return make_network(config).apply({"params": params}, masked, tokens, positions, jnp.asarray(LENGTHS))


@pytest.mark.parametrize("token_dropout", [True, False])
@pytest.mark.parametrize("num_revealed", [0, 2, D])
def test_draft_equals_the_twin_in_sequence_order(token_dropout, num_revealed):
    """Whatever the order of the tracks and the padding of the row."""
    config = dataclasses.replace(CONFIG, token_dropout=token_dropout)
    tokens, positions = inputs()
    masked = mask(tokens, num_revealed)
    all_ids, letters = draft_of(config, params(config), masked, positions, jnp.asarray(LENGTHS))
    assert letters.shape == (B, D, 32) and letters.dtype == jnp.float32
    for b, n in enumerate(LENGTHS):
        expected = twin_logits(tensors(), sequences(masked, positions)[b, : n + 2], config)
        expected = expected[1 + np.asarray(positions[b, :n])]
        np.testing.assert_allclose(all_ids[b, :n], expected, atol=1e-4)
        np.testing.assert_allclose(letters[b, :n, 4:24], expected[:, 4:24], atol=1e-4)
    assert (np.delete(letters, np.arange(4, 24), axis=2) < -1e8).all() and np.isfinite(letters).all()


@pytest.mark.parametrize(
    "module", [esm2.Attention(CONFIG, 1.0), layers.SelfAttention(2, 8, jnp.float32, 1.0)], ids=["esm2", "ours"]
)
def test_the_output_is_one_product_over_heads_and_channels_as_they_lie(module):
    """In another order of the two the CPU would copy the kernel, transposed, in every pass."""
    x_BxDxC = jnp.zeros((2, 4, CONFIG.width))
    attend = lambda q, k, v: q + k + v
    variables = module.init(jax.random.key(0), x_BxDxC, attend)
    jaxpr = jax.make_jaxpr(lambda x: module.apply(variables, x, attend))(x_BxDxC).jaxpr
    products = [eqn.params["dimension_numbers"][0] for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert products[-1] == ((2, 3), (0, 1))


def test_full_rows_need_no_lengths():
    tokens, positions = inputs()
    logits = lambda lengths: draft_of(CONFIG, params(), tokens[:1], positions[:1], lengths)[0]
    np.testing.assert_allclose(logits(None), logits(jnp.array([D])), atol=1e-5)


@pytest.mark.parametrize("token_dropout", [True, False])
@pytest.mark.parametrize("size", ["8M", "35M"])
def test_logits_equal_those_of_transformers(token_dropout, size):
    """Random weights in the published shape of heads and widths, two layers; masks, padding and all 33 ids."""
    torch = pytest.importorskip("torch", reason="needs the packages torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs the packages torch and transformers")
    config = esm2.esm2_config(size, n_noncausal=2, n_causal=0, dtype="float32", token_dropout=token_dropout)
    theirs = transformers.EsmForMaskedLM(
        transformers.EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=config.width, num_hidden_layers=2,
            num_attention_heads=config.num_heads, intermediate_size=4 * config.width, position_embedding_type="rotary",
            token_dropout=token_dropout, emb_layer_norm_before=False, layer_norm_eps=1e-5, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    stored = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = esm2_weights.convert(stored, config)
    tokens, positions = inputs()
    masked = mask(tokens, 2)
    ids = sequences(masked, positions)
    with torch.no_grad():
        valid = torch.tensor(np.arange(D + 2)[None] < LENGTHS[:, None] + 2)
        expected = theirs(input_ids=torch.tensor(ids), attention_mask=valid.long()).logits.numpy()
    network = make_network(config)
    apply = functools.partial(network.apply, {"params": params})
    rows = jnp.broadcast_to(jnp.arange(D + 2)[None], ids.shape)
    whole = apply(apply(jnp.asarray(ids), rows, jnp.asarray(LENGTHS + 2), method="encode"), method="id_logits")
    tracks = apply(apply(masked, positions, jnp.asarray(LENGTHS), method="trunk"), method="id_logits")
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(whole[b, : n + 2], expected[b, : n + 2], atol=1e-4)
        np.testing.assert_allclose(tracks[b, :n], expected[b, 1 + np.asarray(positions[b, :n])], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_target_equals_draft_at_initialisation(dtype):
    """Exactly, on any weights of the trunk: the output map of a fresh causal part is zero."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    network, (tokens, positions) = make_network(config), inputs()
    fresh = nn.unbox(jax.jit(network.init)(jax.random.key(0), tokens, tokens, positions))["params"]
    grafted = {**fresh, **esm2_weights.convert(tensors(), config)}
    np.testing.assert_array_equal(*full(grafted, config, mask(tokens, 3), tokens, positions))
    np.testing.assert_array_equal(*windows(grafted, config, tokens, positions, jnp.array([3, 2, 0]), 3))


def test_window_equals_full():
    tokens, positions = inputs()
    start = jnp.array([2, 0, 4])
    masked = jnp.where(jnp.arange(D)[None] < start[:, None], tokens, esm2.MASK)
    draft, target = full(params(), CONFIG, masked, tokens, positions)
    for logits, whole in zip(windows(params(), CONFIG, tokens, positions, start, 4), (draft, target), strict=True):
        assert np.isfinite(logits).all()
        for b, n in enumerate(LENGTHS):
            count = min(4, n - int(start[b]))
            rows = slice(int(start[b]), int(start[b]) + count)
            np.testing.assert_allclose(logits[b, :count, 4:24], whole[b, rows, 4:24], atol=1e-4)
    assert np.abs(target - draft)[0, :, 4:24].max() > 0.1, "the causal part does nothing: the comparison shows nothing"


@functools.partial(jax.jit, static_argnames=("config", "revealed"))
def carried_gradient(params, config, tokens, positions, track, revealed):
    """Size of the gradient of the target at a track by each track's token, `[D]`."""

    # Tokens as mixtures of the table's rows, so that there is something to differentiate by.
    def target(weights_DxV):
        class Mixed(type(make_network(config))):
            def embed(self, _):
                carried = jnp.pad(weights_DxV[:-1], ((1, 0), (0, 0)))
                return jnp.einsum("DV,VC->DC", carried, self.table[:32])[None]

        masked = mask(tokens, revealed)
        logits = Mixed(config).apply({"params": params}, masked, tokens, positions, jnp.array([D]))[1]
        return jnp.sum(jnp.sin(logits[0, track, 4:24]))

    return jnp.abs(jax.grad(target)(jax.nn.one_hot(tokens[0], 32))).max(axis=1)


def test_causality_by_gradient():
    """The target of a track moves with every earlier token, and not with its own or later ones."""
    tokens, positions = inputs()
    revealed = 2
    for track in range(revealed, D):
        gradient = np.asarray(carried_gradient(params(), CONFIG, tokens[:1], positions[:1], track, revealed))
        assert (gradient[:track] > 1e-7).all() and (gradient[track:] == 0).all()


def compiled(method, *arrays, size=None):
    """A method of a bound model, compiled although the loop around it is not."""
    with jax.disable_jit(False):
        options = {"size": size} if size else {}
        return jax.jit(method, static_argnames=tuple(options))(*arrays, **options)


@dataclasses.dataclass
class Remembering:
    """A bound model whose contexts say what pass made them, as the strict model asks of them."""

    model: HybridModel
    num_tokens = property(lambda self: self.model.num_tokens)
    trunk_cost = property(lambda self: self.model.trunk_cost)
    verify_cost = property(lambda self: self.model.verify_cost)

    def trunk(self, tokens, positions, num_revealed, lengths):
        inner = compiled(HybridModel.trunk, self.model, tokens, positions, num_revealed, lengths)
        return {"inner": inner, "positions": positions, "num_revealed": num_revealed}

    def draft_logits(self, context, start, size):
        return compiled(HybridModel.draft_logits, self.model, context["inner"], start, size=size)

    def target_logits(self, context, tokens, positions, start, size):
        return compiled(HybridModel.target_logits, self.model, context["inner"], tokens, positions, start, size=size)

    def reorder(self, context, permutation):
        positions = jnp.take_along_axis(context["positions"], permutation, axis=1)
        inner = compiled(HybridModel.reorder, self.model, context["inner"], permutation)
        return {**context, "inner": inner, "positions": positions}


@pytest.mark.slow
def test_protocol_is_used_as_ruled():
    """The sampler on it, watched by the strict model; rows of different lengths draw amino acids alone."""
    tiny = dataclasses.replace(CONFIG, n_noncausal=1)
    trunk = esm2_weights.convert(tensors(tiny), tiny)
    strict = StrictModel(Remembering(HybridModel({**trunk, "causal": causal_params()}, tiny)))
    config = SpeculativeConfig(LinearWindow(1, 3), 2, order="confidence")
    with jax.disable_jit():
        result = speculative.sample(strict, jax.random.key(2), config, batch_size=2, length=4, lengths=np.array([4, 3]))
    assert strict.calls["trunk"] > 1 and strict.calls["target_logits"] > 1
    tokens = np.asarray(result.tokens)
    assert ((tokens[0] >= 4) & (tokens[0] <= 23)).all() and ((tokens[1, :3] >= 4) & (tokens[1, :3] <= 23)).all()
    assert tokens[1, 3] == esm2.MASK


def test_published_sizes():
    counts = {}
    token = jnp.zeros((1, 1), jnp.int32)
    for size in esm2.SIZES:
        network = make_network(esm2.esm2_config(size, n_causal=0))
        shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), token, token, token))
        counts[size] = round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6)
    assert counts == {"8M": 8, "35M": 34, "150M": 148, "650M": 651, "3B": 2839}
    with pytest.raises(ValueError, match="no ESM-2 of size '1M'"):
        esm2.esm2_config("1M")


def test_prepared_changes_no_logits():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens, positions = inputs()
    logits = lambda params: windows(params, config, tokens, positions, jnp.array([2, 0, 4]), 3)
    for ours, prepared in zip(logits(params(config)), logits(model(config).prepared().params), strict=True):
        np.testing.assert_array_equal(ours, prepared)


def test_another_vocabulary_is_refused():
    token = jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="has 32 tokens, "):
        make_network(dataclasses.replace(CONFIG, num_tokens=27)).init(jax.random.key(0), token, token, token)
