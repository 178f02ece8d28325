"""The training loop: the same for one device and for many."""

import contextlib
import dataclasses
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
from ssmd_jax.training import checkpoint, distributed, flops, keys, loading, sharding, workdir
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
    """Loss, gradient or state became infinite or NaN; the message names the last good checkpoint."""


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
        `train_loss` (nats per token, mean over the last line of metrics; None where no step was made), the
        validation's `valid_draft_loss`, `valid_target_loss` (nats per token), `valid_draft_bits`,
        `valid_target_bits`, `valid_draft_bits_by_distance`, `valid_target_bits_by_distance` (None where there was
        none), `seconds`, `tokens_per_second` (without the first step, which compiles; None where there was no other),
        `workdir`.

    Raises:
        ValueError: for bad input: config, mesh, batch size, another run's workdir or data, data too small; one
            sentence.
        FileNotFoundError: where data are missing.
        NonFiniteLossError: where loss, gradient or state is no longer finite. Nothing of that state is saved.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved.
    """
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig.from_config_dict(config)
    directory = os.path.expanduser(directory)  # the shell leaves the `~` of `--workdir=~/run` to us
    # All that can be refused is refused before anything is written.
    mesh = sharding.make_mesh(config.mesh)
    training = config.training
    sharding.check_batch(mesh, training.batch_size, "training.batch_size", training.accumulation)
    sharding.check_batch(mesh, training.validation_batch_size, "training.eval_batch_size")
    distributed.say_hello(mesh, training.batch_size)
    if config.model.attention == "cudnn" and mesh.devices.flat[0].platform != "gpu":
        raise ValueError("model.attention 'cudnn' needs an NVIDIA GPU; set --config.model.attention=xla")
    workdir.check_config(directory, config)
    data = pipeline.load_data(config.data, config.length) if data is None else data
    workdir.check_tokenizer(directory, data.tokenizer)
    identity = workdir.identity(data)
    workdir.check_data(directory, identity)
    run = _Run(config, mesh, data)
    run.check_batches()
    if not checkpoint.has_checkpoints(directory):
        run.load_other_params()
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        workdir.write(directory, config, data.tokenizer, identity)
    rules = sharding.rules_for(mesh, config.network_config(data.tokenizer.num_tokens).padded_tokens)
    # Outermost: a signal can end neither the last validation nor the last save.
    with Interrupts() as interrupts:
        with sharding.activate(mesh, rules), contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(
                Checkpoints(directory, keep_last=training.keep_last, keep_every=training.keep_every)
            )
            summary = run.go(checkpoints, directory, interrupts, stack)
        summary["stopped_by"] = summary["stopped_by"] or interrupts.agreed(is_meeting=True)
    if summary["stopped_by"] == "SIGINT":
        raise KeyboardInterrupt
    return summary


class _Run:
    """What stays the same during a run, and the loop over it; the state that changes is passed along."""

    def __init__(self, config: ExperimentConfig, mesh: jax.sharding.Mesh, data: Data):
        self.config, self.mesh, self.data = config, mesh, data
        self.share = sharding.data_share(mesh)
        self.warnings: list[str] = []  # said as soon as there is somebody to say them
        self._other_params = None
        network_config = config.network_config(data.tokenizer.num_tokens)
        # The fused kernel of the MLP is for inference: its backward pass computes everything again.
        self.network = HybridTransformer(dataclasses.replace(network_config, mlp="xla"))
        training, use_ema = config.training, config.training.ema_decay > 0
        schedule = optimizers.make_schedule(config.optimizer, training.num_steps)
        optimizer = optimizers.make_optimizer(config.optimizer, schedule, config.loss.freeze_trunk)
        self.abstract = states.abstract_state(self.network, optimizer, use_ema, mesh)
        self.root_key = sharding.root_key(mesh, config.seed)
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

    def first_state(self, checkpoints: Checkpoints) -> tuple[TrainState, int | None]:
        """The state to start from, and the step it was resumed from. In order of precedence:

        1. the newest readable checkpoint of the workdir;
        2. the weights of the run that `training.init_from` names, everything else fresh;
        3. a fresh state from the seed.
        """
        restored = checkpoints.restore(self.abstract, self.warnings.append)
        if restored is not None:
            return restored, int(restored.step)
        state = self.init(self.root_key)
        if self.config.training.init_from:
            self.load_other_params()
            # Where that run has no causal part, ours starts fresh.
            params = state.params | jax.device_put(self._other_params, states.shardings_of(self._other_abstract()))
            self._other_params = None  # its buffers are the state's now, or not needed any more
            state = state.replace(params=params)
            if state.ema_params is not None:
                state = state.replace(ema_params=jax.tree.map(jax.numpy.copy, params))
        elif self.config.loss.freeze_trunk:
            self.warnings.append(
                "the trunk is frozen as it was initialised at random: training.init_from names no trained one"
            )
        return state, None

    def load_other_params(self) -> None:
        """Loads the weights of the run that `training.init_from` names, unless there is none or they are loaded.

        Raises:
            ValueError: where there are none, or they do not fit.
        """
        path = self.config.training.init_from
        if not path or self._other_params is not None:
            return
        params, tokenizer, _ = loading.load_params(os.path.expanduser(path), self.warnings.append)
        if tokenizer.fingerprint() != self.data.tokenizer.fingerprint():
            raise ValueError(f"training.init_from {path} was trained with another tokenizer than data gives")
        self._other_params = params
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        if shapes(params) != shapes(self._other_abstract()):
            raise ValueError(f"training.init_from {path} has parameters of other shapes: make the model sections agree")

    def _other_abstract(self):
        fresh = () if "causal" in self._other_params else ("causal",)
        return {name: part for name, part in self.abstract.params.items() if name not in fresh}

    def check_batches(self) -> None:
        """Raises `ValueError` where a split is too small for a batch."""
        _close(self.train_batches(0))
        next(self.validation_batches())

    def train_batches(self, start_step: int) -> Iterator[np.ndarray]:
        """This process's rows of each global batch from a step on."""
        return pipeline.train_batches(
            self.data.train,
            global_batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process_index=self.share[0],
            process_count=self.share[1],
        )

    def validation_batches(self) -> Iterator[np.ndarray]:
        """This process's rows of the validation batches, the same at every validation."""
        return pipeline.eval_batches(
            self.data.valid,
            batch_size=self.config.training.validation_batch_size,
            num_batches=self.config.training.eval_batches,
            process_index=self.share[0],
            process_count=self.share[1],
        )

    def validate(self, state: TrainState) -> Validation:
        """Validates the averaged weights."""
        batches = (sharding.to_devices(self.mesh, batch) for batch in self.validation_batches())
        return validate(self.eval_step, state.eval_params, batches, self.root_key)

    def go(
        self, checkpoints: Checkpoints, directory, interrupts: Interrupts, stack: contextlib.ExitStack
    ) -> dict[str, Any]:
        """Trains until the last step, a signal, or a number that is not finite."""
        training = self.config.training
        state, resumed_from = self.first_state(checkpoints)
        start = resumed_from or 0
        is_writer = jax.process_index() == 0
        writer = stack.enter_context(
            MetricWriter(directory, start_step=start, last_step=training.last_step, is_writer=is_writer)
        )
        for text in self.warnings:
            writer.say(text)
        num_params = states.count_params(state.params)
        origin = f"resumed from step {start}" if resumed_from else "from the start"
        writer.say(f"{num_params:,} parameters, {self.mesh.size} x {jax.devices()[0].device_kind}, {origin}")
        batches = self.train_batches(start)
        stack.callback(_close, batches)
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
                meter.flush()
                break
            if due(training.eval_every) or at_end:
                with meter.paused():
                    validation = self._validated(state, step, writer)
        if stopped_by is not None:
            checkpoints.wait()
            writer.say(f"{stopped_by}: saved at step {step}; the same command goes on from there")
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
        values = dict.fromkeys(Validation.names()) if validation is None else validation.as_dict()
        return summary | {f"valid_{name}": value for name, value in values.items()}

    def _validated(self, state: TrainState, step: int, writer: MetricWriter) -> Validation:
        result = self.validate(state)
        note = (
            f"validation: draft {result.draft_bits:.3f} bits per token (a bound), "
            f"target {result.target_bits:.3f} (no bound)\n{result.table()}"
        )
        writer.write(step, "valid", result.as_dict(), note)
        return result


def _close(batches: Iterator[np.ndarray]) -> None:
    getattr(batches, "close", lambda: None)()


class _Meter:
    """Reads the steps' metrics, stops at one that is not finite, and writes their means every `log_every` steps."""

    def __init__(self, run: _Run, writer: MetricWriter, checkpoints: Checkpoints, start_step: int):
        self._run, self._writer, self._checkpoints = run, writer, checkpoints
        self._step, self._values = start_step, []
        # Step and time from which tokens per second are counted: the end of the first step, which compiles.
        self._since, self._clock = None, 0.0
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
            NonFiniteLossError: where loss, gradient or the state after the step is not finite.
        """
        if pending is None:
            return
        step, metrics = pending
        values = jax.device_get(metrics)
        if not values.pop("finite"):
            self._checkpoints.wait()
            saved = self._checkpoints.steps
            directory = self._checkpoints.directory
            # The same workdir refuses another rate, and the same rate would end in the same way.
            advice = "train in a new workdir with a lower optimizer.learning_rate or more optimizer.warmup_steps"
            raise NonFiniteLossError(
                f"loss, gradient or update is not finite at step {step} (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}); {advice}"
                + (
                    f"; training.init_from={directory.parent} starts from the weights of the last good checkpoint, "
                    f"{directory / str(saved[-1])}"
                    if saved
                    else "; there is no checkpoint yet"
                )
            )
        if self._since is None:
            self._since, self._clock = step, time.monotonic()
        self._step = step
        self._values.append(values)
        self._writer.advance(step)
        training = self._run.config.training
        if step % training.log_every == 0 or step == training.last_step:
            self.flush()

    def flush(self) -> None:
        """Writes the means of the steps read since the last line, where there are any."""
        if not self._values:
            return
        step, now = self._step, time.monotonic()
        means = {name: float(np.mean([values[name] for values in self._values])) for name in self._values[0]}
        means["learning_rate"] = float(self._values[-1]["learning_rate"])
        config = self._run.config
        speed = ""
        if step > self._since:
            rate = (step - self._since) * config.training.batch_size * config.length / (now - self._clock)
            means["tokens_per_second"] = rate
            peak = flops.peak_flops(self._run.mesh.devices.flat[0])
            if peak is not None:
                means["model_flops_utilization"] = rate * self._run.flops_per_token / (peak * self._run.mesh.size)
            speed, self.last_rate = f", {rate:,.0f} tokens/s", round(rate, 1)
        note = (
            f"draft {means['draft_loss'] / math.log(2):.3f}, target {means['target_loss'] / math.log(2):.3f} "
            f"bits per token, gradient {means['grad_norm']:.2f}{speed}"
        )
        self._writer.write(step, "train", means, note)
        self._since, self._values, self._clock = step, [], now
        self.last_loss = means["loss"]
