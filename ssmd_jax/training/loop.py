"""The training loop: the same for one device and for many."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ssmd_jax.data import pipeline
from ssmd_jax.data.buckets import Sequences
from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.data.pipeline import Data
from ssmd_jax.training import checkpoint, distributed, flops, loading, programs, samples, sharding, workdir
from ssmd_jax.training import state as states
from ssmd_jax.training.checkpoint import Checkpoints
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.interrupts import Interrupts
from ssmd_jax.training.meter import Meter, NonFiniteLossError, peak_memory
from ssmd_jax.training.metrics import MetricWriter
from ssmd_jax.training.profiling import Profiler
from ssmd_jax.training.progress import Progress
from ssmd_jax.training.state import TrainState
from ssmd_jax.training.validation import Validation, validate

__all__ = ["LossSpikeError", "NonFiniteLossError", "train"]


class LossSpikeError(ArithmeticError):
    """The loss rose too often; the message names the last good checkpoint."""


def train(
    config: ExperimentConfig | Mapping[str, Any],
    directory: os.PathLike | str,
    data: Data | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains, or goes on with, the run in a workdir.

    Args:
        config: an `ExperimentConfig`, or the `ConfigDict` that a config file's `get_config()` returns.
        directory: the workdir; what is there already is resumed.
        data: records and tokenizer; None to load what `config.data` says.
        profile_steps: first and last step to trace into `<workdir>/profile`; None for no trace.

    Returns:
        Summary: `step`, `finished`, `stopped_by` ("SIGTERM" or None), `resumed_from` (step or None), `num_params`,
        `train_loss` (nats per token, mean over the last line of metrics; None where no step was made), the
        validation's `valid_draft_loss`, `valid_target_loss` (nats per token), `valid_draft_bits`,
        `valid_target_bits`, `valid_draft_bits_by_distance`, `valid_target_bits_by_distance` (None where there was
        none), `seconds`, `tokens_per_second` (without the first step, which compiles; None where there was no other),
        `compute_seconds`, `data_seconds`, `checkpoint_seconds`, `validation_seconds` (what this run spent its time on,
        without the first step), `peak_memory_bytes` (of the fullest device; None where devices do not tell),
        `skipped_steps` and `rollbacks` (since the run's start), `workdir`.

    Raises:
        ValueError: for bad input: config, mesh, batch size, another run's workdir or data, data too small; one
            sentence.
        FileNotFoundError: where data are missing.
        NonFiniteLossError: where loss, gradient or state is no longer finite. Nothing of that state is saved.
        LossSpikeError: where the loss rose more often than `training.spike_rollbacks`.
        OSError: where a checkpoint or a metric cannot be written.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved.
    """
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig.from_config_dict(config)
    directory = os.path.expanduser(directory)  # the shell leaves the `~` of `--workdir=~/run` to us
    # All that can be refused is refused before anything is written.
    mesh = sharding.make_mesh(config.mesh)
    training = config.training
    programs.check_batches(config, mesh)
    distributed.say_hello(mesh, training.batch_size)
    if config.model.attention == "cudnn" and mesh.devices.flat[0].platform != "gpu":
        raise ValueError("model.attention 'cudnn' needs an NVIDIA GPU; set --config.model.attention=xla")
    workdir.check_place(directory)
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
        workdir.write(directory, config, data, identity)
    # Outermost: a signal can end neither the last validation nor the last save.
    with Interrupts() as interrupts:
        with sharding.activate(mesh, run.programs.rules), contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(
                Checkpoints(
                    directory,
                    keep_last=training.keep_last,
                    keep_every=training.keep_every,
                    keep_best=training.keep_best,
                )
            )
            profiler = Profiler(directory, profile_steps)
            stack.callback(profiler.close)
            try:
                summary = run.go(checkpoints, directory, interrupts, profiler, stack)
            except OSError as error:
                if error.errno not in checkpoint.FULL:
                    raise
                raise OSError(
                    f"workdir {directory} cannot be written ({error.strerror}); {checkpoints.last_good()}: free space, "
                    "and the same command goes on from there"
                ) from error
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
        self.programs = programs.make_programs(config, mesh, data.tokenizer.num_tokens)
        self.abstract = self.programs.abstract
        self.root_key = sharding.root_key(mesh, config.seed)
        self.flops_per_token = flops.step_flops_per_token(self.programs.network.config, config.length, config.loss)

    def first_state(self, checkpoints: Checkpoints) -> tuple[TrainState, Progress, int | None]:
        """The state to start from, what led to it, and the step it was resumed from. In order of precedence:

        1. the newest readable checkpoint of the workdir;
        2. the weights of the run that `training.init_from` names, everything else fresh;
        3. a fresh state from the seed.
        """
        restored = checkpoints.restore(self.abstract, self.warnings.append)
        if restored is not None:
            return restored.state, Progress.from_dict(restored.record), int(restored.state.step)
        state = self.programs.init(self.root_key)
        if self.config.training.init_from:
            self.load_other_params()
            # Where that run has no causal part, ours starts fresh.
            shardings = states.shardings_of(self._other_abstract())
            params = state.params | sharding.from_copies(self._other_params, shardings)
            self._other_params = None  # its buffers are the state's now, or not needed any more
            state = state.replace(params=params)
            if state.ema_params is not None:
                state = state.replace(ema_params=jax.tree.map(jax.numpy.copy, params))
            if state.teacher_params is not None:
                state = state.replace(teacher_params=jax.tree.map(jax.numpy.copy, states.trunk_of(params)))
        elif self.config.loss.freeze_trunk:
            self.warnings.append(
                "the trunk is frozen as it was initialised at random: training.init_from names no trained one"
            )
        return state, Progress(), None

    def load_other_params(self) -> None:
        """Loads the weights of the run that `training.init_from` names, unless there is none or they are loaded.

        Raises:
            ValueError: where there are none, or they do not fit, and where none are named to teach.
        """
        path = self.config.training.init_from
        if self.config.loss.keeps_teacher and not path:
            raise ValueError(
                "loss.teacher_passes teaches what the trunk knows at the start: name a trained one in "
                "training.init_from"
            )
        if not path or self._other_params is not None:
            return
        network = self.programs.network.config
        params = loading.load_start(path, network, self.data.tokenizer, self.warnings.append)
        if "causal" in params and ("token_up" in params["causal"]) != (network.causal_form == "evidence"):
            self.warnings.append(
                f"training.init_from {path} has a causal part of another model.causal_form: its trunk is taken, and "
                "the causal part starts fresh"
            )
            params = states.trunk_of(params)
        self._other_params = params
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        if shapes(params) != shapes(self._other_abstract()):
            raise ValueError(
                f"training.init_from {path} has parameters of other shapes: make the model sections agree, "
                "or start from a run of the trunk alone (model.n_causal=0)"
            )

    def _other_abstract(self):
        params = self.abstract.params
        return params if "causal" in self._other_params else states.trunk_of(params)

    def check_batches(self) -> None:
        """Raises `ValueError` where a split is too small for a batch."""
        _close(self.train_batches(0))
        next(self.validation_batches())

    def train_batches(self, start: int) -> Iterator[np.ndarray]:
        """This process's rows of each global batch from a position in the stream on."""
        return pipeline.train_batches(
            self.data.train,
            global_batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            start_step=start,
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
        return validate(self.programs.eval_step, state.eval_params, batches, self.root_key)

    def go(
        self,
        checkpoints: Checkpoints,
        directory: os.PathLike | str,
        interrupts: Interrupts,
        profiler: Profiler,
        stack: contextlib.ExitStack,
    ) -> dict[str, Any]:
        """Trains until the last step, a signal, or a number that is not finite."""
        training = self.config.training
        state, progress, resumed_from = self.first_state(checkpoints)
        start = resumed_from or 0
        is_writer = jax.process_index() == 0
        writer = stack.enter_context(
            MetricWriter(directory, start_step=start, last_step=training.last_step, is_writer=is_writer)
        )
        num_params = states.count_params(state.params)
        origin = f"resumed from step {start}" if resumed_from else "from the start"
        self._say_warnings(writer)
        if isinstance(self.data.train, Sequences):
            writer.say(f"training split: {self.data.train.note}")
        writer.say(f"{num_params:,} parameters, {self.mesh.size} x {jax.devices()[0].device_kind}, {origin}")
        batches = _Batches(self.train_batches, start + progress.data_offset)
        stack.callback(batches.close)
        advice = lambda: _restart_advice(checkpoints)
        settled = dataclasses.replace(progress, is_owed=False)
        meter = Meter(self.config, self.mesh, self.flops_per_token, writer, settled, start, advice)
        began = time.monotonic()
        validation = self._written_of(state, start, writer) if progress.is_owed else None
        step, stopped_by, pending = start, None, None
        while step < training.last_step:
            with meter.waiting("data"):
                tokens_BxD = sharding.to_devices(self.mesh, next(batches))
            with profiler.step(step + 1):
                state, metrics = self.programs.train_step(state, tokens_BxD, self.root_key)
            step += 1
            if profiler.after(step, metrics):
                writer.say(f"profile of the steps up to {step} written to {directory}/profile")
            # Step n is under way by the time the metrics of step n - 1 are read.
            meter.read(pending)
            pending = (step, metrics)
            stopped_by = interrupts.agreed(is_meeting=step % training.log_every == 0)
            at_end = step == training.last_step or stopped_by is not None
            is_written = at_end or _due(step, training.eval_every) or _due(step, training.sample_every)
            is_saved = at_end or _due(step, training.checkpoint_every)
            if is_written or is_saved:
                meter.read(pending)  # a state that is not finite is neither validated nor saved
                pending = None
            if meter.spike is not None:
                # Given up first: with the state that is restored there would be two.
                state = metrics = tokens_BxD = pending = None
                state, step = self._gone_back(meter, checkpoints, writer, batches)
                continue
            # What is written of a step is written before its checkpoint: a run killed in between loses none of it.
            scores = None
            if stopped_by is not None:
                meter.flush()
            elif is_written:
                with meter.paused():
                    scores = self._written_of(state, step, writer)
            validation = scores or validation
            if is_saved:
                # What there was no time for comes first when the run is resumed.
                progress = dataclasses.replace(meter.progress, is_owed=stopped_by is not None)
                with meter.waiting("checkpoint"):
                    checkpoints.save(state, progress.as_dict(), scores and scores.as_dict())
            if stopped_by is not None:
                break
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
            **{f"{name}_seconds": round(seconds, 3) for name, seconds in meter.seconds.items()},
            "peak_memory_bytes": peak_memory(self.mesh),
            "skipped_steps": meter.progress.skipped,
            "rollbacks": meter.progress.rollbacks,
            "workdir": str(directory),
        }
        values = dict.fromkeys(Validation.names()) if validation is None else validation.as_dict()
        return summary | {f"valid_{name}": value for name, value in values.items()}

    def _say_warnings(self, writer: MetricWriter) -> None:
        for text in self.warnings:
            writer.say(text)
        self.warnings.clear()

    def _gone_back(
        self, meter: Meter, checkpoints: Checkpoints, writer: MetricWriter, batches: "_Batches"
    ) -> tuple[TrainState, int]:
        """State and step before a loss spike: of the last good checkpoint, or else of the start.

        Raises:
            LossSpikeError: where the run has gone back as often as it may.
        """
        training = self.config.training
        (from_step, loss), old = meter.spike, meter.progress
        what = f"the loss is {loss:.3f} nats at step {from_step}, more than {training.spike_factor:g} times the median"
        # A fresh start is no way back for a run whose checkpoints are all of the spike.
        is_lost = bool(checkpoints.steps) and checkpoints.steps[0] > old.good_step
        if not is_lost:
            checkpoints.drop_after(old.good_step)
        if is_lost or old.rollbacks >= training.spike_rollbacks:
            raise LossSpikeError(
                f"{what} of the lines before, {'with no checkpoint from before it' if is_lost else 'once more'} after "
                f"{old.rollbacks} rollbacks (training.spike_rollbacks {training.spike_rollbacks}): train in a new "
                f"workdir with a lower optimizer.learning_rate; {_restart_advice(checkpoints)}"
            )
        state, saved, step = self.first_state(checkpoints)
        step = step or 0
        new = old.gone_back(saved, from_step, step)
        batches.start(step + new.data_offset)
        meter.go_on_from(new, step)
        writer.rewind(step)
        self._say_warnings(writer)
        values = {"to_step": step, "loss": loss, "data_offset": new.data_offset, "rollbacks": new.rollbacks}
        note = f"{what}: back to step {step} and on without the batches since then, rollback {new.rollbacks}"
        writer.write(from_step, "rollback", values, note)
        return state, step

    def _written_of(self, state: TrainState, step: int, writer: MetricWriter) -> Validation | None:
        """Writes the samples and the validation that are due at a step; the validation, or None."""
        training = self.config.training
        if _due(step, training.sample_every):
            network = self.programs.network.config
            data = self.data.train
            law = LengthLaw.of(data.lengths) if isinstance(data, Sequences) else None
            tokens_BxD = samples.draw(state.eval_params, network, self.config, self.mesh, self.root_key, step, law)
            writer.write_samples(step, samples.texts(tokens_BxD, self.data.tokenizer))
        if _due(step, training.eval_every) or step == training.last_step:
            return self._validated(state, step, writer)
        return None

    def _validated(self, state: TrainState, step: int, writer: MetricWriter) -> Validation:
        result = self.validate(state)
        note = (
            f"validation: draft {result.draft_bits:.3f} bits per token (a bound), "
            f"target {result.target_bits:.3f} (no bound)\n{result.table()}"
        )
        writer.write(step, "valid", result.as_dict(), note)
        return result


class _Batches:
    """An iterator that can be moved to another position of the stream."""

    def __init__(self, make: Callable[[int], Iterator[np.ndarray]], position: int):
        self._make = make
        self._batches = make(position)

    def __next__(self) -> np.ndarray:
        return next(self._batches)

    def start(self, position: int) -> None:
        """Goes on from another position."""
        self.close()
        self._batches = self._make(position)

    def close(self) -> None:
        """Stops reading ahead."""
        _close(self._batches)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _close(batches: Iterator[np.ndarray]) -> None:
    getattr(batches, "close", lambda: None)()


def _restart_advice(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    good = checkpoints.last_good()
    if not checkpoints.steps:
        return good
    return f"{good}, and training.init_from={checkpoints.directory.parent} starts from its weights"
