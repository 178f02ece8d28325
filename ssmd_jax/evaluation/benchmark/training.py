"""The training suite: the real train step, AdamW and the moving average included, on one device."""

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
    network = HybridTransformer(config)
    optimizer_config = OptimizerConfig(name="adamw")
    schedule = make_schedule(optimizer_config, NUM_STEPS)
    optimizer = make_optimizer(optimizer_config, schedule)
    train_step = make_train_step(network, optimizer, schedule, LossConfig(), ema_decay=EMA_DECAY)
    key = jax.random.key(settings.seed)
    shape = (settings.batch_size, settings.length)
    tokens_BxD = np.random.default_rng(settings.seed).integers(0, config.num_tokens, shape, dtype=np.int32)
    tokens_BxD = jax.device_put(tokens_BxD)
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
    return Row(SUITE, "step", timed, compiled._replace(compiled=None), flops, figures=figures)
