"""Samplers: jitted loops over a model that satisfies `interface.SpeculativeModel`. Imports `diffusion` only."""
