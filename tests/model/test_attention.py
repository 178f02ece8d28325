"""Attention: both implementations against a plain twin, with padding and causal masks together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.model.layers import full_attention, window_attention

B, D, H, E = 3, 64, 2, 32
LENGTHS = (64, 40, 7)


def inputs():
    return [jax.random.normal(jax.random.key(n), (B, D, H, E), jnp.bfloat16) for n in range(3)]


def twin(q, k, v, lengths, is_causal):
    """In float64, one row and head at a time: key `j` is seen by track `i` where `j < length`, and `j <= i`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, tracks = np.zeros(q.shape), np.arange(D)
    for b in range(B):
        seen = np.broadcast_to(tracks[None] < lengths[b], (D, D))
        seen = seen & (tracks[None] <= tracks[:, None]) if is_causal else seen
        for h in range(H):
            scores = np.where(seen, q[b, :, h] @ k[b, :, h].T / np.sqrt(E), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, :, h]
    return out


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_full_attention_equals_the_twin(implementation, is_causal, lengths):
    """On a GPU the fused kernels too: a causal mask that lay at the other corner would show in padded rows alone."""
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cuDNN needs an NVIDIA GPU")
    q, k, v = inputs()
    lengths_B = None if lengths is None else jnp.asarray(lengths)
    attend = functools.partial(full_attention, is_causal=is_causal, implementation=implementation)
    found = jax.jit(attend)(q, k, v, lengths_B)
    expected = twin(q, k, v, lengths or [D] * B, is_causal)
    for b, count in enumerate(lengths or [D] * B):
        np.testing.assert_allclose(np.asarray(found[b, :count], np.float64), expected[b, :count], atol=0.03)


def test_window_attention_equals_full_attention():
    """Each row has a window of its own."""
    q, k, v = inputs()
    starts = (0, 5, 33)
    part = lambda x: jnp.stack([x[b, start : start + 8] for b, start in enumerate(starts)])
    by_head = lambda x: jnp.swapaxes(x, 1, 2)
    found = window_attention(part(q), part(k), part(v), by_head(k), by_head(v), jnp.asarray(starts))
    expected = part(twin(q, k, v, [D] * B, True))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.03)
