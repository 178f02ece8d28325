"""The hybrid transformer: what may depend on what (by gradient), and its windowed form against the full one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.model.layers import Embedding

V, D, B = 7, 10, 3
SIZES = (1, 4, D)
CONFIG = HybridConfig(num_tokens=V, width=32, num_heads=4, n_noncausal=3, n_causal=2, dtype="float32")
SWITCHES = {
    "two causal blocks": {},
    "one causal block": {"n_causal": 1},
    "three causal blocks": {"n_causal": 3},
    "wide causal block": {"n_causal": 1, "causal_mlp_width": 96},
    "halves": {"rotary_form": "halves"},
    "evidence": {"n_causal": 1, "causal_form": "evidence"},
    "no residual": {"output_residual": False},
    "gather": {"embedding": "gather"},
    "plain": {"n_causal": 0},
    "remat, unrolled": {"remat": True, "unroll": 3},
}


@functools.cache
def random_params(config, scale=0.25):
    """Parameters none of which is zero, so that nothing is independent by accident; norms' scales near one."""
    tokens = jnp.zeros((1, D), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(HybridTransformer(config).init, jax.random.key(0), tokens, tokens, tokens))
    rng = np.random.default_rng(1)
    draw = lambda path, x: (path[-1].key == "scale") + scale * rng.normal(size=x.shape).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


@functools.cache
def initial_params():
    tokens = jnp.zeros((1, D), jnp.int32)
    return nn.unbox(jax.jit(HybridTransformer(CONFIG).init)(jax.random.key(0), tokens, tokens, tokens))["params"]


@functools.partial(jax.jit, static_argnames=("sizes", "full_rows"))
def windows(model, tokens, positions, start, lengths, sizes, full_rows=False):
    """Hidden vectors, and draft and target logits of a window of each size."""
    lengths = np.full(tokens.shape[0], tokens.shape[1]) if full_rows else lengths
    context = model.trunk(tokens, positions, start, lengths)
    logits = {
        size: (
            model.draft_logits(context, start, size),
            model.target_logits(context, tokens, positions, start, size),
        )
        for size in sizes
    }
    return context.h_BxDxC, logits


@functools.partial(jax.jit, static_argnames="config")
def full(config, params, tokens, positions, start, lengths=None):
    """Draft and target logits of all tracks, as in training."""
    return HybridTransformer(config).apply({"params": params}, mask(tokens, start), tokens, positions, lengths)


@functools.partial(jax.jit, static_argnames="size")
def reordered_windows(model, tokens, positions, start, permutation, size):
    """Logits after `reorder` within one pass, and the permuted positions."""
    context = model.trunk(tokens, positions, start, np.full(tokens.shape[0], tokens.shape[1]))
    context = model.reorder(context, permutation)
    positions = jnp.take_along_axis(positions, permutation, axis=1)
    return (
        model.draft_logits(context, start, size),
        model.target_logits(context, tokens, positions, start, size),
        positions,
    )


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    tokens_BxD = jnp.asarray(rng.integers(0, V, (B, D)), jnp.int32)
    positions_BxD = jnp.asarray(np.stack([rng.permutation(D) for _ in range(B)]), jnp.int32)
    return tokens_BxD, positions_BxD


def mask(tokens_BxD, num_revealed_B):
    return jnp.where(jnp.arange(tokens_BxD.shape[1])[None] < num_revealed_B[:, None], tokens_BxD, V)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rotary_form", ["query_next", "halves"])
def test_target_equals_draft_at_initialisation(dtype, rotary_form):
    config = dataclasses.replace(CONFIG, dtype=dtype, rotary_form=rotary_form)
    params, (tokens, positions), start = initial_params(), inputs(), jnp.array([0, 4, 9])
    draft, target = full(config, params, tokens, positions, start)
    assert draft.dtype == target.dtype == jnp.float32
    np.testing.assert_array_equal(draft, target)
    _, logits = windows(HybridModel(params, config), tokens, positions, start, jnp.full(B, D), sizes=(4,))
    np.testing.assert_array_equal(*logits[4])


@pytest.mark.parametrize("name", SWITCHES)
def test_window_equals_full(name):
    """Rows at i = 0, near the end, at i = D - 1 and finished: only they show a clamped start or a lost start vector."""
    config, (tokens, positions) = dataclasses.replace(CONFIG, **SWITCHES[name]), inputs()
    params = random_params(config)
    for start_B in ([0, 3, D - 1], [D - 2, D, 1]):
        start = jnp.array(start_B)
        draft, target = full(config, params, tokens, positions, start)
        for full_rows in (False, True):
            _, logits = windows(
                HybridModel(params, config), tokens, positions, start, jnp.full(B, D), SIZES, full_rows=full_rows
            )
            for size, (window_draft, window_target) in logits.items():
                assert np.isfinite(window_draft).all() and np.isfinite(window_target).all()
                for b in range(B):
                    count = min(size, D - start_B[b])
                    rows = slice(start_B[b], start_B[b] + count)
                    np.testing.assert_allclose(window_draft[b, :count], draft[b, rows], atol=1e-4)
                    np.testing.assert_allclose(window_target[b, :count], target[b, rows], atol=1e-4)
        if config.n_causal:
            assert np.abs(target - draft).max() > 0.1, "the causal part does nothing: the comparison shows nothing"


def test_a_wide_causal_block_costs_what_its_kernels_cost():
    config = HybridConfig(num_tokens=V, width=64, num_heads=2, n_noncausal=3, mlp_width=128)
    wide = dataclasses.replace(config, causal_mlp_width=256)
    shapes = jax.eval_shape(HybridTransformer(wide).init, jax.random.key(0), *[jnp.zeros((1, D), jnp.int32)] * 3)
    kernels = lambda part: sum(x.size for name in ("attention", "mlp") for x in jax.tree.leaves(part[name]))
    params = nn.unbox(shapes)["params"]
    (causal,) = (part for name, part in params["causal"].items() if name.startswith("blocks"))
    assert causal["mlp"]["up"].shape == (64, 2, 256)
    ratio = kernels(causal) / (4 * 64**2 + 3 * 64 * 128)
    for each, cost in ((config, 1.0), (wide, ratio)):
        model = HybridModel(None, each)
        assert model.verify_cost == pytest.approx(cost / (3 + cost))
        assert model.trunk_cost + model.verify_cost == pytest.approx(1)


def test_reorder_equals_a_pass_under_the_new_order():
    """Permuting the masked suffix of a context is the same as having run the pass with it permuted."""
    (tokens, positions), start = inputs(), jnp.array([0, 4, D - 1])
    model = HybridModel(random_params(CONFIG), CONFIG)
    permutation = np.tile(np.arange(D), (B, 1))
    for b, i in enumerate(start.tolist()):
        permutation[b, i:] = i + np.random.default_rng(b).permutation(D - i)
    draft, target, new_positions = reordered_windows(model, tokens, positions, start, jnp.asarray(permutation), 4)
    _, afresh = windows(model, tokens, new_positions, start, jnp.full(B, D), sizes=(4,))
    for b, i in enumerate(start.tolist()):
        count = min(4, D - i)
        np.testing.assert_allclose(draft[b, :count], afresh[4][0][b, :count], atol=1e-4)
        np.testing.assert_allclose(target[b, :count], afresh[4][1][b, :count], atol=1e-4)


@pytest.mark.parametrize("embedding", ["one_hot", "gather"])
@pytest.mark.parametrize("name", ["two causal blocks", "one causal block", "halves", "no residual", "evidence"])
def test_who_sees_whom(name, embedding):
    """By gradient: the test that catches a target which sees what it should judge.

    Every track holds a token of its own, so that the gradient by a row of the embedding table is the gradient by the
    token of one track.
    """
    config = dataclasses.replace(CONFIG, num_tokens=D, embedding=embedding, **SWITCHES[name])
    params, network = random_params(config), HybridTransformer(config)
    _, positions = (x[:1] for x in inputs())
    tokens = jnp.asarray(np.random.default_rng(3).permutation(D))[None]

    @jax.jit
    def sensitivity(num_revealed):
        """Largest derivative of each track's logits by each track's token, `[2, D, D]`: draft, target."""

        def logits(table):
            moved = {**params, "embedding": {"table": table}}
            masked = jnp.where(jnp.arange(D)[None] < num_revealed, tokens, D)
            return [out[0] for out in network.apply({"params": moved}, masked, tokens, positions)]

        jacobians = jax.jacrev(logits)(params["embedding"]["table"])  # of [D, V, V + 1, C]
        return jnp.stack([jnp.abs(jacobian).max(axis=(1, 3))[:, tokens[0]] for jacobian in jacobians])

    for num_revealed in (0, 1, 4, D - 1):
        draft, target = np.asarray(sensitivity(num_revealed))
        revealed, masked_tracks = np.arange(num_revealed), np.arange(num_revealed, D)
        for k in masked_tracks:
            assert (draft[k, revealed] > 1e-6).all(), "the draft ignores a revealed token"
            assert (draft[k, masked_tracks] == 0).all(), "the draft sees a masked token"
            assert (target[k, k:] == 0).all(), "the target moves with its own track's token or a later one"
            assert (target[k, :k] > 1e-7).all(), "the target ignores an earlier token"
            assert k == 0 or target[k, k - 1] > 1e-6, "the target ignores the token before it"


def test_positions_and_tokens_permute_together():
    """Inside the revealed prefix nothing of the draft changes; inside the masked suffix it is permuted alike."""
    model, (tokens, positions), i = HybridModel(random_params(CONFIG), CONFIG), inputs(), 4
    rng = np.random.default_rng(1)
    permutation = np.concatenate([rng.permutation(i), i + rng.permutation(D - i)])
    start = jnp.full(B, i)
    before, logits = windows(model, tokens, positions, start, jnp.full(B, D), sizes=(D - i,))
    after, permuted = windows(
        model, tokens[:, permutation], positions[:, permutation], start, jnp.full(B, D), sizes=(D - i,)
    )
    np.testing.assert_allclose(after, before[:, permutation], atol=3e-4)
    np.testing.assert_allclose(permuted[D - i][0], logits[D - i][0][:, permutation[i:] - i], atol=1e-4)
    assert np.abs(before - before[:, permutation]).max() > 0.1


def test_target_depends_on_where_it_must_write():
    """The same carried tokens, another position to predict: the target moves."""
    model, (tokens, positions) = HybridModel(random_params(CONFIG), CONFIG), inputs()
    start, swapped = jnp.full(B, 3), np.arange(D)
    swapped[[5, 8]] = swapped[[8, 5]]
    _, before, _ = reordered_windows(model, tokens, positions, start, jnp.tile(jnp.arange(D)[None], (B, 1)), D - 3)
    _, after, _ = reordered_windows(
        model, tokens, positions, start, jnp.tile(jnp.asarray(swapped)[None], (B, 1)), D - 3
    )
    np.testing.assert_allclose(before[:, :2], after[:, :2], atol=1e-4)
    assert np.abs(before[:, 2] - after[:, 2]).max() > 1e-3


def numpy_causal_twin(params, config, h, tokens, positions):
    """The causal part of one row written with loops over tracks, in float64, from METHOD.md section 3."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    causal, length = p["causal"], len(tokens)
    norm = lambda x, scale: x / np.sqrt(np.mean(x * x) + 1e-6) * scale

    def rotate(x, position):  # [E]
        half = len(x) // 2
        angle = position * 10_000.0 ** (-np.arange(0, len(x), 2) / len(x))
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    x, carried = [], []
    normed = [norm(h[k], causal["input_norm"]["scale"]) for k in range(length)]
    for k in range(length):
        embedded = p["embedding"]["table"][tokens[k - 1]] if k else causal["start"][0]
        before = normed[k - 1] if k else causal["start"][1]
        x.append(embedded @ causal["project"][0] + before @ causal["project"][1] + normed[k] @ causal["project"][2])
        carried.append(positions[k - 1] if k else -1)
    for n in range(config.n_causal):
        block = causal[f"blocks_{n}"]
        qkv = [
            np.einsum("c,cthe->the", norm(v, block["attention_norm"]["scale"]), block["attention"]["qkv"]) for v in x
        ]
        for k in reversed(range(length)):
            heads = []
            for head in range(config.num_heads):
                q = rotate(qkv[k][0, head], positions[k])
                scores = np.array([q @ rotate(qkv[m][1, head], carried[m]) for m in range(k + 1)])
                weights = np.exp((scores - scores.max()) / np.sqrt(config.head_dim))
                heads.append(sum(w * qkv[m][2, head] for m, w in enumerate(weights / weights.sum())))
            y = x[k] + np.einsum("he,hec->c", np.array(heads), block["attention"]["out"])
            gate, up = np.einsum("c,cgf->gf", norm(y, block["mlp_norm"]["scale"]), block["mlp"]["up"])
            x[k] = y + (gate / (1 + np.exp(-gate)) * up) @ block["mlp"]["down"]
    logits = []
    for k in range(length):
        out = norm(x[k], causal["output_norm"]["scale"]) @ causal["output"]
        logits.append(norm(h[k] + out, p["final_norm"]["scale"]) @ p["head"])
    return np.array(logits)


@pytest.mark.parametrize("identity", [True, False])
def test_causal_part_equals_a_plain_twin(identity):
    """Under the identity order an ordinary causal transformer; under any order the loops of the method's page."""
    params, (tokens, positions), start = random_params(CONFIG, 0.1), inputs(), jnp.array([0, 4, 9])
    if identity:
        positions = jnp.tile(jnp.arange(D)[None], (B, 1))
    _, target = full(CONFIG, params, tokens, positions, start)
    h, _ = windows(HybridModel(params, CONFIG), tokens, positions, start, jnp.full(B, D), sizes=SIZES)
    for b in range(B):
        twin = numpy_causal_twin(
            params, CONFIG, np.asarray(h[b], np.float64), np.asarray(tokens[b]), np.asarray(positions[b])
        )
        np.testing.assert_allclose(target[b], twin, atol=2e-4)


def test_lengths_equal_the_cut_sequence():
    """Padding is never attended, whatever it holds."""
    params, rng = random_params(CONFIG), np.random.default_rng(5)
    model = HybridModel(params, CONFIG)
    lengths = np.array([D, 6, 6])
    positions = jnp.asarray(np.stack([np.concatenate([rng.permutation(n), np.arange(n, D)]) for n in lengths]))
    tokens = jnp.asarray(np.where(np.arange(D)[None] < lengths[:, None], rng.integers(0, V, (B, D)), V))
    start = jnp.array([2, 3, 0])
    h, logits = windows(model, tokens, positions, start, jnp.asarray(lengths), sizes=(3,))
    draft, target = full(CONFIG, params, tokens, positions, start, jnp.asarray(lengths))
    for n in (6, D):
        rows = np.flatnonzero(lengths == n)
        cut = tokens[rows, :n], positions[rows, :n], start[rows]
        cut_h, _ = windows(model, *cut, jnp.full(len(rows), n), sizes=(3,), full_rows=True)
        cut_draft, cut_target = full(CONFIG, params, *cut)
        np.testing.assert_allclose(h[rows, :n], cut_h, atol=3e-4)
        np.testing.assert_allclose(draft[rows, :n], cut_draft, atol=1e-4)
        np.testing.assert_allclose(target[rows, :n], cut_target, atol=1e-4)
    for b, (i, n) in enumerate(zip(start.tolist(), lengths.tolist(), strict=True)):
        np.testing.assert_allclose(logits[3][1][b, : min(3, n - i)], target[b, i : min(i + 3, n)], atol=1e-4)


def test_dropout_is_on_in_training_only():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    params, (tokens, positions) = random_params(config), inputs()
    call = jax.jit(
        lambda key: HybridTransformer(config).apply(
            {"params": params}, tokens, tokens, positions, deterministic=False, rngs={"dropout": key}
        )[0]
    )
    assert np.abs(call(jax.random.key(0)) - call(jax.random.key(1))).max() > 1e-3
    start = jnp.full(B, 4)
    without = full(CONFIG, params, tokens, positions, start)
    np.testing.assert_array_equal(full(config, params, tokens, positions, start), without)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"width": 33}, "model.width 33"),
        ({"width": 36, "num_heads": 12}, "rotary"),
        ({"rotary_form": "none"}, "model.rotary_form"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"n_noncausal": 0}, "model.n_noncausal"),
        ({"n_causal": -1}, "model.n_causal"),
        ({"width": 32.0}, "model.width"),
        ({"attention": "cudnn"}, "cudnn"),
        ({"dtype": "float16"}, "model.dtype"),
        ({"causal_mlp_width": -1}, "model.causal_mlp_width"),
        (
            {"mlp": "hopper", "dtype": "bfloat16", "width": 384, "mlp_width": 1024, "causal_mlp_width": 1000},
            "got 384 and 1000",
        ),
    ],
)
def test_bad_configurations_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **change)


def test_gathered_embedding_equals_the_one_hot_product():
    """Values and gradient of the table, the mask's row included, which the gather takes apart."""
    tokens = jnp.asarray(np.random.default_rng(4).integers(0, 6, (3, 7)))
    upstream = jax.random.normal(jax.random.key(5), (3, 7, 4))
    table = {"params": {"table": jax.random.normal(jax.random.key(6), (6, 4))}}

    def value_and_gradient(one_hot):
        embedding = Embedding(5, 6, 4, jnp.float32, one_hot)
        apply = lambda table: embedding.apply(table, tokens)
        return jax.jit(apply)(table), jax.jit(jax.grad(lambda table: (apply(table) * upstream).sum()))(table)

    assert (np.asarray(tokens) == 5).any()
    for a, b in zip(*map(jax.tree.leaves, (value_and_gradient(True), value_and_gradient(False))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_padding_of_a_large_vocabulary_is_never_seen(monkeypatch):
    """Head and embedding have more rows than tokens; logits do not, and no real token changes with the padding."""
    monkeypatch.setattr("ssmd_jax.model.config.PADDED_FROM", V)
    # A width that no other test has: what JAX traced for an equal configuration would be found again.
    config = dataclasses.replace(CONFIG, width=16, num_heads=2)
    params = random_params(config)
    assert config.padded_tokens == params["head"].shape[1] == params["embedding"]["table"].shape[0] == 128
    tokens, positions = inputs()
    masked = jnp.where(jnp.arange(D)[None] < 4, tokens, V)
    apply = jax.jit(lambda params: HybridTransformer(config).apply({"params": params}, masked, tokens, positions))
    logits = apply(params)
    assert logits[0].shape == logits[1].shape == (B, D, V)
    padded = {
        **params,
        "head": jnp.asarray(params["head"]).at[:, V:].set(1e3),
        "embedding": {"table": jnp.asarray(params["embedding"]["table"]).at[V + 1 :].set(1e3)},
    }
    for a, b in zip(logits, apply(padded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_prepared_model_computes_the_same():
    """Kernels that are converted once give what kernels that are converted at every pass give, to the bit."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    model = HybridModel(random_params(config), config)
    tokens, positions = inputs()
    start = jnp.array([0, 4, D])

    @jax.jit
    def logits(model):
        context = model.trunk(tokens, positions, start, jnp.full(B, D))
        return model.draft_logits(context, start, 4), model.target_logits(context, tokens, positions, start, 4)

    prepared = model.prepared()
    assert prepared.params["head"].dtype == jnp.bfloat16 and prepared.params["final_norm"]["scale"].dtype == jnp.float32
    for a, b in zip(logits(model), logits(prepared), strict=True):
        np.testing.assert_array_equal(a, b)
