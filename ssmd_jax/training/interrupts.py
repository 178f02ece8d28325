"""SIGTERM and Ctrl-C become a wish that the training loop fulfils between two steps.

SIGTERM is how a machine says that it is about to go. Compute Engine shuts a preempted TPU VM down like any machine, and
its processes get SIGTERM, about 30 seconds before the end; Kubernetes sends SIGTERM to a pod that it evicts, and waits
for `terminationGracePeriodSeconds`; Slurm before a time limit (`--signal`) and at `scancel`.
"""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class Interrupts:
    """While active, notes the first SIGTERM or SIGINT; a second Ctrl-C raises `KeyboardInterrupt` at once.

    Where there are several processes, JAX's preemption service takes SIGTERM: it tells all of them of a step, a second
    or so later, at which they can leave together (`multihost_utils.reached_preemption_sync_point`).
    """

    def __init__(self):
        self.received: str | None = None
        self._previous = {}
        self._has_service = jax.process_count() > 1 and jax.config.jax_enable_preemption_service
        self._asked = 0

    def __enter__(self) -> "Interrupts":
        # Python allows handlers in the main thread alone; in any other one the signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            ours = (signal.SIGINT,) if self._has_service else (signal.SIGTERM, signal.SIGINT)
            for number in ours:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name

    def agreed(self, is_meeting: bool) -> str | None:
        """The signal received by any process, or None.

        Processes get their signals at different times and must leave at the same step. All call this after every step.

        Args:
            is_meeting: True at steps, the same for all processes, where they ask each other; one process needs none.
        """
        if jax.process_count() == 1:
            return self.received
        if self._has_service and self.received != "SIGTERM":
            # Not the step of the run, which may go back.
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.received = "SIGTERM"
                return self.received
        if not is_meeting:
            return None
        names = (None, "SIGTERM", "SIGINT")
        votes = multihost_utils.process_allgather(np.int32(names.index(self.received)))
        return names[int(np.max(votes))]
