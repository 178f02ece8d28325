"""The training loop: the same for one device and for many."""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ssmd_jax.data import pipeline
from ssmd_jax.data.pipeline import Data
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import flops, keys, loading, sharding, workdir
from ssmd_jax.training import optimizer as optimizers
from ssmd_jax.training import state as states
from ssmd_jax.training.checkpoint import Checkpoints
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.interrupts import Interrupts
from ssmd_jax.training.metrics import MetricWriter
from ssmd_jax.training.state import TrainState
from ssmd_jax.training.step import make_train_step
from ssmd_jax.training.validation import Validation, make_eval_step, validate


class NonFiniteLossError(ArithmeticError):
    """Loss or gradient became infinite or NaN; the message names the last good checkpoint."""


def train(
    config: ExperimentConfig | Mapping[str, Any], directory: os.PathLike | str, data: Data | None = None
) -> dict[str, Any]:
    """Trains, or goes on with, the run in a workdir.

    Args:
        config: an `ExperimentConfig`, or the `ConfigDict` that a config file's `get_config()` returns.
        directory: the workdir; what is there already is resumed.
        data: records and tokenizer; None to load what `config.data` says.

    Returns:
        Summary: `step`, `finished`, `stopped_by` ("SIGTERM" or None), `resumed_from` (step or None), `num_params`,
        `train_loss` (nats per token, mean since the last line of metrics; None where no step was made), the
        validation's `valid_draft_loss`, `valid_target_loss` (nats per token), `valid_draft_bits`,
        `valid_target_bits`, `valid_draft_bits_by_distance`, `valid_target_bits_by_distance` (None where there was
        none), `seconds`, `tokens_per_second`, `workdir`.

    Raises:
        ValueError: for bad input: config, mesh, batch size, another run's workdir, data too small; one sentence.
        FileNotFoundError: where data are missing.
        NonFiniteLossError: where loss or gradient is no longer finite. Nothing of that state is saved.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved.
    """
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig.from_config_dict(config)
    # All that can be refused is refused before anything is written.
    mesh = sharding.make_mesh(config.mesh)
    training = config.training
    sharding.check_batch(mesh, training.batch_size, "training.batch_size", training.accumulation)
    sharding.check_batch(mesh, training.validation_batch_size, "training.eval_batch_size")
    if config.model.attention == "cudnn" and mesh.devices.flat[0].platform != "gpu":
        raise ValueError("model.attention 'cudnn' needs an NVIDIA GPU; set --config.model.attention=xla")
    workdir.check_config(directory, config)
    data = pipeline.load_data(config.data, config.length) if data is None else data
    workdir.check_tokenizer(directory, data.tokenizer)
    run = _Run(config, mesh, data)
    next(run.validation_batches())
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        workdir.write(directory, config, data.tokenizer)
    rules = sharding.rules_for(mesh, data.tokenizer.num_tokens)
    with sharding.activate(mesh, rules), contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(directory, keep_last=training.keep_last, keep_every=training.keep_every)
        )
        return run.go(checkpoints, directory, stack)


class _Run:
    """What stays the same during a run, and the loop over it; the state that changes is passed along."""

    def __init__(self, config: ExperimentConfig, mesh: jax.sharding.Mesh, data: Data):
        self.config, self.mesh, self.data = config, mesh, data
        self.network = HybridTransformer(config.network_config(data.tokenizer.num_tokens))
        training, use_ema = config.training, config.training.ema_decay > 0
        schedule = optimizers.make_schedule(config.optimizer, training.num_steps)
        optimizer = optimizers.make_optimizer(config.optimizer, schedule, config.loss.freeze_trunk)
        self.abstract = states.abstract_state(self.network, optimizer, use_ema, mesh)
        self.root_key = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
        everywhere, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        shardings = states.shardings_of(self.abstract)
        step = make_train_step(
            self.network,
            optimizer,
            schedule,
            config.loss,
            accumulation=training.accumulation,
            ema_decay=training.ema_decay,
        )
        self.train_step = jax.jit(
            step,
            in_shardings=(shardings, batch, everywhere),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        )
        self.eval_step = jax.jit(
            make_eval_step(self.network, config.loss),
            in_shardings=(shardings.params, batch, everywhere),
            out_shardings=everywhere,
        )
        self.init = jax.jit(
            lambda key: states.init_state(self.network, optimizer, use_ema, keys.stream(key, "init")),
            out_shardings=shardings,
        )
        self.flops_per_token = flops.train_flops_per_token(self.network.config, config.length, config.loss.freeze_trunk)

    def first_state(self, checkpoints: Checkpoints, warn) -> tuple[TrainState, int | None]:
        """The state to start from, and the step it was resumed from. In order of precedence:

        1. the newest readable checkpoint of the workdir;
        2. the weights of the run that `training.init_from` names, everything else fresh;
        3. a fresh state from the seed.
        """
        restored = checkpoints.restore(self.abstract, warn)
        if restored is not None:
            return restored, int(restored.step)
        state = self.init(self.root_key)
        if self.config.training.init_from:
            params = self._other_params(state.params, warn)
            state = state.replace(params=params)
            if state.ema_params is not None:
                state = state.replace(ema_params=jax.tree.map(jax.numpy.copy, params))
        elif self.config.loss.freeze_trunk:
            warn("the trunk is frozen as it was initialised at random: training.init_from names no trained one")
        return state, None

    def _other_params(self, fresh, warn):
        path = self.config.training.init_from
        params, tokenizer, _ = loading.load_params(path, warn)
        if tokenizer.fingerprint() != self.data.tokenizer.fingerprint():
            raise ValueError(f"training.init_from {path} was trained with another tokenizer than data gives")
        if "causal" not in params and "causal" in fresh:
            params = {**params, "causal": fresh["causal"]}
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        if shapes(params) != shapes(fresh):
            raise ValueError(f"training.init_from {path} has parameters of other shapes: make the model sections agree")
        return jax.device_put(params, states.shardings_of(self.abstract.params))

    def train_batches(self, start_step: int) -> Iterator[np.ndarray]:
        """This process's rows of each global batch from a step on."""
        return pipeline.train_batches(
            self.data.train,
            global_batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def validation_batches(self) -> Iterator[np.ndarray]:
        """This process's rows of the validation batches, the same at every validation."""
        return pipeline.eval_batches(
            self.data.valid,
            batch_size=self.config.training.validation_batch_size,
            num_batches=self.config.training.eval_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def validate(self, state: TrainState) -> Validation:
        """Validates the averaged weights."""
        batches = (sharding.to_devices(self.mesh, batch) for batch in self.validation_batches())
        return validate(self.eval_step, state.eval_params, batches, self.root_key)

    def go(self, checkpoints: Checkpoints, directory, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Trains until the last step, a signal, or a loss that is not finite."""
        training, warnings = self.config.training, []
        state, resumed_from = self.first_state(checkpoints, warnings.append)
        start = resumed_from or 0
        is_writer = jax.process_index() == 0
        writer = stack.enter_context(
            MetricWriter(directory, start_step=start, last_step=training.last_step, is_writer=is_writer)
        )
        for text in warnings:
            writer.say(text)
        num_params = states.count_params(state.params)
        origin = f"resumed from step {start}" if resumed_from else "from the start"
        writer.say(f"{num_params:,} parameters, {self.mesh.size} x {jax.devices()[0].device_kind}, {origin}")
        interrupts = stack.enter_context(Interrupts())
        batches = self.train_batches(start)
        stack.callback(getattr(batches, "close", lambda: None))
        meter = _Meter(self, writer, checkpoints, start)
        validation, began = None, time.monotonic()
        step, stopped_by, pending = start, None, None
        while step < training.last_step:
            state, metrics = self.train_step(state, sharding.to_devices(self.mesh, next(batches)), self.root_key)
            step += 1
            # Step n is under way by the time the metrics of step n - 1 are read.
            meter.read(pending)
            pending = (step, metrics)
            stopped_by = interrupts.agreed(is_meeting=step % training.log_every == 0)
            at_end = step == training.last_step or stopped_by is not None
            due = lambda every, step=step: bool(every) and step % every == 0
            if at_end or due(training.eval_every) or due(training.checkpoint_every):
                meter.read(pending)  # a state that is not finite is neither validated nor saved
                pending = None
            if due(training.checkpoint_every) or at_end:
                checkpoints.save(state)
            if stopped_by is not None:
                break
            if due(training.eval_every) or at_end:
                with meter.paused():
                    validation = self._validated(state, step, writer)
        if stopped_by is not None:
            checkpoints.wait()
            writer.say(f"{stopped_by}: saved at step {step}; the same command goes on from there")
            if stopped_by == "SIGINT":
                raise KeyboardInterrupt
        elif validation is None:
            validation = self._validated(state, step, writer)
        summary = {
            "step": step,
            "finished": step == training.num_steps,
            "stopped_by": stopped_by,
            "resumed_from": resumed_from,
            "num_params": num_params,
            "train_loss": meter.last_loss,
            "seconds": round(time.monotonic() - began, 2),
            "tokens_per_second": meter.last_rate,
            "workdir": str(directory),
        }
        return summary | (
            {} if validation is None else {f"valid_{name}": value for name, value in validation.as_dict().items()}
        )

    def _validated(self, state: TrainState, step: int, writer: MetricWriter) -> Validation:
        result = self.validate(state)
        note = (
            f"validation: draft {result.draft_bits:.3f} bits per token (a bound), "
            f"target {result.target_bits:.3f} (no bound)\n{result.table()}"
        )
        writer.write(step, "valid", result.as_dict(), note)
        return result


class _Meter:
    """Reads the steps' metrics, stops at one that is not finite, and writes their means every `log_every` steps."""

    def __init__(self, run: _Run, writer: MetricWriter, checkpoints: Checkpoints, start_step: int):
        self._run, self._writer, self._checkpoints = run, writer, checkpoints
        self._since, self._values = start_step, []
        self._clock = time.monotonic()
        self.last_loss, self.last_rate = None, None

    @contextlib.contextmanager
    def paused(self):
        """Time spent inside does not count as training."""
        began = time.monotonic()
        yield
        self._clock += time.monotonic() - began

    def read(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Takes the metrics of a step; waits for it.

        Raises:
            NonFiniteLossError: where loss or gradient is not finite.
        """
        if pending is None:
            return
        step, metrics = pending
        values = jax.device_get(metrics)
        if not values.pop("finite"):
            self._checkpoints.wait()
            saved = self._checkpoints.steps
            good = f"the last good checkpoint is {self._checkpoints.directory / str(saved[-1])}" if saved else None
            raise NonFiniteLossError(
                f"loss or gradient is not finite at step {step} (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}); {good or 'there is no checkpoint yet'}; lower optimizer.learning_rate "
                "or raise optimizer.warmup_steps"
            )
        self._values.append(values)
        self._writer.advance(step)
        training = self._run.config.training
        if step % training.log_every == 0 or step == training.last_step:
            self._write(step)

    def _write(self, step: int) -> None:
        now = time.monotonic()
        means = {name: float(np.mean([values[name] for values in self._values])) for name in self._values[0]}
        means["learning_rate"] = float(self._values[-1]["learning_rate"])
        config = self._run.config
        rate = (step - self._since) * config.training.batch_size * config.length / (now - self._clock)
        means["tokens_per_second"] = rate
        peak = flops.peak_flops(self._run.mesh.devices.flat[0])
        if peak is not None:
            means["model_flops_utilization"] = rate * self._run.flops_per_token / (peak * self._run.mesh.size)
        note = (
            f"draft {means['draft_loss'] / math.log(2):.3f}, target {means['target_loss'] / math.log(2):.3f} "
            f"bits per token, gradient {means['grad_norm']:.2f}, {rate:,.0f} tokens/s"
        )
        self._writer.write(step, "train", means, note)
        self._since, self._values, self._clock = step, [], now
        self.last_loss, self.last_rate = means["loss"], round(rate, 1)
