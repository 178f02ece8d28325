"""The quick start from text to samples: what `launch/demo.py` does."""

import math
import os
import sys
from typing import Any

import jax
import ml_collections

import ssmd_jax
from ssmd_jax.data import pipeline
from ssmd_jax.evaluation import bench, tables, text
from ssmd_jax.evaluation.settings import parse_settings
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.training import loop
from ssmd_jax.training.config import ExperimentConfig

# After minutes on a CPU the network is the limit: both samplers spell alike, about 0.30 of the words at any NFE.
# configs/books_char.py shows the gain.
SETTINGS = "plain:0.03,speculative:0.06:8"
NUM_SAMPLES = 256
NUM_SHOWN = 3


def demo(config: ml_collections.ConfigDict, workdir: os.PathLike | str) -> dict[str, Any]:
    """Trains, unless the workdir holds the finished run, draws with both samplers, and prints what came out.

    Args:
        config: the experiment.
        workdir: of the run.

    Returns:
        JSON values: "training" (summary of the loop), "samples" (texts), "samplers" (one entry a setting); the first
        alone where a signal ended the training early.

    Raises:
        ValueError: as `training.loop.train` does.
    """
    workdir = os.path.expanduser(workdir)
    experiment = ExperimentConfig.from_config_dict(config)
    summary = loop.train(experiment, workdir)
    if not summary["finished"]:
        return {"training": summary}
    model, tokenizer, _ = ssmd_jax.load(workdir)
    draft, target = (summary[f"valid_{name}_loss"] / math.log(2) for name in ("draft", "target"))
    print(f"Validation, bits per token: draft {draft:.3f} (a bound), target {target:.3f} (not one)")
    data = pipeline.load_data(experiment.data, experiment.length)
    words = text.training_words(data.train, tokenizer)
    compared = bench.compare(
        model,
        tokenizer,
        parse_settings(SETTINGS, experiment.sampling),
        jax.random.key(experiment.seed),
        length=experiment.length,
        num_samples=NUM_SAMPLES,
        batch_size=NUM_SAMPLES,
        words=words,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    samples = [tokenizer.decode(row) for row in compared[-1].tokens[:NUM_SHOWN]]
    print(f"\nSamples, {compared[-1].row.sampler} {compared[-1].row.setting}:")
    for sample in samples:
        print(f"  {sample}")
    print(f"\n{NUM_SAMPLES} samples a row, drawn as one batch:")
    print(f"{tables.short_table([each.row for each in compared])}\n")
    return to_json({"training": summary, "samples": samples, "samplers": [each.row for each in compared]})
