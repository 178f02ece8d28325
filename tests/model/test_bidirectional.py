"""The network that LLaDA and Dream share: against plain NumPy, under padding, and pass by pass with a cache."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from ssmd_jax.model.bidirectional import BidirectionalTransformer
from tests.model.published import DREAM, LLADA, Twin, random_model

TOKENS = np.random.default_rng(1).integers(0, 19, size=(3, 11)).astype(np.int32)


@jax.jit
def logits(model, *args):
    return model.logits(model.hidden(*args)[0])


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_equals_the_numpy_twin(config):
    model = random_model(config)
    found = BidirectionalTransformer(config).apply({"params": model.params}, TOKENS)
    for row, tokens in zip(found, TOKENS, strict=True):
        np.testing.assert_allclose(row, list(Twin(model).forward(list(tokens)).values()), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_padding_changes_nothing(config):
    model = random_model(config)
    pads = np.array([0, 3, 3])
    mask = np.arange(11)[None] >= pads[:, None]
    found = logits(model, np.where(mask, TOKENS, 7), None, None, mask)
    for row, (tokens, pad) in enumerate(zip(TOKENS, pads, strict=True)):
        alone = logits(model, tokens[None, pad:], None, None, None)[0]
        np.testing.assert_allclose(found[row, pad:], alone, atol=1e-5)


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_what_is_fed_is_fresh_and_the_rest_is_cached(config):
    """Rows feed different positions, one slot feeds nothing."""
    model = random_model(dataclasses.replace(config, num_layers=1))
    old, new = TOKENS, (TOKENS + 5) % 19
    mask = np.arange(11)[None] >= np.array([0, 2, 1])[:, None]
    _, cache = model.hidden(old, None, None, mask)
    slots = np.array([[2, 3, 9], [4, 10, 11], [5, 6, 7]], np.int32)
    fed = np.take_along_axis(np.pad(new, ((0, 0), (0, 1))), slots, axis=1)
    found, after = model.hidden(fed, slots, cache, mask)
    mixed = old.copy()
    for row in range(3):
        for slot in slots[row][slots[row] < 11]:
            mixed[row, slot] = new[row, slot]
    # With one layer keys depend on their own token alone, so that a full pass over the mixture is the answer.
    full, fresh = model.hidden(mixed, None, None, mask)
    expected = np.take_along_axis(np.asarray(full), np.minimum(slots, 10)[..., None], axis=1)
    is_real = slots < 11
    np.testing.assert_allclose(np.asarray(found)[is_real], expected[is_real], atol=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), after, fresh)


def test_feeding_everything_is_a_full_pass():
    model = random_model(LLADA)
    slots = np.broadcast_to(np.arange(11, dtype=np.int32)[None], TOKENS.shape)
    found = model.hidden(TOKENS, slots, model.init_cache(3, 11), None)
    expected = model.hidden(TOKENS, None, None, None)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, expected)


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_each_kernel_is_read_by_one_product_as_it_lies(config):
    """A cached pass as compiled: six products a layer, attention's two among them, and no kernel written anew."""
    model = random_model(config)
    step = jax.jit(lambda model, tokens, slots, cache: logits(model, tokens, slots, cache, None))
    tokens, slots = np.zeros((1, 5), np.int32), np.arange(3, 8, dtype=np.int32)[None]
    text = step.lower(model, tokens, slots, model.init_cache(1, 11)).compile().as_text()
    made = re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", text)
    assert [op for _, op in made].count("dot") == 6 * config.num_layers + 1
    block = model.params["blocks_0"]
    kernels = [block["attention"]["qkv"], block["attention"]["out"], block["mlp"]["gate_up"], block["mlp"]["down"]]
    sizes = {x.size for x in (*kernels, model.params["head"])}
    written = [(shape, op) for shape, op in made if math.prod(map(int, shape.split(","))) in sizes]
    assert {op for _, op in written} == {"parameter", "bitcast"}, written


def test_fresh_kernels_have_the_deviation_of_their_inputs():
    """One over the root of the width, in every part that is a tensor of its own in the files."""
    config = dataclasses.replace(DREAM, width=96, num_layers=1)
    params = BidirectionalTransformer(config).init(jax.random.key(0), TOKENS[:, :2])["params"]
    block = jax.tree.map(np.asarray, nn.unbox(params)["blocks_0"])
    qkv_CxKxPxE, gate_up_Cx2xF = block["attention"]["qkv"], block["mlp"]["gate_up"]
    assert qkv_CxKxPxE.shape == (96, 2, 4, 4) and gate_up_Cx2xF.shape == (96, 2, 24)
    np.testing.assert_allclose(qkv_CxKxPxE.std(axis=(0, 1, 3)), 96**-0.5, rtol=0.15)
    np.testing.assert_allclose(gate_up_Cx2xF.std(axis=(0, 2)), 96**-0.5, rtol=0.1)


def test_bfloat16_is_near():
    config = dataclasses.replace(LLADA, dtype="bfloat16")
    model = random_model(LLADA)
    found, expected = (
        logits(model.replace(config=config), TOKENS, None, None, None),
        logits(model, TOKENS, None, None, None),
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.15)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "model.width must be a whole number of at least 1"),
        ("mask_id", 23, "model.mask_id must lie in the vocabulary 0..22"),
        ("num_kv_heads", 3, "num_heads 4 is not divisible by num_kv_heads 3"),
        ("head_dim", 5, "head_dim is 5"),
        ("dtype", "float16", "model.dtype must be one of float32, bfloat16"),
        ("attention", "cudnn", "needs model.dtype 'bfloat16'"),
        ("rope_theta", 0.0, "model.rope_theta must be positive"),
        ("rms_eps", "1e-5", "model.rms_eps must be positive"),
    ],
)
def test_bad_fields(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLADA, **{field: value})
