"""Networks whose parameters lie on several devices generate what they do on one."""

import jax
import numpy as np
import pytest

from ssmd_jax.model import pretrained
from ssmd_jax.sampling.dual import commit, dualdiffusion, presets, rules
from ssmd_jax.training import sharding
from ssmd_jax.training.config import MeshConfig
from tests.model.published import DREAM, lively_model

KEY = jax.random.key(0)
PROMPTS = [[3, 14, 15, 9, 2], [6, 5], [3, 5, 8, 9], [1]]


@pytest.mark.slow
def test_tensor_and_fsdp(tmp_path):
    model = lively_model(DREAM)
    pretrained.save(tmp_path, model)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    shardings = sharding.param_shardings(pretrained.boxed_params(DREAM), mesh)
    drafting = presets.fast_dllm(8, 4, "dual", commit.Threshold(0.27))
    dual = dualdiffusion.DualConfig(drafting, 3, rules.TopK(1), view="masked")
    expected = dualdiffusion.sample(model, KEY, dual, PROMPTS)
    loaded = pretrained.load(tmp_path, dtype="float32", shardings=shardings)
    with sharding.activate(mesh, sharding.rules_for(mesh, DREAM.vocab_size)):
        found = dualdiffusion.sample(loaded, KEY, dual, PROMPTS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
