"""What every case is given, and how one is run: recorded with its figures, or with the reason why there are none."""

import gc
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax

from ssmd_jax.evaluation.benchmark import timing
from ssmd_jax.evaluation.benchmark.bench import sentence
from ssmd_jax.evaluation.benchmark.ceilings import Ceilings
from ssmd_jax.evaluation.benchmark.program import peak_bytes
from ssmd_jax.evaluation.benchmark.training import zipf_tokens
from ssmd_jax.evaluation.scaling.programs import INIT, STEP, Compiled, label
from ssmd_jax.evaluation.scaling.settings import Layout, Model, Settings
from ssmd_jax.training import sharding
from ssmd_jax.training.state import TrainState

GIBI = 2**30


class Lab(NamedTuple):
    """What stays the same during a study.

    Attributes:
        settings: what is measured.
        programs: compiled, by name (see `programs.plan`).
        ceilings: of one device; None where they could not be measured.
        began: when the study started, as `time.perf_counter` tells it.
        say: told of every case when it is done.
    """

    settings: Settings
    programs: Mapping[tuple, Compiled]
    ceilings: Ceilings | None
    began: float
    say: Callable[[str], None]

    def row(self, part: str, model: Model, layout: Layout, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a case: `part`, `model`, `layout`, `devices`, `error`, `case_seconds`, and what `measure` gives.

        Whatever it made on the devices is released before this returns.
        """
        began = time.perf_counter()
        row = {"part": part, "model": model.name, "layout": layout.name, "devices": layout.devices, "error": None}
        try:
            if began - self.began > self.settings.budget_seconds:
                raise TimeoutError(f"not started: the study's {self.settings.budget_seconds:g} seconds are over")
            row |= measure()
        except Exception as error:  # whatever a device, a driver or a disk raises: the other cases are paid for too
            row["error"] = sentence(error)
        gc.collect()
        row["case_seconds"] = time.perf_counter() - began
        outcome = row["error"] or f"{row['seconds']:.4f} s"
        self.say(f"{part} {model.name}, {layout.name}: {outcome} (the case took {row['case_seconds']:.1f} s)")
        return row

    def program(self, *name) -> Compiled:
        """A program by name.

        Raises:
            RuntimeError: where it could not be compiled.
        """
        program = self.programs[name]
        if program.error is not None:
            raise RuntimeError(f"{label(name)} was not compiled ({program.error})")
        return program

    def check_memory(self, layout: Layout, num_bytes: int | None) -> None:
        """Refuses what would not fit: where one device of several runs out of memory, the others wait for ever.

        Raises:
            MemoryError: where a device has fewer bytes free; devices that do not tell are trusted.
        """
        for device in layout.mesh().local_devices:
            stats = device.memory_stats()
            if num_bytes is None or not stats or "bytes_limit" not in stats:
                continue
            free = stats["bytes_limit"] - stats["bytes_in_use"]
            if num_bytes > free:
                raise MemoryError(f"{num_bytes / GIBI:.2f} GiB are needed on {device}, {free / GIBI:.2f} GiB are free")

    def trainer(
        self, model: Model, layout: Layout, batch: int
    ) -> Generator[tuple[TrainState, dict[str, jax.Array]], None, None]:
        """Trains from a fresh state, which is born in its parts, on the same tokens in every step.

        Yields:
            State and metrics after each step. The state is the generator's: the next step consumes it, and closing
            the generator deletes it.

        Raises:
            RuntimeError, MemoryError: as `program` and `check_memory`.
        """
        step, init = self.program(STEP, model.name, layout, batch), self.program(INIT, model.name, layout)
        settings, mesh = self.settings, layout.mesh()
        self.check_memory(layout, max(step.program_bytes or 0, init.program_bytes or 0))
        key = settings.key(layout)
        shape = (batch, settings.config.length)
        tokens_BxD = sharding.to_devices(mesh, zipf_tokens(settings.config.seed, settings.num_tokens, shape))
        state = init.call(key)
        try:
            while True:
                state, metrics = step.call(state, tokens_BxD, key)
                yield state, metrics
        finally:
            release(state)

    def timed(self, call: Callable[[], Any], what: str) -> dict[str, Any]:
        """Seconds of a compiled call: `seconds`, `seconds_low`, `seconds_high`, `runs`.

        Called once before the clock runs: the first call of a program on several devices connects them.
        """
        jax.block_until_ready(call())
        found = timing.measure(call, what, runs=self.settings.runs, max_seconds=self.settings.max_seconds)
        return {
            "seconds": found.median,
            "seconds_low": found.low,
            "seconds_high": found.high,
            "runs": found.runs,
        }


def release(tree) -> None:
    """Deletes arrays at once, whoever still names them."""
    for array in jax.tree.leaves(tree):
        if not array.is_deleted():
            array.delete()


def peak_of(layout: Layout) -> int | None:
    """Most bytes that this process has held so far on the fullest of the devices; None where they do not say.

    What other cases held, and what the compiler tried kernels on, is in it: of one program `program_bytes` tells.
    """
    peaks = [peak_bytes(device) for device in layout.mesh().local_devices]
    return max((peak for peak in peaks if peak is not None), default=None)
