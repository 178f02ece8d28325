"""The trainer: state, step, loop, sharding, checkpoints, metrics."""
