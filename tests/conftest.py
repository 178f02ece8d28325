"""Settings of every test: eight CPU devices to shard over, and silent broadcasting between ranks forbidden."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
