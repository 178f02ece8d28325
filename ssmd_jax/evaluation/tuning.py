"""Measures what windows cost a network, and lists the best ones (METHOD.md sections 5 and 6)."""

import functools
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ssmd_jax
from ssmd_jax.diffusion import loss, orders
from ssmd_jax.diffusion.schedule import BudgetError
from ssmd_jax.diffusion.window import passes_left
from ssmd_jax.evaluation import report, tables, text
from ssmd_jax.evaluation.likelihood import rows_at_a_time
from ssmd_jax.sampling.interface import prepared
from ssmd_jax.sampling.keys import row_keys
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile, best_windows
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.terminal import say

BUDGETS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 44, 64, 80, 128)


def measure(model, tokens_NxD: np.ndarray, key: jax.Array, *, batch_size: int, largest: int = 0) -> Profile:
    """Draft, target and rejections at every number of revealed tokens, on held-out text.

    All numbers of revealed tokens see the same sequences and orders, so that their differences, which decide between
    windows, have little noise. Costs `D` trunk passes a sequence.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens_NxD: int, full sequences in sequence order; sequences beyond a multiple of the batch are left out.
        key: of the orders, one a sequence.
        batch_size: rows a call at most; large vocabularies take fewer.
        largest: windows up to so many tracks; 0 for all.

    Returns:
        A `Profile`, deterministic given the key.
    """
    count, length = tokens_NxD.shape
    size = min(largest or length, length)
    batch_size = rows_at_a_time(min(batch_size, count), size, model.num_tokens)
    num_batches = count // batch_size
    keys_N, total = row_keys(key, count), np.zeros((3, length, size))
    for n in range(num_batches):
        rows = slice(n * batch_size, (n + 1) * batch_size)
        order_BxD = orders.uniform_order(keys_N[rows], np.full(batch_size, length, np.int32), length)
        total += np.asarray(_sums(model, tokens_NxD[rows], order_BxD, size=size))
    used = num_batches * batch_size
    return Profile(*(total / used), model.trunk_cost, model.verify_cost, used)


@functools.partial(jax.jit, static_argnames="size")
def _sums(model, tokens_BxD, order_BxD, *, size: int):
    """Sums over the batch of draft nll, target nll and rejection probability, float32 `[3, D, S]`."""
    batch, length = tokens_BxD.shape
    model, lengths_B = prepared(model), np.full(batch, length, np.int32)
    true_BxD = orders.to_order_space(tokens_BxD, order_BxD)

    def at(i):
        start_B = jnp.full((batch,), i, jnp.int32)
        context = model.trunk(true_BxD, order_BxD, start_B, lengths_B)
        draft_BxSxV = model.draft_logits(context, start_B, size)
        target_BxSxV = model.target_logits(context, true_BxD, order_BxD, start_B, size)
        true_BxS = jnp.take_along_axis(true_BxD, jnp.minimum(i + jnp.arange(size), length - 1)[None], axis=1)
        p_BxSxV, q_BxSxV = jax.nn.softmax(draft_BxSxV), jax.nn.softmax(target_BxSxV)
        rejected_BxS = jnp.sum(jnp.maximum(p_BxSxV - q_BxSxV, 0.0), axis=-1)
        parts = (loss.token_nll(draft_BxSxV, true_BxS), loss.token_nll(target_BxSxV, true_BxS), rejected_BxS)
        return jnp.stack([jnp.sum(part_BxS, axis=0) for part_BxS in parts])

    return jnp.moveaxis(jax.lax.map(at, jnp.arange(length, dtype=jnp.int32)), 1, 0)


def frontier(
    profile: Profile, budgets, *, plain: bool = False, tie_first: bool = False
) -> list[dict[str, float | int]]:
    """Best windows for each budget that pays any, as rows of a table.

    Args:
        profile: of a network.
        budgets: mean NFE a sequence.
        plain: for the plain sampler.
        tie_first: for a tied first track.

    Returns:
        For each budget "budget", "nfe", "bits" (per token, the likelihood bound), "passes" and "largest_window".
    """
    rows = []
    for budget in budgets:
        try:
            found = best_windows(profile, budget, plain=plain, tie_first=tie_first)
        except BudgetError:
            continue
        rows.append(
            {
                "budget": float(budget),
                "nfe": found.nfe,
                "bits": found.nll / math.log(2) / len(found.sizes),
                "passes": int(passes_left(found.sizes)[0]),
                "largest_window": int(found.sizes.max()),
            }
        )
    return rows


def tune_workdir(
    workdir: os.PathLike | str,
    *,
    num_sequences: int,
    batch_size: int,
    split: str,
    seed: int,
    largest: int = 0,
    data_folder: os.PathLike | str | None = None,
) -> dict[str, Any]:
    """Measures the profile of a trained model, keeps it in its folder, and tells the best windows: `launch/tune.py`.

    Args:
        workdir: of a training run.
        num_sequences: held-out sequences, evenly spread over the split.
        batch_size: rows of a batch.
        split: "valid" or "test"; a figure reported on a split must not be tuned on it.
        seed: of the orders.
        largest: windows up to so many tracks; 0 for all.
        data_folder: as in `report.load_data`.

    Returns:
        JSON values: "profile" (path), "num_sequences", and the `frontier` of "plain" and "speculative" (None on a plain
        network).

    Raises:
        ValueError: for bad input, before any long work.
    """
    report.check_sizes(num_sequences=num_sequences, batch_size=batch_size)
    folder = pathlib.Path(os.path.expanduser(workdir))
    model, _, config = ssmd_jax.load(folder)
    experiment = ExperimentConfig.from_config_dict(config)
    data = report.load_data(experiment, data_folder)
    tokens_NxD = text.spread_records(report.held_out_records(data, split), num_sequences)
    report.check_output(folder / PROFILE_FILE)
    profile = measure(model, tokens_NxD, jax.random.key(seed), batch_size=batch_size, largest=largest)
    profile.save(folder / PROFILE_FILE)
    results = {"profile": str(folder / PROFILE_FILE), "num_sequences": profile.num_sequences}
    for sampler in ("plain", "speculative") if profile.verify_cost else ("plain",):
        results[sampler] = frontier(profile, BUDGETS, plain=sampler == "plain", tie_first=experiment.sampling.tie_first)
        say(f"{sampler}\n{tables.frontier_table(results[sampler])}")
    return results
