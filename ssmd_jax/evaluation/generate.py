"""Samples of a trained run as text: what `launch/sample.py` does."""

import os
import sys
from typing import Any

import jax
import numpy as np
from rich.console import Console

import ssmd_jax
from ssmd_jax.evaluation import bench, trace
from ssmd_jax.evaluation.prompts import GAP, encode_prompt
from ssmd_jax.evaluation.settings import Setting, make_config
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.training.config import ExperimentConfig


def generate(
    workdir: os.PathLike | str,
    *,
    sampler: str = "speculative",
    num_samples: int = 4,
    batch_size: int = 64,
    length: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
    infill: str | None = None,
    gap: str = GAP,
    trace_first: bool = False,
    **flags,
) -> dict[str, Any]:
    """Draws samples and prints them: texts to standard output, figures and trace to standard error.

    Args:
        workdir: of a training run.
        sampler: "plain" or "speculative".
        num_samples: how many.
        batch_size: samples drawn at a time.
        length: tokens a sample; None for the length of training.
        seed: of all random numbers.
        prompt, infill, gap: as in `prompts.encode_prompt`.
        trace_first: show how the first sample came about.
        **flags: fields of `SpeculativeConfig`, and `delta_tau`, that go before the config's `sampling` section; None
            leaves the section's.

    Returns:
        JSON values: "samples" (texts), "sampler", and the means a sample "nfe", "passes", "rounds", "accepted",
        "rejected", "unverified", and "seconds_per_batch".

    Raises:
        ValueError: for bad input, in one sentence.
    """
    model, tokenizer, config = ssmd_jax.load(os.path.expanduser(workdir))
    experiment = ExperimentConfig.from_config_dict(config)
    setting = Setting(sampler, sampler, make_config(experiment.sampling, **flags))
    length = experiment.length if length is None else length
    tokens, given = encode_prompt(tokenizer, length, prompt=prompt, infill=infill, gap=gap) or (None, None)
    drawn = bench.draw(
        model,
        setting,
        jax.random.key(seed),
        length=length,
        num_samples=num_samples,
        batch_size=batch_size,
        prompt=tokens,
        prompt_mask=given,
    )
    result = drawn.result
    verify_cost = model.verify_cost if sampler == "speculative" else 0.0
    if trace_first:
        trace.show(Console(stderr=True), result, tokenizer, model.trunk_cost, verify_cost)
    texts = [tokenizer.decode(row) for row in result.tokens]
    for text in texts:
        print(text, end="\n\n")
    mean = lambda values: float(np.mean(values))
    figures = {
        "nfe": mean(result.nfe),
        "passes": mean(result.trunk_passes),
        "rounds": mean(result.verify_rounds),
        "accepted": mean(result.accepted),
        "rejected": mean(result.rejected),
        "unverified": mean(result.unverified),
    }
    line = ", ".join(f"{value:.1f} {name}" for name, value in figures.items())
    print(f"{sampler}, a sample: {line}; {drawn.seconds_per_batch:.2f} s a batch", file=sys.stderr, flush=True)
    figures["seconds_per_batch"] = drawn.seconds_per_batch
    return to_json({"samples": texts, "sampler": sampler, **figures})
