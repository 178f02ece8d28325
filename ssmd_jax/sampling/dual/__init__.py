"""Cached decoders of masked diffusion language models, and DualDiffusion: one model drafts, another verifies."""
