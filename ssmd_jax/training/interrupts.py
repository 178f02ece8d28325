"""SIGTERM and Ctrl-C become a wish that the training loop fulfils between two steps."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class Interrupts:
    """While active, notes the first SIGTERM or SIGINT; a second Ctrl-C raises `KeyboardInterrupt` at once."""

    def __init__(self):
        self.received: str | None = None
        self._previous = {}

    def __enter__(self) -> "Interrupts":
        # Python allows handlers in the main thread alone; in any other one the signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
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

        Processes get their signals at different times and must leave at the same step.

        Args:
            is_meeting: True at steps, the same for all processes, where they ask each other; one process needs none.
        """
        if jax.process_count() == 1:
            return self.received
        if not is_meeting:
            return None
        names = (None, "SIGTERM", "SIGINT")
        votes = multihost_utils.process_allgather(np.int32(names.index(self.received)))
        return names[int(np.max(votes))]
