"""Dream: its published shape, and Qwen2 of `transformers` without the causal mask."""

import numpy as np
import pytest

from ssmd_jax.model import dream
from tests.model.published import DREAM, file_tensors, random_model


def test_published_shape():
    tensors = [tensor for parts in dream.tensors(dream.DREAM_7B).values() for tensor in parts]
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 28 * 12 + 3
    assert sum(int(np.prod(tensor.shape)) for tensor in tensors) == pytest.approx(7.62e9, rel=1e-3)


def test_fields_come_back():
    assert dream.from_fields(dream.to_fields(DREAM), "float32") == DREAM
    assert dream.from_fields(dream.to_fields(dream.DREAM_7B), "bfloat16") == dream.DREAM_7B


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="tie_word_embeddings True is not supported"):
        dream.from_fields(dream.to_fields(DREAM) | {"tie_word_embeddings": True}, "float32")
    with pytest.raises(ValueError, match="needs the field hidden_size"):
        dream.from_fields(
            {"num_attention_heads": 4, "vocab_size": 23, "mask_token_id": 1, "eos_token_id": 2}, "float32"
        )


def test_equals_qwen2_without_the_causal_mask():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = random_model(DREAM)
    config = transformers.Qwen2Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        # Version 5 reads the first, version 4 the second.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rope_theta=1e6,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict({name: torch.tensor(x) for name, x in file_tensors(model).items()})
    tokens = np.random.default_rng(3).integers(0, 23, size=(2, 13)).astype(np.int32)
    pads = np.array([0, 4])
    seen = np.arange(13)[None] >= pads[:, None]
    bias = torch.tensor(np.where(seen, 0, -1e30)[:, None, None, :].repeat(13, axis=2), dtype=torch.float32)
    positions = torch.tensor(np.maximum(seen.cumsum(axis=1) - 1, 0))
    with torch.no_grad():
        # A mask of four axes is taken as it is, and no causal one is built.
        expected = theirs(torch.tensor(tokens).long(), attention_mask=bias, position_ids=positions).logits.numpy()
    found = np.asarray(model.logits(model.hidden(tokens, None, None, seen)[0]))
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-4)
