"""What a run's steps tell: their means line by line, where the time went, and when to stop or to go back."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ssmd_jax.training import flops
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.metrics import MetricWriter
from ssmd_jax.training.progress import Progress

# Where the loop waits; what is left of the time of a step is computation.
WAITS = ("data", "checkpoint")


class NonFiniteLossError(ArithmeticError):
    """Loss, gradient or state became infinite or NaN; the message names the last good checkpoint."""


class Meter:
    """Reads the steps' metrics, and writes their means every `log_every` steps.

    Attributes:
        progress: what is saved beside the state.
        spike: step and loss of a line whose loss is a spike; None where there is none.
        last_loss: nats per token, of the last line; None before.
        last_rate: tokens per second, of the last line; None before.
        seconds: of the run so far, by what they were spent on: "compute", "data", "checkpoint" and "validation" (and
            samples). The first step, which compiles, is in none of them.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        mesh: jax.sharding.Mesh,
        flops_per_token: float,
        writer: MetricWriter,
        progress: Progress,
        start_step: int,
        last_good: Callable[[], str],
    ):
        """Takes what the lines need to know, and `last_good`, which names the last good checkpoint in words."""
        self._last_good = last_good
        self._config, self._mesh, self._flops_per_token, self._writer = config, mesh, flops_per_token, writer
        self.progress = progress
        self.spike: tuple[int, float] | None = None
        self._step, self._values, self._skipped = start_step, [], 0
        # Step and time from which tokens per second are counted: the end of the first step, which compiles.
        self._since, self._clock = None, 0.0
        self._waits = dict.fromkeys(WAITS, 0.0)
        self.seconds = dict.fromkeys(("compute", *WAITS, "validation"), 0.0)
        self.last_loss, self.last_rate = None, None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        began = time.monotonic()
        yield
        elapsed = time.monotonic() - began
        self._clock += elapsed
        self.seconds["validation"] += elapsed

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Time spent inside counts as waiting for one of `WAITS`."""
        began = time.monotonic()
        yield
        self._waits[what] += time.monotonic() - began

    def read(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Takes the metrics of a step; waits for it.

        Args:
            pending: step and metrics; None for nothing to read.

        Raises:
            NonFiniteLossError: where loss, gradient or the state after the step is not finite, or too many steps in a
                row were skipped.
        """
        if pending is None:
            return
        step, metrics = pending
        values = jax.device_get(metrics)
        is_skipped = bool(values.pop("skipped", False))
        if not values.pop("finite"):
            # The same workdir refuses another rate, and the same rate would end in the same way.
            raise NonFiniteLossError(
                f"loss, gradient or update is not finite at step {step} (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}); train in a new workdir with a lower optimizer.learning_rate or more "
                f"optimizer.warmup_steps, or go on here with training.nonfinite=skip; {self._last_good()}"
            )
        self.progress = self.progress.after_step(is_skipped)
        training = self._config.training
        if self.progress.skipped_in_a_row > training.max_skips:
            raise NonFiniteLossError(
                f"{self.progress.skipped_in_a_row} steps in a row were skipped up to step {step}, more than "
                f"training.max_skips {training.max_skips}: their loss or gradient is not finite; train in a "
                f"new workdir with a lower optimizer.learning_rate; {self._last_good()}"
            )
        if self._since is None:
            self._since, self._clock = step, time.monotonic()
            self._waits = dict.fromkeys(WAITS, 0.0)
        self._step = step
        if is_skipped:
            self._skipped += 1
        else:
            self._values.append(values)
        self._writer.advance(step)
        if step % training.log_every == 0 or step == training.last_step:
            self.flush()

    def go_on_from(self, progress: Progress, step: int) -> None:
        """Forgets the steps since a checkpoint that the run goes back to."""
        self.progress, self.spike = progress, None
        self._values, self._skipped, self._step = [], 0, step
        self._since, self._clock = step, time.monotonic()
        self._waits = dict.fromkeys(WAITS, 0.0)

    def flush(self) -> None:
        """Writes the means of the steps read since the last line, where there are any."""
        if not self._values and not self._skipped:
            return
        means, notes = {}, []
        if self._values:
            means = {name: float(np.mean([values[name] for values in self._values])) for name in self._values[0]}
            means["learning_rate"] = float(self._values[-1]["learning_rate"])
            unit = "bits from the teacher" if self._config.loss.teacher_passes else "bits per token"
            notes.append(
                f"draft {means['draft_loss'] / math.log(2):.3f}, target {means['target_loss'] / math.log(2):.3f} "
                f"{unit}, gradient {means['grad_norm']:.2f}"
            )
        if self._config.training.nonfinite == "skip":
            means["skipped_steps"] = self._skipped
            if self._skipped:
                notes.append(f"{self._skipped} steps skipped as not finite")
        speed, spent = self._speed(means.get("tokens", self._config.training.batch_size * self._config.length))
        peak = peak_memory(self._mesh)
        if peak is not None:
            speed["peak_memory_bytes"] = peak
            spent += f", {peak / 2**30:.2f} GiB at most"
        self._writer.write(self._step, "train", means | speed, ", ".join(notes) + spent)
        if self._values:
            self.last_loss = means["loss"]
            if self.progress.is_spike(means["loss"], self._config.training.spike_factor):
                self.spike = (self._step, means["loss"])
            else:
                self.progress = self.progress.after_line(self._step, means["loss"])
        self._values, self._skipped = [], 0

    def _speed(self, tokens: float) -> tuple[dict[str, float], str]:
        """Rate and seconds a step of so many tokens since the last line, in words too; nothing about the first step."""
        steps, now = self._step - self._since, time.monotonic()
        elapsed, waits = now - self._clock, self._waits
        self._since, self._clock, self._waits = self._step, now, dict.fromkeys(WAITS, 0.0)
        if not steps:
            return {}, ""
        rate = steps * tokens / elapsed
        values = {"tokens_per_second": rate}
        peak = flops.peak_flops(self._mesh.devices.flat[0])
        if peak is not None:
            values["model_flops_utilization"] = rate * self._flops_per_token / (peak * self._mesh.size)
        parts = {"compute": elapsed - sum(waits.values()), **waits}
        for name, seconds in parts.items():
            values[f"{name}_seconds"] = seconds / steps
            self.seconds[name] += seconds
        self.last_rate = round(rate, 1)
        each = ", ".join(f"{name} {1000 * seconds / steps:.1f}" for name, seconds in parts.items())
        return values, f", {rate:,.0f} tokens/s, {1000 * elapsed / steps:.1f} ms a step ({each})"


def peak_memory(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that the fullest of this process's devices has had in use; None where devices do not tell."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    peaks = [values["peak_bytes_in_use"] for values in stats if values and "peak_bytes_in_use" in values]
    return max(peaks, default=None)
