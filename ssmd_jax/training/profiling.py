"""A trace of a few steps by JAX's profiler; XProf and TensorBoard's profile plugin show it."""

import os
import pathlib
import re
from typing import Any

import jax

FOLDER = "profile"


def parse_steps(text: str) -> tuple[int, int]:
    """Reads "100:103": the first and the last step to trace, counted from 1.

    Raises:
        ValueError: where it is not two such numbers in order.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"--profile_steps must be FIRST:LAST, for example 100:103, got {text!r}")
    return first, last


class Profiler:
    """Traces the steps from the first to the last of a window into `<workdir>/profile`; close it."""

    def __init__(self, workdir: os.PathLike | str, steps: tuple[int, int] | None):
        """Takes first and last step; None traces nothing."""
        self._folder = pathlib.Path(workdir) / FOLDER
        self._steps = steps
        self._is_on = False

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """A context for one step, by which the trace knows it."""
        if self._steps is not None and self._steps[0] <= number <= self._steps[1] and not self._is_on:
            jax.profiler.start_trace(self._folder)
            self._is_on = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, result: Any) -> bool:
        """Ends the trace after its last step, whose result it waits for; whether it did."""
        if not self._is_on or number < self._steps[1]:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Ends the trace of a run that leaves before its last step."""
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on, self._steps = False, None
