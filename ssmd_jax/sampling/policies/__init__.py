"""The rules: one file a family. `ssmd_jax.sampling.policy` has the loop, `ssmd_jax.sampling.registry` the names."""
