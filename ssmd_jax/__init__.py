"""Self-speculative masked diffusion in JAX."""

__version__ = "0.1.0"


def load(path=None):
    """Loads a trained model; see `ssmd_jax.training.loading.load`."""
    # Imported on use, so that `import ssmd_jax` stays light.
    from ssmd_jax.training import loading

    return loading.load(path)
