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
from ssmd_jax.diffusion.speculation import between, gumbel, redraw_round
from ssmd_jax.diffusion.window import passes_left
from ssmd_jax.evaluation import report, tables, text
from ssmd_jax.evaluation.likelihood import rows_at_a_time
from ssmd_jax.sampling import canvas, keys
from ssmd_jax.sampling.interface import prepared
from ssmd_jax.sampling.keys import row_keys
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile, best_windows
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.terminal import say

BUDGETS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 44, 64, 80, 128)
# Numbers of revealed tokens at which rounds are counted; they change slowly between.
ROUND_STARTS = 32


def measure(model, tokens_NxD: np.ndarray, key: jax.Array, *, batch_size: int, largest: int = 0) -> Profile:
    """Draft, target and rejections at every number of revealed tokens, on held-out text.

    All numbers of revealed tokens see the same sequences and orders, so that their differences, which decide between
    windows, have little noise. Costs `D` trunk passes a sequence, and at up to 32 numbers of revealed tokens the rounds
    that settle all tracks, drawn from the target with shared noise.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokens_NxD: int, full sequences in sequence order; sequences beyond a multiple of the batch are left out.
        key: of the orders, one a sequence, and of the noise.
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
    starts_M = np.arange(0, length, -(-length // ROUND_STARTS), dtype=np.int32)
    rounds_MxS = np.zeros((len(starts_M), size))
    for n in range(num_batches):
        rows = slice(n * batch_size, (n + 1) * batch_size)
        order_BxD = orders.uniform_order(keys_N[rows], np.full(batch_size, length, np.int32), length)
        total += np.asarray(_sums(model, tokens_NxD[rows], order_BxD, size=size))
        if model.verify_cost:
            rounds_MxS += np.asarray(_rounds(model, tokens_NxD[rows], order_BxD, keys_N[rows], starts_M, size=size))
    used = num_batches * batch_size
    rounds_DxS = interpolated(rounds_MxS / used, starts_M, length) if model.verify_cost else None
    return Profile(*(total / used), rounds_DxS, model.trunk_cost, model.verify_cost, used)


def interpolated(rounds_MxS: np.ndarray, starts_M: np.ndarray, length: int) -> np.ndarray:
    """Rounds at every number of revealed tokens, float64 `[D, S]`, from those at some.

    Args:
        rounds_MxS: rounds at `starts`; entries with `start + s >= D` mean nothing.
        starts_M: increasing, from 0.
        length: `D`.
    """
    rounds_DxS = np.empty((length, rounds_MxS.shape[1]))
    for s in range(rounds_MxS.shape[1]):
        # A start behind which there is no such track says nothing of it: the last that does stands for the rest.
        known = max(1, int(np.sum(starts_M + s < length)))
        rounds_DxS[:, s] = np.interp(np.arange(length), starts_M[:known], rounds_MxS[:known, s])
    return rounds_DxS


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


@functools.partial(jax.jit, static_argnames="size")
def _rounds(model, tokens_BxD, order_BxD, row_keys_B, starts_M, *, size: int):
    """Sums over the batch of the round with shared noise that settles each track, float32 `[M, S]`."""
    batch, length = tokens_BxD.shape
    model, lengths_B = prepared(model), np.full(batch, length, np.int32)
    true_BxD = orders.to_order_space(tokens_BxD, order_BxD)

    def at(i):
        start_B = jnp.full((batch,), i, jnp.int32)
        window_B = jnp.minimum(length - start_B, size)
        context = model.trunk(true_BxD, order_BxD, start_B, lengths_B)
        draft_BxSxV = model.draft_logits(context, start_B, size)
        draft_keys_B = keys.fold(keys.stream(row_keys_B, keys.DRAFT), start_B)
        noise_BxSxV = gumbel(keys.fold_tracks(draft_keys_B, start_B, size), model.num_tokens)

        def one_round(state):
            number, tokens_BxS, offset_B, settled_BxS = state
            tokens_BxD = canvas.write(true_BxD, tokens_BxS, start_B, window_B)
            target_BxSxV = model.target_logits(context, tokens_BxD, order_BxD, start_B, size)
            tokens_BxS, next_B = redraw_round(noise_BxSxV, tokens_BxS, target_BxSxV, offset_B, window_B)
            settled_BxS = jnp.where(between(offset_B, next_B, size), number + 1, settled_BxS)
            return number + 1, tokens_BxS, next_B, settled_BxS

        drafts_BxS = jnp.argmax(draft_BxSxV + noise_BxSxV, axis=-1).astype(jnp.int32)
        state = (0, drafts_BxS, jnp.zeros_like(start_B), jnp.zeros((batch, size), jnp.int32))
        *_, settled_BxS = jax.lax.while_loop(lambda state: jnp.any(state[2] < window_B), one_round, state)
        return jnp.sum(settled_BxS, axis=0).astype(jnp.float32)

    return jax.lax.map(at, starts_M)


def frontier(
    profile: Profile, budgets, *, plain: bool = False, tie_first: bool = False, shared_noise: bool = False
) -> list[dict[str, float | int]]:
    """Best windows for each budget that pays any, as rows of a table.

    Args:
        profile: of a network.
        budgets: mean NFE a sequence.
        plain: for the plain sampler.
        tie_first: for a tied first track.
        shared_noise: for rounds with shared noise.

    Returns:
        For each budget "budget", "nfe", "bits" (per token, the likelihood bound), "passes" and "largest_window".
    """
    rows = []
    for budget in budgets:
        try:
            found = best_windows(profile, budget, plain=plain, tie_first=tie_first, shared_noise=shared_noise)
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
        JSON values: "profile" (path), "num_sequences", and the `frontier` of "plain", and on a network with a causal
        part of "speculative" and "shared_noise".

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
    laws = {"tie_first": experiment.sampling.tie_first}
    results["plain"] = frontier(profile, BUDGETS, plain=True)
    if profile.verify_cost:
        results["speculative"] = frontier(profile, BUDGETS, **laws)
        results["shared_noise"] = frontier(profile, BUDGETS, shared_noise=True, **laws)
    for name in ("plain", "speculative", "shared_noise"):
        if name in results:
            say(f"{name.replace('_', ' ')}\n{tables.frontier_table(results[name])}")
    return results
