"""Timing compiled programs: nothing is compiled while the clock runs."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# All that jax reports of tracing, lowering and compiling begins with this.
COMPILE_EVENTS = "/jax/core/compile"
# Short calls are timed several at a time, so that the host's part of a call is hidden as it is in a real loop.
SECONDS_A_RUN = 0.02
MOST_CALLS = 20


class RecompilationError(RuntimeError):
    """Something was traced or compiled in a timed region."""


class Timing(NamedTuple):
    """Seconds of one call.

    Attributes:
        median: over the runs.
        low: fastest run.
        high: slowest run.
        runs: how many.
        calls: calls in each run; the device is waited for after the last.
        warm: False where the call was so long that its warm-up is all there is.
    """

    median: float
    low: float
    high: float
    runs: int
    calls: int
    warm: bool


@contextlib.contextmanager
def forbid_compilation(what: str):
    """Context in which nothing may be traced or compiled.

    Args:
        what: name of the timed region, for the message.

    Raises:
        RecompilationError: at the end of the context, naming the first event.
    """
    seen = []

    def listen(event: str, _seconds: float, **_):
        if event.startswith(COMPILE_EVENTS):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if seen:
        raise RecompilationError(f"{what} compiled while it was timed: {len(seen)} events, the first {seen[0]}")


def measure(
    call: Callable[[], Any],
    what: str,
    *,
    runs: int,
    max_seconds: float = math.inf,
    single: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times a call that has been compiled: one warm-up, then `runs` runs, each waiting for the device at its end.

    Args:
        call: runs the program once and returns its arrays.
        what: name for the error.
        runs: number of runs, at least 1.
        max_seconds: no further run starts after so many seconds in all; a warm-up that takes longer is the timing.
        single: one call a run, whatever it takes: a latency.
        clock: seconds.

    Returns:
        A `Timing`.

    Raises:
        RecompilationError: where the call compiles.
        ValueError: for less than one run.
    """
    if runs < 1:
        raise ValueError(f"runs must be a whole number of at least 1, got {runs}")

    def timed(calls: int) -> float:
        began = clock()
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        return (clock() - began) / calls

    with forbid_compilation(what):
        first = timed(1)
        if first > max_seconds:
            return Timing(first, first, first, 1, 1, False)
        calls = 1 if single or first <= 0 else min(MOST_CALLS, math.ceil(SECONDS_A_RUN / first))
        seconds, spent = [], first
        while len(seconds) < runs and (not seconds or spent + seconds[-1] * calls <= max_seconds):
            seconds.append(timed(calls))
            spent += seconds[-1] * calls
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds), calls, True)
