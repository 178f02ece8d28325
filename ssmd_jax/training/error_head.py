"""Trains the error head of G-Star on a finished run (arXiv 2510.08369).

A training row is masked as in training, its masks are filled at once from the draft, and the head learns which tokens
of the complete row are not the true ones. Theirs takes one step of the sampler and labels `x_s != x_0`; this is its
case `s = 0`, which is what the head is shown when sampling. The trunk is frozen.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssmd_jax.data import pipeline
from ssmd_jax.diffusion import loss as losses
from ssmd_jax.diffusion import masking, orders
from ssmd_jax.diffusion.speculation import categorical, shape_log_prob
from ssmd_jax.model import weights
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.error_head import ErrorCritic, ErrorHead, error_logits
from ssmd_jax.sampling.keys import fold_tracks
from ssmd_jax.training import keys, loading
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.step import row_lengths
from ssmd_jax.training.terminal import say

FILE = "error_head.safetensors"
WARMUP = 20
# Tracks whose drafts are drawn at a time.
CHUNK = 64
# Batches of held-out rows that the head is judged on.
HELD_OUT = 4


class Completed(NamedTuple):
    """Rows whose masks were filled from the draft, in order space.

    Attributes:
        tokens_BxD: the complete rows, padding as it was.
        positions_BxD: position of each track.
        is_wrong_BxD: bool, tokens that are not the true ones; never a revealed one, nor padding.
        lengths_B: of the rows; a NumPy array where all are full.
    """

    tokens_BxD: jax.Array
    positions_BxD: jax.Array
    is_wrong_BxD: jax.Array
    lengths_B: Any


def complete(model: HybridModel, tokens_BxD: jax.Array, key: jax.Array, padded: bool = False) -> Completed:
    """Masks true rows as the training loss does (METHOD.md section 4), and fills them at once from the draft.

    The tracks are filled in chunks, so that no array of batch x length x vocabulary exists.

    Args:
        model: of the run.
        tokens_BxD: int, rows in sequence order.
        key: of the batch.
        padded: static, whether rows may end in padding with the mask id.
    """
    batch, length = tokens_BxD.shape
    lengths_B = row_lengths(tokens_BxD, model.num_tokens) if padded else np.full(batch, length, np.int32)
    order_BxD = orders.uniform_order(keys.row_keys(keys.stream(key, "order"), batch), jnp.asarray(lengths_B), length)
    revealed_B = masking.stratified_num_revealed(keys.stream(key, "reveal"), jnp.asarray(lengths_B))
    true_BxD = orders.to_order_space(tokens_BxD, order_BxD)
    context = model.trunk(true_BxD, order_BxD, revealed_B, lengths_B)
    row_keys_B = keys.row_keys(keys.stream(key, "draft"), batch)
    size = min(CHUNK, length)

    def draw(start: jax.Array) -> jax.Array:
        start_B = jnp.full(batch, start)
        log_prob_BxSxV = shape_log_prob(model.draft_logits(context, start_B, size))
        return categorical(fold_tracks(row_keys_B, start_B, size), log_prob_BxSxV)

    drawn_NxBxS = jax.lax.map(draw, jnp.arange(0, length, size))
    drawn_BxD = jnp.moveaxis(drawn_NxBxS, 0, 1).reshape(batch, -1)[:, :length]
    is_masked_BxD = losses.masked_tracks(revealed_B, jnp.asarray(lengths_B), length)
    filled_BxD = jnp.where(is_masked_BxD, drawn_BxD, true_BxD)
    return Completed(filled_BxD, order_BxD, filled_BxD != true_BxD, lengths_B)


def loss_fn(
    params, model: HybridModel, tokens_BxD: jax.Array, key: jax.Array, padded: bool = False
) -> tuple[jax.Array, Any]:
    """Binary cross entropy of the head, nats a token; padding does not count.

    Args:
        params: of the head.
        model: of the run, frozen.
        tokens_BxD, key, padded: as in `complete`.

    Returns:
        The loss, and `(logits, labels, counted)`, `[B, D]` each: the tokens that count are those of the rows.
    """
    done = complete(model, tokens_BxD, key, padded)
    lengths_B = jnp.asarray(done.lengths_B)
    h_BxDxC, _, _ = model.hidden(done.tokens_BxD, done.positions_BxD, lengths_B, done.lengths_B)
    logits_BxD = error_logits(params, jax.lax.stop_gradient(h_BxDxC))
    losses_BxD = optax.sigmoid_binary_cross_entropy(logits_BxD, done.is_wrong_BxD.astype(jnp.float32))
    counted_BxD = jnp.arange(tokens_BxD.shape[1])[None] < lengths_B[:, None]
    return jnp.mean(losses_BxD, where=counted_BxD), (logits_BxD, done.is_wrong_BxD, counted_BxD)


def make_train_step(model: HybridModel, optimizer: optax.GradientTransformation, padded: bool = False):
    """The step `(params, optimizer state, tokens [B, D], key) -> (params, optimizer state, loss)`, jitted."""

    @jax.jit
    def step(model, params, opt_state, tokens_BxD, key):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, _), gradient = differentiate(params, model, tokens_BxD, key, padded)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return lambda params, opt_state, tokens_BxD, key: step(model, params, opt_state, tokens_BxD, key)


def judge(params, model: HybridModel, batches: Iterable[np.ndarray], key: jax.Array, padded: bool = False) -> dict:
    """What the head knows of held-out rows, a batch at a time: see `train`.

    Args:
        params, model, padded: as in `loss_fn`.
        batches: int `[B, D]` each.
        key: of all of them.
    """
    evaluate = jax.jit(loss_fn, static_argnames="padded")
    judged = [
        jax.device_get(evaluate(params, model, tokens_BxD, jax.random.fold_in(key, n), padded=padded)[1])
        for n, tokens_BxD in enumerate(batches)
    ]
    logits_N, is_wrong_N = (np.concatenate([one[field][one[2]] for one in judged]) for field in (0, 1))
    losses_N = optax.sigmoid_binary_cross_entropy(logits_N, is_wrong_N.astype(np.float32))
    share = float(is_wrong_N.mean())
    return {
        "loss": float(np.mean(losses_N)),
        "loss_of_the_share": float(-sum(p * np.log(p) for p in (share, 1 - share) if p > 0)),
        "share_wrong": share,
        "ranking_quality": ranking_quality(logits_N, is_wrong_N),
    }


def ranking_quality(logits: np.ndarray, is_wrong: np.ndarray) -> float:
    """Chance that a wrong token has the larger logit of a wrong and a right one; .5 is blind, nan without both."""
    logits, is_wrong = np.ravel(logits), np.ravel(is_wrong)
    wrong, right = int(is_wrong.sum()), int((~is_wrong).sum())
    if not wrong or not right:
        return float("nan")
    _, index, counts = np.unique(logits, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return float((mean_rank[is_wrong].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


def train(
    workdir: os.PathLike | str,
    *,
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    hidden: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains the head on a run's training text and keeps it in the workdir: what `launch/error_head.py` does.

    Args:
        workdir: of a finished training run.
        steps: of AdamW with a cosine decay; theirs 50,000 of 512 rows.
        batch_size: rows a step.
        learning_rate: at its peak.
        hidden: width of the head.
        seed: of everything random here.

    Returns:
        JSON values: "output", "steps", and of held-out rows "loss" (nats a token), "loss_of_the_share" (that of knowing
        the share of wrong tokens alone), "share_wrong", "ranking_quality" (see `ranking_quality`).

    Raises:
        ValueError: for numbers out of range, or a workdir that cannot be read.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    folder = pathlib.Path(os.path.expanduser(workdir))
    model, _, config = loading.load(folder)
    experiment = ExperimentConfig.from_config_dict(config)
    data = pipeline.load_data(experiment.data, experiment.length)
    key = jax.random.key(seed)
    params = ErrorHead(hidden).init(keys.stream(key, "init"), jnp.zeros((1, 1, model.config.width)))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(WARMUP, steps), steps + 1)
    optimizer = optax.adamw(schedule)
    padded = experiment.data.rows == "sequences"
    step, opt_state = make_train_step(model, optimizer, padded), optimizer.init(params)
    batches = pipeline.train_batches(data.train, global_batch_size=batch_size, seed=seed)
    for n in range(steps):
        params, opt_state, loss = step(params, opt_state, next(batches), jax.random.fold_in(key, n))
        if (n + 1) % max(steps // 10, 1) == 0:
            say(f"error head, step {n + 1}: {float(loss):.4f} nats a token")
    params = jax.device_get(params)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
        raise ValueError("the error head has become infinite: lower learning_rate")
    weights.save(folder / FILE, params, "float32")
    held_out = pipeline.eval_batches(data.valid, batch_size=min(batch_size, len(data.valid)), num_batches=HELD_OUT)
    figures = judge(params, model, held_out, keys.stream(key, "valid"), padded)
    return {"output": str(folder / FILE), "steps": steps, **figures}


def load(workdir: os.PathLike | str, model: HybridModel) -> ErrorCritic:
    """The critic of a workdir whose head was trained.

    Raises:
        ValueError: where there is none.
    """
    file = pathlib.Path(workdir) / FILE
    if not file.is_file():
        raise ValueError(f"workdir {workdir} has no error head: launch/error_head.py trains one")
    return ErrorCritic(model, jax.tree.map(jnp.asarray, weights.load(file)))
