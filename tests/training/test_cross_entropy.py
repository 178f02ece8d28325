"""The chunked cross entropy against the direct one, and what it is for: no logits of all tracks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion import masking
from ssmd_jax.training import cross_entropy, sharding
from ssmd_jax.training.config import MeshConfig

BATCH, LENGTH, WIDTH, TOKENS, PADDED = 8, 12, 16, 37, 40
RNG = np.random.default_rng(0)


def case(counted=None, dtype=jnp.float32):
    x = jnp.asarray(RNG.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    kernel = jnp.asarray(RNG.normal(size=(WIDTH, PADDED)), jnp.float32)
    tokens = jnp.asarray(RNG.integers(0, TOKENS, (BATCH, LENGTH)), jnp.int32)
    weights = jnp.asarray(RNG.random((BATCH, LENGTH)), jnp.float32)
    counted = RNG.random((BATCH, LENGTH)) < 0.5 if counted is None else np.full((BATCH, LENGTH), counted)
    return x, kernel, tokens, weights, jnp.asarray(counted)


def both(form, *args, **kwargs):
    """Total, nll, and the gradients of 3 times the total."""

    def scaled(x, kernel):
        total, nll = form(x, kernel, *args[2:], TOKENS, **kwargs)
        return 3.0 * total, (total, nll)

    gradients, (total, nll) = jax.jit(jax.grad(scaled, (0, 1), has_aux=True))(*args[:2])
    return total, nll, *gradients


@pytest.mark.parametrize("counted", [None, True, False], ids=["half", "all", "none"])
@pytest.mark.parametrize("chunk", [7, 16, 96])
def test_chunked_equals_direct(chunk, counted):
    """Chunks that divide the tracks and chunks that do not, from no counted track to all of them."""
    args = case(counted)
    direct, chunked = both(cross_entropy.direct_nll, *args), both(cross_entropy.chunked_nll, *args, chunk=chunk)
    for a, b in zip(direct, chunked, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    assert not np.asarray(chunked[1])[~np.asarray(args[4])].any()


def test_nll_is_the_softmax_s():
    x, kernel, tokens, weights, counted = case()
    total, nll = cross_entropy.chunked_nll(x, kernel, tokens, weights, counted, TOKENS, chunk=32)
    logits = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)[:, :TOKENS]
    chosen = np.take_along_axis(logits, np.asarray(tokens)[..., None], -1)[..., 0]
    expected = np.where(counted, np.log(np.exp(logits).sum(-1)) - chosen, 0.0)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, (expected * np.asarray(weights)).sum(), rtol=1e-5)


def test_bfloat16_is_near_float32():
    x, *rest = case()
    exact = both(cross_entropy.direct_nll, x, *rest)
    rounded = both(cross_entropy.chunked_nll, x.astype(jnp.bfloat16), *rest, chunk=16)
    assert rounded[2].dtype == jnp.bfloat16 and rounded[3].dtype == jnp.float32
    for a, b in zip(exact, rounded, strict=True):
        error = np.linalg.norm(np.asarray(b, np.float32) - np.asarray(a)) / np.linalg.norm(np.asarray(a))
        assert error < 2e-2


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=str)
def test_sharded_rows_equal_one_device(axes):
    """Each device has its own number of chunks; the kernel's gradient adds up over rows, not over the vocabulary."""
    args = case()
    expected = both(cross_entropy.direct_nll, *args)
    mesh = sharding.make_mesh(MeshConfig(*axes))
    with sharding.activate(mesh, sharding.rules_for(mesh, PADDED)):
        rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        kernel_sharding = jax.NamedSharding(mesh, jax.P("fsdp", "tensor"))
        placed = [jax.device_put(x, kernel_sharding if n == 1 else rows) for n, x in enumerate(args)]
        actual = both(cross_entropy.chunked_nll, *placed, chunk=5)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_no_array_of_all_logits_is_compiled():
    """The direct form has one of tracks x tokens, the chunked one none."""
    args = case()

    def largest(form, **kwargs):
        text = jax.jit(lambda *args: both(form, *args, **kwargs)).lower(*args).compile().as_text()
        return max(np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"\w+\[([\d,]+)\]", text))

    all_logits = BATCH * LENGTH * TOKENS
    assert largest(cross_entropy.direct_nll) >= all_logits
    assert largest(cross_entropy.chunked_nll, chunk=8) < all_logits


@pytest.mark.parametrize(
    ("batch", "length", "devices", "most"),
    [(32, 1024, 1, 1.1), (256, 1024, 8, 1.3), (512, 512, 8, 1.3), (256, 1024, 16, 1.4), (256, 1024, 32, 1.5)],
)
def test_chunks_compute_little_more_than_what_counts(batch, length, devices, most):
    """Tracks that the slowest device computes over those that it would if all were counted evenly, in the mean."""
    rows = batch // devices
    chunk = cross_entropy.chunk_size(rows * length)
    assert 128 <= chunk <= 1.1 * cross_entropy.CHUNK_TRACKS
    ratios = []
    for seed in range(20):
        revealed = masking.stratified_num_revealed(jax.random.key(seed), jnp.full(batch, length))
        counted = (length - np.asarray(revealed)).reshape(devices, rows).sum(axis=1)
        ratios.append((-(-counted // chunk) * chunk).max() / counted.mean())
    assert np.mean(ratios) <= most


def test_rows_that_the_devices_cannot_share_are_refused():
    mesh = sharding.make_mesh(MeshConfig(8))
    x, *rest = (a[:6] if a.shape[0] == BATCH else a for a in case())
    with sharding.activate(mesh, sharding.rules_for(mesh, PADDED)), pytest.raises(ValueError, match="6 rows"):
        jax.eval_shape(lambda *args: cross_entropy.chunked_nll(*args, TOKENS), x, *rest)


def test_the_vocabulary_chooses_the_form(monkeypatch):
    args = case()
    seen = []
    monkeypatch.setattr(cross_entropy, "direct_nll", lambda *_: seen.append("direct"))
    monkeypatch.setattr(cross_entropy, "chunked_nll", lambda *_: seen.append("chunked"))
    for threshold in (TOKENS, TOKENS + 1):
        monkeypatch.setattr(cross_entropy, "CHUNKED_FROM", threshold)
        cross_entropy.weighted_nll(*args, TOKENS)
    assert seen == ["chunked", "direct"]
