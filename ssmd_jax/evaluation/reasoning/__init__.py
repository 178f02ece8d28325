"""Reasoning tasks: GSM8K and MMLU by masked diffusion language models, and an adapter for lm-evaluation-harness."""
