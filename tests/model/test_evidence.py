"""Evidence: the causal part that looks at the tracks alone that the trunk has not seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.likelihood import log_likelihood
from ssmd_jax.training.optimizer import muon_dimensions
from tests.model import test_hybrid
from tests.model.test_hybrid import B, D, inputs, mask, random_params

CONFIG = dataclasses.replace(test_hybrid.CONFIG, n_causal=1, causal_form="evidence")


@functools.cache
def apply(method, *static):
    network = HybridTransformer(CONFIG)
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args, *static, method=method))


def numpy_twin(params, h, embedded, positions, sees):
    """What is added to each `h` of a row, piece by piece in float64, from the module's formulas."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["causal"])
    silu = lambda x: x / (1 + np.exp(-x))
    normed = [x / np.sqrt(np.mean(x * x) + 1e-6) * p["input_norm"]["scale"] for x in h]

    def rotate(x, position):  # [H, E]
        half = x.shape[-1] // 2
        angle = position * 10_000.0 ** (-np.arange(0, 2 * half, 2) / (2 * half))
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)

    def piece(j):
        two = np.einsum("c,cgk->gk", embedded[j], p["token_up"]) + np.einsum("c,cgk->gk", normed[j], p["context_up"])
        return silu(two[0]) * two[1]

    outputs = []
    for k, n in enumerate(normed):
        total = np.zeros(CONFIG.width)
        for j in sees[k]:
            key = rotate(np.einsum("c,che->he", piece(j), p["key"]), positions[j])
            query = rotate(np.einsum("c,che->he", n, p["query"]), positions[k])
            score = (query * key).sum(-1) / np.sqrt(CONFIG.head_dim) + p["weight_bias"]
            weight = 1 / (1 + np.exp(-score))
            total += 0.3 * (weight[:, None] * np.einsum("c,che->he", piece(j), p["value"])).reshape(-1)
        gated = silu(n @ p["gate"] + total @ p["gate_sum"]) * (total @ p["mix"])
        outputs.append(gated @ p["output"] + total @ p["shift"])
    return np.array(outputs)


def test_target_equals_a_plain_twin():
    params, (tokens, positions) = random_params(CONFIG), inputs()
    start = jnp.array([0, 4, D - 2])
    masked = mask(tokens, start)
    h = apply("trunk")(params, masked, positions)
    seen = masked != CONFIG.num_tokens
    found, cache = apply("causal_full")(
        params, h, apply("token_free_input")(params, h), tokens, positions, None, True, seen
    )
    embedded = np.asarray(apply("embed")(params, tokens), np.float64)
    assert cache == []
    for b, first in enumerate(start.tolist()):
        sees = [list(range(first, k)) for k in range(D)]
        h_row = np.asarray(h[b], np.float64)
        twin = h_row + numpy_twin(params, h_row, embedded[b], np.asarray(positions[b]), sees)
        np.testing.assert_allclose(found[b], twin, atol=2e-4)
        np.testing.assert_array_equal(found[b, : first + 1], h[b, : first + 1])
        assert np.abs(found[b, first + 1 :] - h[b, first + 1 :]).max(axis=-1).min() > 1e-3


def test_the_windows_first_target_is_its_draft_whatever_was_learnt():
    model, (tokens, positions) = HybridModel(random_params(CONFIG), CONFIG), inputs()
    start = jnp.array([0, 5, D - 1])
    context = model.trunk(tokens, positions, start, jnp.full(B, D))
    draft, target = model.draft_logits(context, start, 3), model.target_logits(context, tokens, positions, start, 3)
    np.testing.assert_array_equal(draft[:, 0], target[:, 0])
    assert np.abs(draft[:2, 1:] - target[:2, 1:]).max(axis=-1).min() > 1e-3


def test_evidence_of_a_span_is_that_of_the_window():
    """What a track learns from (any track at the span's end or behind), and what it is asked in a window."""
    params, (tokens, positions) = random_params(CONFIG), inputs()
    start, span = jnp.array([0, 4, D - 3]), 3
    h = apply("trunk")(params, mask(tokens, start), positions)
    u = apply("token_free_input")(params, h)
    full = lambda seen_to: apply("causal_full")(
        params, h, u, tokens, positions, None, True, jnp.arange(D)[None] < jnp.asarray(seen_to)[:, None]
    )[0]
    for size in range(span + 1):
        end = jnp.minimum(start + size, D - 1)
        tracks = jnp.minimum(jnp.stack([end, end + 2], axis=1), D - 1)
        found = apply("evidence_hidden", span)(params, h, tokens, positions, start, end, tracks)
        np.testing.assert_allclose(found[:, 0], full(start)[jnp.arange(B), end], atol=1e-4)
        # The track behind it has not been told of those between: a twin that hides their tokens.
        for b in range(B):
            k = int(tracks[b, 1])
            sees = list(range(int(start[b]), int(end[b])))
            h_row = np.asarray(h[b], np.float64)
            embedded = np.asarray(apply("embed")(params, tokens)[b], np.float64)
            twin = numpy_twin(params, h_row, embedded, np.asarray(positions[b]), [sees] * D)
            np.testing.assert_allclose(found[b, 1] - h[b, k], twin[k], atol=2e-4)


def test_likelihoods_of_all_sequences_sum_to_one():
    """The sampler's law with this verifier is a law: rejections, replacements and windows included."""
    config = dataclasses.replace(CONFIG, num_tokens=3)
    model = HybridModel(random_params(config, 0.5), config)
    tokens = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    order = np.tile([2, 0, 3, 1], (len(tokens), 1))
    settings = SpeculativeConfig(window=ConstantWindow(3), verify_rounds=1)
    log_prob, expected_nfe = log_likelihood(model, tokens, order, settings)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=1e-4)
    assert (np.asarray(expected_nfe) > 0).all()


def test_muon_takes_every_kernel():
    causal = muon_dimensions(random_params(CONFIG))["causal"]
    left = {name for name, axes in causal.items() if axes is None}
    assert left == {"weight_bias"} and causal["input_norm"] == {"scale": None}
    for name in set(causal) - left - {"input_norm"}:
        kernel = random_params(CONFIG)["causal"][name]
        axes = causal[name]
        # From the width, the first axis; to all others but the two parts of a piece, which are matrices of their own.
        to = {axis % kernel.ndim for axis in axes.output_axis}
        assert [axis % kernel.ndim for axis in axes.reduction_axis] == [0]
        assert to == ({2} if name.endswith("_up") else set(range(1, kernel.ndim)))


def test_causal_full_asks_what_the_trunk_saw():
    params, (tokens, positions) = random_params(CONFIG), inputs()
    h = apply("trunk")(params, tokens, positions)
    with pytest.raises(ValueError, match="needs seen_BxD"):
        apply("causal_full")(params, h, apply("token_free_input")(params, h), tokens, positions)


@pytest.mark.parametrize(
    "change", [{"n_causal": 2}, {"causal_mlp_width": 96}, {"rotary_form": "halves"}, {"output_residual": False}]
)
def test_what_evidence_has_not_is_refused(change):
    with pytest.raises(ValueError, match=r"model\.causal_form 'evidence'"):
        dataclasses.replace(CONFIG, **change)


def test_cost_is_that_of_its_kernels():
    causal = random_params(CONFIG)["causal"]
    kernels = sum(x.size for name, x in causal.items() if name not in ("input_norm", "weight_bias"))
    assert CONFIG.evidence_kernels == kernels
    assert CONFIG.causal_cost == kernels / CONFIG.block_kernels(CONFIG.hidden)
