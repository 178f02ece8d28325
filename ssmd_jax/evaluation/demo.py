"""First samples, from the released model or from a network trained in minutes: what `launch/demo.py` does."""

import math
import os
import pathlib
from typing import Any

import jax
import ml_collections
from rich.console import Console

import ssmd_jax
from ssmd_jax.data import pipeline
from ssmd_jax.evaluation import bench, tables, text, trace
from ssmd_jax.evaluation.settings import parse_settings
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile
from ssmd_jax.training import loop
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.loading import released
from ssmd_jax.training.terminal import say

# Settings at which both samplers of the released model spell about alike (README). Few samples: a CPU takes
# half a second for a trunk pass over four rows.
RELEASED_SETTINGS = "plain:0.02,speculative:best12:shared_noise"
NUM_RELEASED = 4
# After minutes on a CPU the network is the limit: both samplers spell alike, about 0.30 of the words at any NFE.
# configs/books_char.py shows the gain.
SETTINGS = "plain:0.03,speculative:0.06:8"
NUM_SAMPLES = 256
NUM_SHOWN = 3


def draw_released(settings: str = RELEASED_SETTINGS, folder: os.PathLike | str | None = None) -> dict[str, Any]:
    """Draws from the model that comes with the package, and prints a generation pass by pass, samples and figures.

    Args:
        settings: as `settings.parse_settings` reads them; the last one's first sample is shown pass by pass.
        folder: of another model; it must have a profile.

    Returns:
        JSON values: "samples" (texts of the last setting), "samplers" (one entry a setting).

    Raises:
        ValueError: as `loading.load`, `Profile.load` and `parse_settings` do.
    """
    folder = pathlib.Path(released() if folder is None else folder)
    model, tokenizer, config = ssmd_jax.load(folder)
    experiment = ExperimentConfig.from_config_dict(config)
    rows = []
    for setting in parse_settings(settings, experiment.sampling, Profile.load(folder / PROFILE_FILE)):
        say(f"{setting.sampler} {setting.label}: compiling, then drawing")
        size = {"length": experiment.length, "num_samples": NUM_RELEASED, "batch_size": NUM_RELEASED}
        drawn = bench.draw(model, setting, jax.random.key(experiment.seed), **size)
        rows.append(bench.measure(drawn, setting, tokenizer, batch_size=NUM_RELEASED))
    console = Console()
    console.print(f"\n{setting.sampler} {setting.label}, one sample pass by pass:", highlight=False)
    trace.show(console, drawn.result, tokenizer, model.trunk_cost, model.verify_cost)
    samples = [tokenizer.decode(tokens) for tokens in drawn.result.tokens]
    print("\nThree more:")
    for sample in samples[1:]:
        print(f"  {sample}")
    print(f"\n{NUM_RELEASED} samples a row, drawn as one batch:\n{tables.cost_table(rows)}\n")
    return to_json({"samples": samples, "samplers": rows})


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
        progress=say,
    )
    samples = [tokenizer.decode(row) for row in compared[-1].tokens[:NUM_SHOWN]]
    print(f"\nSamples, {compared[-1].row.sampler} {compared[-1].row.setting}:")
    for sample in samples:
        print(f"  {sample}")
    print(f"\n{NUM_SAMPLES} samples a row, drawn as one batch:")
    print(f"{tables.short_table([each.row for each in compared])}\n")
    return to_json({"training": summary, "samples": samples, "samplers": [each.row for each in compared]})
