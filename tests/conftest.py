"""Settings of every test: eight CPU devices to shard over, and silent broadcasting between ranks forbidden."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute: the compiler's costly passes would double their time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
