"""Proteins drawn with many settings of samplers, a FASTA file each, for `launch/judge_proteins.py` to judge.

Two tasks: whole proteins, of lengths drawn from those of the training set; and scaffolds, in which a stretch of a
held-out natural protein is given and the rest filled in.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

import ssmd_jax
from ssmd_jax.data import fasta, sources
from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.evaluation import bench
from ssmd_jax.evaluation.critics import run_settings
from ssmd_jax.evaluation.protein_tools import write_fasta
from ssmd_jax.evaluation.proteins import spread
from ssmd_jax.evaluation.report import file_stem
from ssmd_jax.evaluation.statistics import ratio, to_json
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.loading import load_lengths
from ssmd_jax.training.terminal import say

INDEX = "sets.json"


class Task(NamedTuple):
    """What is given of each protein.

    Attributes:
        tokens_NxD: int32, the natural protein's; 0 where there is none.
        given_NxD: bool, True where the token is given.
        lengths_N: int32 letters.
        naturals: the natural proteins; empty where nothing is given.
    """

    tokens_NxD: np.ndarray
    given_NxD: np.ndarray
    lengths_N: np.ndarray
    naturals: tuple[str, ...]


def whole(law: LengthLaw, count: int, length: int, seed: int) -> Task:
    """Nothing given, lengths drawn from `law`, at most `length`."""
    lengths_N = law.draw(seed, count, length)
    return Task(np.zeros((count, length), np.int32), np.zeros((count, length), bool), lengths_N, ())


def scaffold(naturals: list[str], tokenizer, count: int, length: int, keep: float, seed: int) -> Task:
    """One stretch given of each natural protein, at a place drawn at random.

    Args:
        naturals: proteins of at most `length` letters; `count` of them, spread evenly, are taken.
        tokenizer: of the model, one token a letter.
        count: proteins.
        length: tokens a row, `D`.
        keep: share of the letters that are given, between 0 and 1, both excluded.
        seed: of the places.

    Raises:
        ValueError: where there are fewer proteins, or the share is out of range.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep must lie between 0 and 1, both excluded, got {keep}")
    if len(naturals) < count:
        raise ValueError(f"there are {len(naturals)} natural proteins that fit, fewer than num_samples = {count}")
    naturals = spread(naturals, count)
    rng = np.random.default_rng(seed)
    tokens_NxD, given_NxD = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    for row, sequence in enumerate(naturals):
        size = max(1, round(keep * len(sequence)))
        first = rng.integers(0, len(sequence) - size + 1)
        tokens_NxD[row, : len(sequence)] = tokenizer.encode(sequence)
        given_NxD[row, first : first + size] = True
    return Task(tokens_NxD, given_NxD, np.array([len(s) for s in naturals], np.int32), tuple(naturals))


def nfe_kernels(config: HybridConfig) -> int:
    """Parameters of the blocks' kernels that a track passes in one NFE: what NFE of unlike networks compare by."""
    return round((config.n_noncausal + config.causal_cost) * config.block_kernels(config.hidden))


def draw_workdir(
    workdir: os.PathLike | str,
    output: os.PathLike | str,
    *,
    settings_text: str | None,
    samplers: str | None,
    sweep: str = "",
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    scaffolds: str | None = None,
    keep: float = 0.3,
    num_widths: int = 1,
) -> dict[str, Any]:
    """Draws with every setting, and writes FASTA files: what `launch/draw_proteins.py` does.

    Args:
        workdir: of a run on proteins.
        output: folder for the FASTA files and `INDEX`; created if it is not there.
        settings_text: settings of "plain" and "speculative", as `settings.parse_settings` reads them; None for none.
        samplers, sweep: any samplers, as `settings.sweep_settings` reads them; None for none.
        num_samples: proteins a setting.
        batch_size: rows of a batch.
        seed: of all random numbers.
        scaffolds: FASTA of natural proteins to fill in; None for whole proteins.
        keep: share of their letters that are given.
        num_widths: number of widths that batches are padded to, as in `bench.draw`.

    Returns:
        JSON values: "task", "keep", "natural" (the file of the natural proteins, None for whole ones), "num_widths",
        "kernels" (of `nfe_kernels`), and "sets": an entry a setting with "file", "sampler", "setting", "nfe", "passes",
        "rounds", "batch_size", "seconds_per_batch", "seconds_per_sample", "acceptance" and "recovery", the share of the
        letters to fill in that are the natural ones (None for whole proteins).

    Raises:
        ValueError: for bad input, in one sentence.
    """
    model, tokenizer, config = ssmd_jax.load(os.path.expanduser(workdir))
    experiment = ExperimentConfig.from_config_dict(config)
    if experiment.data.rows != "sequences":
        raise ValueError(f"the run {workdir} was trained on text: draw with launch/evaluate.py")
    if settings_text is None and samplers is None:
        raise ValueError("give settings or samplers to draw with")
    settings = run_settings(workdir, model, experiment.sampling, settings_text, samplers, sweep)
    length = experiment.length
    if scaffolds is None:
        task = whole(load_lengths(workdir), num_samples, length, seed)
    else:
        rules = fasta.Rules(experiment.data.min_length, length)
        naturals = list(rules.kept(sources.read_sequences(scaffolds), fasta.Tally()))
        task = scaffold(naturals, tokenizer, num_samples, length, keep, seed)
    output = pathlib.Path(os.path.expanduser(output))
    output.mkdir(parents=True, exist_ok=True)
    natural = None
    if task.naturals:
        natural = "natural.fasta"
        write_fasta(output / natural, task.naturals)
    sets = []
    for setting in settings:
        drawn = bench.draw(
            model,
            setting,
            jax.random.key(seed),
            length=length,
            num_samples=num_samples,
            batch_size=batch_size,
            prompt=task.tokens_NxD,
            prompt_mask=task.given_NxD,
            lengths=task.lengths_N,
            num_widths=num_widths,
        )
        row = bench.measure(drawn, setting, tokenizer, batch_size=batch_size)
        file = f"{file_stem(f'{row.sampler}_{row.setting}')}.fasta"
        tokens_NxD = drawn.result.tokens
        rows = zip(tokens_NxD, task.lengths_N, strict=True)
        write_fasta(output / file, [tokenizer.decode(tokens_D[:size]) for tokens_D, size in rows])
        figures = {name: value for name, value in row._asdict().items() if name not in ("spelling", "num_samples")}
        sets.append({"file": file, **to_json(figures), "recovery": to_json(recovery(tokens_NxD, task))})
        say(f"{file}: {row.nfe.value:.1f} NFE, {row.seconds_per_batch:.2f} s a batch")
        found = {
            "task": "whole" if scaffolds is None else "scaffold",
            "keep": None if scaffolds is None else keep,
            "natural": natural,
            "num_widths": num_widths,
            "kernels": nfe_kernels(model.config),
            "sets": sets,
        }
        (output / INDEX).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def recovery(tokens_NxD: np.ndarray, task: Task):
    """Share of the letters to fill in that came out as in the natural protein, with its standard error over proteins.

    Args:
        tokens_NxD: int, the samples.
        task: from `scaffold`.

    Returns:
        An `Estimate`, or None where nothing is given.
    """
    if not task.naturals:
        return None
    asked_NxD = (np.arange(tokens_NxD.shape[1]) < task.lengths_N[:, None]) & ~task.given_NxD
    return ratio((asked_NxD & (tokens_NxD == task.tokens_NxD)).sum(axis=1), asked_NxD.sum(axis=1))
