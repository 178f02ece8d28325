"""Classifier-free guidance: the logits of two passes, one without the prompt, caches and padding included."""

import jax
import numpy as np

from ssmd_jax.sampling.dual.guidance import Guided
from tests.model.published import LLADA, lively_model

TOKENS = np.random.default_rng(0).integers(0, 19, size=(2, 9)).astype(np.int32)


def test_logits_of_two_passes():
    model = lively_model(LLADA)
    guided = Guided(model, 0.5, 4)
    mask = np.arange(9)[None] >= np.array([[0], [2]])
    free = np.where(np.arange(9)[None] < 4, LLADA.mask_id, TOKENS)
    logits = jax.jit(lambda model, tokens, slots, cache: model.logits(model.hidden(tokens, slots, cache, mask)[0]))
    cache_of = jax.jit(lambda model, tokens: model.hidden(tokens, None, None, mask)[1])
    mixed = lambda c, u: u + 1.5 * (c - u)
    expected = mixed(logits(model, TOKENS, None, None), logits(model, free, None, None))
    np.testing.assert_allclose(logits(guided, TOKENS, None, None), expected, atol=1e-4)
    # From a cache: two positions of the prompt and one behind it are fed anew.
    slots, new = np.array([[1, 3, 6]] * 2, np.int32), (TOKENS[:, :3] + 5) % 19
    new_free = np.where(slots < 4, LLADA.mask_id, new)
    caches = (cache_of(model, tokens) for tokens in (TOKENS, free))
    expected = mixed(*(logits(model, x, slots, c) for x, c in zip((new, new_free), caches, strict=True)))
    np.testing.assert_allclose(logits(guided, new, slots, cache_of(guided, TOKENS)), expected, atol=1e-4)
    assert guided.init_cache(2, 9)[0][0].shape == (4, 9, 4, 4)
