"""Mathematics of masked diffusion: pure functions on arrays. Imports nothing else of this package."""
