"""The sharding table: what it refuses, and that nothing is split unevenly."""

import jax
import pytest

from ssmd_jax.training import sharding
from ssmd_jax.training.config import MeshConfig


def test_colliding_and_unknown_axes_raise():
    rules = (*sharding.RULES[:-1], ("layers", "fsdp"))
    with pytest.raises(ValueError, match=r"'layers' and 'embed' .* both go to mesh axis 'fsdp'"):
        sharding.mesh_spec(("layers", "embed"), rules)
    with pytest.raises(ValueError, match="'width' is not in the sharding table"):
        sharding.mesh_spec(("width",))
    assert sharding.mesh_spec(("batch", None, "heads")) == jax.P(("data", "fsdp"), None, "tensor")


def test_mesh_sizes():
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices: tests/conftest.py sets 8 CPU devices")
    assert dict(sharding.make_mesh(MeshConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert sharding.make_mesh(MeshConfig(data=1)).size == 1
    for config in (MeshConfig(fsdp=3), MeshConfig(data=4, fsdp=4)):
        with pytest.raises(ValueError, match="devices"):
            sharding.make_mesh(config)


def test_a_vocabulary_that_is_not_divisible_stays_whole():
    mesh = sharding.make_mesh(MeshConfig(data=1, tensor=2))
    assert dict(sharding.rules_for(mesh, 27))["vocab"] is None
    assert dict(sharding.rules_for(mesh, 28))["vocab"] == "tensor"
