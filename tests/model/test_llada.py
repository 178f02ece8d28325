"""LLaDA: its published shape, and the logits of the public implementation."""

import numpy as np
import pytest

from ssmd_jax.model import llada, pretrained
from tests import fixtures
from tests.model.published import LLADA


def test_logits_of_the_public_implementation(tmp_path):
    folder, expected = fixtures.llada_tiny(tmp_path)
    model = pretrained.load(folder, dtype="float32")
    h_BxLxC, _ = model.hidden(expected["full_ids"].astype(np.int32), None, None, None)
    np.testing.assert_allclose(model.logits(h_BxLxC)[0], expected["full_logits"], atol=1e-4)


def test_published_shape():
    """8.02 B parameters in 291 tensors."""
    tensors = [tensor for parts in llada.tensors(llada.LLADA_8B).values() for tensor in parts]
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 291
    assert sum(int(np.prod(tensor.shape)) for tensor in tensors) == pytest.approx(8.02e9, rel=1e-3)


def test_fields_come_back():
    assert llada.from_fields(llada.to_fields(LLADA), "float32") == LLADA
    assert llada.from_fields(llada.to_fields(llada.LLADA_8B), "bfloat16") == llada.LLADA_8B


def test_other_networks_are_refused():
    fields = llada.to_fields(LLADA)
    with pytest.raises(ValueError, match="weight_tying True is not supported"):
        llada.from_fields(fields | {"weight_tying": True}, "float32")
    with pytest.raises(ValueError, match="embedding_size 24 other than vocab_size 23"):
        llada.from_fields(fields | {"embedding_size": 24}, "float32")
    with pytest.raises(ValueError, match="needs the field d_model"):
        llada.from_fields({"vocab_size": 5, "n_heads": 3}, "float32")
