"""The training suite: the real train step, AdamW and the moving average included, on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.evaluation.benchmark.bench import Bench
from ssmd_jax.evaluation.benchmark.rows import Row
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training.config import OptimizerConfig
from ssmd_jax.training.flops import train_flops_per_token
from ssmd_jax.training.optimizer import make_optimizer, make_schedule
from ssmd_jax.training.state import TrainState, count_params
from ssmd_jax.training.step import make_train_step

SUITE = "training"
PARTS = ("step",)
EMA_DECAY = 0.999
# Of the schedule, on which nothing that is measured depends.
NUM_STEPS = 1000


def run(bench: Bench) -> list[Row]:
    """The suite's one row."""
    return bench.row(SUITE, "step", lambda: _step(bench))


def _step(bench: Bench) -> Row:
    settings, config = bench.settings, bench.settings.model
    network = HybridTransformer(dataclasses.replace(config, mlp="xla"))  # as the trainer does
    optimizer_config = OptimizerConfig(name="adamw")
    schedule = make_schedule(optimizer_config, NUM_STEPS)
    optimizer = make_optimizer(optimizer_config, schedule)
    train_step = make_train_step(network, optimizer, schedule, LossConfig(), ema_decay=EMA_DECAY)
    key = jax.random.key(settings.seed)
    shape = (settings.batch_size, settings.length)
    tokens_BxD = jax.device_put(zipf_tokens(settings.seed, config.num_tokens, shape))
    # Copies, since the step consumes its state.
    params, ema_params = (jax.tree.map(jnp.copy, bench.model.params) for _ in range(2))
    state = TrainState(jnp.zeros((), jnp.int32), params, ema_params, jax.jit(optimizer.init)(params))
    compiled = bench.compile(train_step, state, tokens_BxD, key, donate=(0,))

    def call():
        nonlocal state
        state, metrics = compiled.compiled(state, tokens_BxD, key)
        return metrics

    timed = bench.time(SUITE, "step", call)
    tokens = settings.batch_size * settings.length
    figures = {
        "tokens_per_second": tokens / timed.median,
        "num_params": count_params(state.params),
        "loss": float(call()["loss"]),
    }
    flops = tokens * train_flops_per_token(config, settings.length)
    if bench.ceilings is not None:
        # What a step that applies both heads to all tracks would have to reach for the same tokens a second.
        of_all_tracks = tokens * train_flops_per_token(config, settings.length, head_tracks=1.0) / timed.median
        figures["ceiling_share_counting_all_tracks"] = of_all_tracks / bench.ceilings.matmul_flops
    return Row(SUITE, "step", timed, compiled._replace(compiled=None), flops, figures=figures)


def zipf_tokens(seed: int, num_tokens: int, shape: tuple[int, int]) -> np.ndarray:
    """Random tokens, int32, as frequent as words are: token `n` in proportion to `1 / (n + 2.7)` (Zipf, Mandelbrot).

    Additions to one row of the embedding's gradient wait for each other: uniform tokens would hide that.
    """
    frequency_V = 1.0 / (np.arange(num_tokens) + 2.7)
    return np.random.default_rng(seed).choice(num_tokens, shape, p=frequency_V / frequency_V.sum()).astype(np.int32)
