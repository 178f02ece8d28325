"""Samples of a trained run as text: what `launch/sample.py` does."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import ssmd_jax
from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.diffusion.schedule import BudgetError
from ssmd_jax.evaluation import bench, trace
from ssmd_jax.evaluation.critics import critic_of
from ssmd_jax.evaluation.prompts import GAP, encode_prompt
from ssmd_jax.evaluation.protein_tools import write_fasta
from ssmd_jax.evaluation.settings import TRACED, WINDOWED, Setting, named_config, with_best_windows
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.sampling import registry
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.loading import load_lengths, released
from ssmd_jax.training.terminal import say

# Tokens for each function evaluation, where nothing says how many there shall be.
TOKENS_PER_NFE = 16


class Generated(NamedTuple):
    """Samples of a trained run, and what made them.

    Attributes:
        model: the model.
        tokenizer: of the model.
        setting: sampler and configuration.
        drawn: the samples, and how long a batch took.
    """

    model: HybridModel
    tokenizer: Tokenizer
    setting: Setting
    drawn: bench.Drawn

    def texts(self) -> list[str]:
        """The samples, decoded."""
        # Behind the end of a short row stands the mask id.
        return [self.tokenizer.decode(row[row < self.tokenizer.num_tokens]) for row in self.drawn.result.tokens]

    def figures(self) -> dict[str, float]:
        """The means a sample: "nfe", "passes", "rounds", "accepted", "rejected", "unverified"."""
        result = self.drawn.result
        counts = {
            "nfe": result.nfe,
            "passes": result.trunk_passes,
            "rounds": result.verify_rounds,
            "accepted": result.accepted,
            "rejected": result.rejected,
            "unverified": result.unverified,
        }
        return {name: float(np.mean(values)) for name, values in counts.items()}


def draw(
    workdir: os.PathLike | str | None,
    *,
    sampler: str = "speculative",
    sampler_args: str = "",
    num_samples: int = 4,
    batch_size: int = 64,
    length: int | None = None,
    nfe: float | None = None,
    seed: int = 0,
    prompt: str | None = None,
    infill: str | None = None,
    gap: str = GAP,
    **flags,
) -> Generated:
    """Draws samples from the model of a workdir.

    Args:
        workdir: of a training run; None for the model that comes with the package.
        sampler: a name of `ssmd_jax.sampling.registry`.
        sampler_args: its arguments, as `registry.parse` reads them; they go before flags.
        num_samples: how many.
        batch_size: samples drawn at a time.
        length: tokens a sample; None for the length of training, or, without prompt and infill, for lengths drawn from
            those of the training sequences where the run was trained on sequences of any length.
        nfe: mean function evaluations of a sample, for "plain" and "speculative": the best windows for it, from the
            workdir's profile, with shared noise unless `shared_noise` is False or the profile knows no rounds with it.
            None for a sixteenth of the tokens where there is a profile, and neither windows, rounds nor another length
            are given, and windows as cheap as that; else for what the config says.
        seed: of all random numbers.
        prompt, infill, gap: as in `prompts.encode_prompt`.
        **flags: arguments of the sampler that are flags of their own; for "plain" and "speculative" they go before the
            config's `sampling` section. None leaves them open.

    Raises:
        ValueError: for bad input, in one sentence.
    """
    workdir = pathlib.Path(released() if workdir is None else os.path.expanduser(workdir))
    model, tokenizer, config = ssmd_jax.load(workdir)
    experiment = ExperimentConfig.from_config_dict(config)
    given = {name: value for name, value in flags.items() if value is not None}
    given |= registry.parse(sampler, sampler_args)
    config = named_config(sampler, given, experiment.sampling)
    windows = sorted(given.keys() & {"window", "delta_tau", "verify_rounds"})
    if nfe is not None and (windows or sampler not in WINDOWED):
        other = windows[0] if windows else f"sampler {sampler}"
        raise ValueError(f"nfe chooses windows of the plain and speculative samplers: leave out nfe or {other}")
    if nfe is not None and not 0 < nfe < math.inf:
        raise ValueError(f"nfe must be positive, got {nfe}")
    if nfe is not None and length not in (None, experiment.length):
        raise ValueError(f"nfe chooses windows for {experiment.length} tokens: leave out nfe or length")
    if nfe is not None:
        config = _best(config, given, sampler, Profile.load(workdir / PROFILE_FILE), nfe)
    elif sampler in WINDOWED and not windows and length is None and (workdir / PROFILE_FILE).is_file():
        profile = Profile.load(workdir / PROFILE_FILE)
        # Short sequences have no windows as cheap as that: the config's stay.
        with contextlib.suppress(BudgetError):
            config = _best(config, given, sampler, profile, experiment.length / TOKENS_PER_NFE)
    setting = Setting(sampler, sampler, config, critic_of(config, model, workdir))
    lengths = None
    if experiment.data.rows == "sequences" and length is prompt is infill is None:
        lengths = load_lengths(workdir).draw(seed, num_samples)
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
        lengths=lengths,
    )
    return Generated(model, tokenizer, setting, drawn)


def _best(config: SpeculativeConfig, given: Mapping[str, Any], sampler: str, profile: Profile, nfe: float):
    """The configuration with the best windows, which are verified whole: there shared noise only saves rounds."""
    if sampler == "speculative":
        config = dataclasses.replace(config, shared_noise=given.get("shared_noise", profile.rounds_DxS is not None))
    return with_best_windows(config, sampler, profile, nfe)


def generate(
    workdir: os.PathLike | str | None, *, trace_first: bool = False, fasta: os.PathLike | str | None = None, **options
) -> dict[str, Any]:
    """Draws samples and prints them: texts to standard output, figures and trace to standard error.

    Args:
        workdir: as in `draw`.
        trace_first: show how the first sample came about.
        fasta: file that proteins are written to, too; None for none.
        **options: as in `draw`.

    Returns:
        JSON values: "samples" (texts), "sampler", those of `Generated.figures`, and "seconds_per_batch".

    Raises:
        ValueError: for bad input, in one sentence.
    """
    if trace_first and options.get("sampler", "speculative") not in TRACED:
        raise ValueError(f"trace shows the samplers {', '.join(TRACED)}, not {options['sampler']!r}")
    generated = draw(workdir, **options)
    if fasta is not None and generated.tokenizer.kind != "esm2":
        raise ValueError("fasta is for proteins, and this run's data.tokenizer is not 'esm2'")
    model, sampler, drawn = generated.model, generated.setting.sampler, generated.drawn
    if trace_first:
        trace.show(Console(stderr=True), drawn.result, generated.tokenizer, model.trunk_cost, model.verify_cost)
    texts, figures = generated.texts(), generated.figures()
    if fasta is not None:
        write_fasta(fasta, texts)
    for text in texts:
        print(text, end="\n\n")
    line = ", ".join(f"{value:.1f} {name}" for name, value in figures.items())
    say(f"{sampler}, a sample: {line}; {drawn.seconds_per_batch:.2f} s a batch")
    return to_json({"samples": texts, "sampler": sampler, **figures, "seconds_per_batch": drawn.seconds_per_batch})
