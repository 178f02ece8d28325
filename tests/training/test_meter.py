"""What is made of the steps' metrics: lines, time by part, skipped steps, spikes."""

import types

import jax
import numpy as np
import pytest

from ssmd_jax.training import meter, profiling
from ssmd_jax.training.meter import Meter, NonFiniteLossError
from ssmd_jax.training.progress import SPIKE_LINES, Progress
from tests.training import tiny


class Lines:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.lines, self.notes = [], []

    def advance(self, step):
        pass

    def write(self, step, kind, values, note):
        self.lines.append({"step": step, **values})
        self.notes.append(note)


def make(progress=None, **fields):
    config = tiny.config(**{f"training__{name}": value for name, value in fields.items()})
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    lines = Lines()
    return Meter(config, mesh, 1.0, lines, progress or Progress(), 0, lambda: "the last good one is 7"), lines


def values(loss, skipped=None, finite=True):
    numbers = {"loss": loss, "draft_loss": loss, "target_loss": loss, "grad_norm": 1.0, "learning_rate": 0.1}
    return numbers | {"finite": finite} | ({} if skipped is None else {"skipped": skipped})


def test_time_is_split(monkeypatch):
    """A second of data and two of a checkpoint in each step of ten; validation counts as nobody's."""
    clock = [0.0]
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    counted, lines = make(log_every=2, num_steps=8)
    for step in range(1, 7):
        for what, seconds in (("data", 1.0), ("checkpoint", 2.0)):
            with counted.waiting(what):
                clock[0] += seconds
        clock[0] += 7.0
        counted.read((step, values(1.0)))
        with counted.paused():
            clock[0] += 100.0
    times = [(line["data_seconds"], line["checkpoint_seconds"], line["compute_seconds"]) for line in lines.lines]
    assert times == [(1.0, 2.0, 7.0)] * 3
    assert [line["tokens_per_second"] for line in lines.lines] == [8 * tiny.LENGTH / 10] * 3
    # The first step, which compiles, is in none of the sums.
    assert counted.seconds == {"compute": 35.0, "data": 5.0, "checkpoint": 10.0, "validation": 600.0}
    assert "10000.0 ms a step (compute 7000.0, data 1000.0, checkpoint 2000.0)" in lines.notes[0]


def test_skipped_steps_count_and_do_not_enter_the_means():
    counted, lines = make(log_every=3, nonfinite="skip", max_skips=2)
    for step, skipped in enumerate([False, True, False, True, True, False], 1):
        counted.read((step, values(np.nan if skipped else float(step), skipped)))
    assert [(line["loss"], line["skipped_steps"]) for line in lines.lines] == [(2.0, 1), (6.0, 2)]
    assert "2 steps skipped" in lines.notes[1]
    assert (counted.progress.skipped, counted.progress.skipped_in_a_row) == (3, 0)
    for step in (7, 8):
        counted.read((step, values(np.nan, True)))
    with pytest.raises(NonFiniteLossError, match=r"3 steps in a row .* up to step 9, .*max_skips 2.* one is 7"):
        counted.read((9, values(np.nan, True)))


def test_a_line_of_skipped_steps_alone_has_no_loss():
    counted, lines = make(log_every=2, nonfinite="skip")
    for step in (1, 2):
        counted.read((step, values(np.nan, True)))
    assert lines.lines[0]["skipped_steps"] == 2 and "loss" not in lines.lines[0]
    assert counted.last_loss is None and counted.progress.good_step == 0


def test_a_spike_is_judged_by_the_median_of_the_lines_before():
    counted, _ = make(spike_factor=2.0)
    for step, loss in enumerate([9.0, 1.0, 1.1, 0.9, 1.9, 1.9, 2.7], 1):
        counted.read((step, values(loss)))
        assert counted.spike is None
    counted.read((8, values(3.9)))
    assert counted.spike == (8, 3.9) and counted.progress.good_step == 7
    # What is saved says the same to a resumed run.
    again, _ = make(Progress.from_dict(counted.progress.as_dict()), spike_factor=2.0)
    again.read((8, values(3.9)))
    assert again.spike == (8, 3.9)


def test_going_back_leaves_out_the_batches_in_between():
    saved = Progress(good_step=10, recent=(1.0,), skipped=1)
    now = Progress(good_step=20, recent=(1.0, 2.0), skipped=3)
    once = now.gone_back(saved, from_step=25, to_step=10)
    assert once == Progress(data_offset=15, rollbacks=1, skipped=3, good_step=10, recent=(1.0,))
    twice = once.gone_back(saved, from_step=12, to_step=10)
    # The next batch was number 12 + 15 of the stream, and is number 10 + 17 now.
    assert (twice.data_offset, twice.rollbacks) == (17, 2)
    assert len(Progress(recent=(0.0,) * SPIKE_LINES).after_line(1, 1.0).recent) == SPIKE_LINES


def test_no_spike_before_there_is_enough_to_judge_by():
    assert not Progress(recent=(1.0,) * 4).is_spike(100.0, 2.0)
    assert Progress(recent=(1.0,) * 5).is_spike(100.0, 2.0)
    assert not Progress(recent=(1.0,) * 5).is_spike(100.0, 0.0)


@pytest.mark.parametrize("text", ["", "3", "3:2", "0:4", "a:b", "1:2:3"])
def test_steps_to_profile_that_are_none(text):
    with pytest.raises(ValueError, match="--profile_steps must be FIRST:LAST"):
        profiling.parse_steps(text)
    assert profiling.parse_steps("100:103") == (100, 103)
