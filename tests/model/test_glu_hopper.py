"""The fused gated linear unit: the kernel in Pallas' GPU interpreter, and on a Hopper GPU where there is one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # not public in jax 0.10
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.glu_hopper import FEWEST_ROWS, gated_linear_unit, gated_linear_unit_reference, is_hopper
from ssmd_jax.model.layers import Mlp

ON_HOPPER = is_hopper(jax.local_devices()[0])
CONFIG = HybridConfig(num_tokens=7, width=128, num_heads=4, mlp_width=256)


def operands(rows, width, mlp_width):
    rng = np.random.default_rng(0)
    x_MxC = jnp.asarray(rng.normal(size=(rows, width)), jnp.bfloat16)
    return x_MxC, jnp.asarray(rng.normal(size=(width, 2, mlp_width)) * width**-0.5, jnp.bfloat16)


def in_float64(x_MxC, up_Cx2xF):
    x_MxC, up_Cx2xF = np.asarray(x_MxC, np.float64), np.asarray(up_Cx2xF, np.float64)
    gate_MxF, up_MxF = x_MxC @ up_Cx2xF[:, 0], x_MxC @ up_Cx2xF[:, 1]
    return gate_MxF / (1 + np.exp(-gate_MxF)) * up_MxF


def relative_error(value, exact):
    return np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact)


def test_reference_computes_the_formula():
    args = operands(20, 64, 128)
    # Rounding to bfloat16 is off by 2^-9 at most.
    assert relative_error(gated_linear_unit_reference(*args), in_float64(*args)) < 2**-9


def test_kernel_computes_the_formula():
    # Six tiles over two blocks, and more steps than stages. Three tiles of rows: jax 0.10.2 interprets no clusters.
    args = operands(300, 384, 256)
    assert relative_error(gated_linear_unit(*args, InterpretGPUParams()), in_float64(*args)) < 2**-9


@pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("shape", [(32768, 768, 2048), (65536, 384, 1024), (128, 64, 128), (700, 192, 384)])
def test_kernel_on_the_gpu(shape):
    args = operands(*shape)
    first = jax.jit(gated_linear_unit)(*args)
    assert relative_error(first, in_float64(*args)) < 2**-8
    for _ in range(3):
        np.testing.assert_array_equal(jax.jit(gated_linear_unit)(*args), first)


@pytest.mark.slow
def test_gradients_are_the_references():
    args = operands(8, 64, 128)
    kernel = functools.partial(gated_linear_unit, interpret=InterpretGPUParams())
    value = lambda f: lambda *args: jnp.sum(f(*args).astype(jnp.float32) ** 2)
    got, want = (jax.grad(value(f), (0, 1))(*args) for f in (kernel, gated_linear_unit_reference))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, np.asarray(b, np.float64)) < 0.02


def test_layer_leaves_few_rows_to_xla():
    x_BxDxC = operands(8, 128, 256)[0][None]
    mlp = Mlp(256, jnp.bfloat16, 1.0)
    params = mlp.init(jax.random.key(0), x_BxDxC)
    few = dataclasses.replace(mlp, implementation="hopper").apply(params, x_BxDxC)
    np.testing.assert_array_equal(few, mlp.apply(params, x_BxDxC))


@pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")
def test_layer_agrees_with_xla():
    x_BxDxC = operands(FEWEST_ROWS, 128, 256)[0].reshape(8, -1, 128)
    mlp = Mlp(256, jnp.bfloat16, 1.0)
    params = mlp.init(jax.random.key(0), x_BxDxC)
    xla, hopper = (dataclasses.replace(mlp, implementation=name).apply(params, x_BxDxC) for name in ("xla", "hopper"))
    assert relative_error(hopper, np.asarray(xla, np.float64)) < 0.02


@pytest.mark.skipif(ON_HOPPER, reason="served there")
def test_other_devices_are_refused():
    with pytest.raises(NotImplementedError, match=r"9\.0"):
        gated_linear_unit(*operands(8, 64, 128))


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"width": 96}, {"mlp_width": 192}, {"mlp": "cudnn"}])
def test_config_refuses_what_the_kernel_does_not_serve(change):
    dataclasses.replace(CONFIG, mlp="hopper")
    with pytest.raises(ValueError, match=r"MLP|mlp"):
        dataclasses.replace(CONFIG, **{"mlp": "hopper", **change})


def test_shapes_and_dtypes_are_checked():
    x_MxC, up_Cx2xF = operands(8, 64, 128)
    for args in ((x_MxC[:, :32], up_Cx2xF[:32]), (x_MxC, up_Cx2xF[:, :, :64]), (x_MxC, up_Cx2xF[:32])):
        with pytest.raises(ValueError, match="width"):
            gated_linear_unit(*args)
    with pytest.raises(ValueError, match="bfloat16"):
        gated_linear_unit(x_MxC.astype(jnp.float32), up_Cx2xF)
