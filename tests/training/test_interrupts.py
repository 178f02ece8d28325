"""Signals, as one process and as one of several."""

import os
import signal

import numpy as np
import pytest

from ssmd_jax.training import interrupts
from ssmd_jax.training.interrupts import Interrupts


def test_a_signal_is_noted_and_a_second_ctrl_c_is_not_waited_for():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as noted:
        assert noted.agreed(is_meeting=False) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted.agreed(is_meeting=False) == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_processes_leave_where_the_preemption_service_says(monkeypatch):
    """And the service keeps its own handler of SIGTERM."""
    asked = []
    monkeypatch.setattr(interrupts.jax, "process_count", lambda: 2)
    reached = lambda step: asked.append(step) or step == 3
    monkeypatch.setattr(interrupts.multihost_utils, "reached_preemption_sync_point", reached)
    monkeypatch.setattr(interrupts.multihost_utils, "process_allgather", lambda own: np.stack([own, np.int32(0)]))
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as noted:
        assert signal.getsignal(signal.SIGTERM) is before
        assert [noted.agreed(is_meeting=False) for _ in range(3)] == [None, None, "SIGTERM"]
        # What is known is not asked again: the service tells it once.
        assert noted.agreed(is_meeting=True) == "SIGTERM" and asked == [1, 2, 3]


def test_ctrl_c_in_another_process_counts_at_the_next_meeting(monkeypatch):
    monkeypatch.setattr(interrupts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interrupts.multihost_utils, "reached_preemption_sync_point", lambda step: False)
    monkeypatch.setattr(interrupts.multihost_utils, "process_allgather", lambda own: np.stack([own, np.int32(2)]))
    with Interrupts() as noted:
        assert noted.agreed(is_meeting=False) is None
        assert noted.agreed(is_meeting=True) == "SIGINT"
