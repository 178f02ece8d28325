"""The files of metrics: what is written, dropped and purged; on a full disk nothing but one error."""

import errno
import json
import struct

import pytest

from ssmd_jax.training.metrics import MetricWriter

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def write(workdir, start, steps):
    with MetricWriter(workdir, start_step=start, last_step=9) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": 1.0 / step, "cells": [1.0]}, "a line")
            writer.write_samples(step, [f"text {step}", "more"])


def events(workdir):
    """What each event file holds, oldest first: its records, each a length, a checksum, the event, a checksum."""
    files = sorted((workdir / "tensorboard").iterdir(), key=lambda path: int(path.name.rpartition(".")[2]))
    for path in files:
        data, found = path.read_bytes(), []
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
        yield found


def test_a_resumed_run_goes_on_in_the_same_files(tmp_path, capsys):
    write(tmp_path, 0, (1, 2, 3))
    write(tmp_path, 2, (3, 4))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (tmp_path / "samples.txt").read_text().count("text 3") == 1
    first, second = events(tmp_path)
    scalars = lambda found: {
        e.step: e.summary.value[0].simple_value for e in found if e.summary.value and "loss" in str(e)
    }
    assert scalars(first) == pytest.approx({1: 1.0, 2: 1 / 2, 3: 1 / 3})
    assert scalars(second) == pytest.approx({3: 1 / 3, 4: 1 / 4})
    # the newer file says from which step on older ones are void
    assert [e.step for e in second if e.session_log.status == event_pb2.SessionLog.START] == [3]
    texts = [e.summary.value[0].tensor.string_val[0].decode() for e in second if "samples" in str(e)]
    assert texts == ["text 3\n\nmore", "text 4\n\nmore"]
    assert "step 4: a line" in capsys.readouterr().err


def test_a_full_disk_is_one_error_and_no_noise_at_the_end(tmp_path, monkeypatch, capsys):
    """A thread that wrote TensorBoard's file once said so after the last sentence."""
    writer = MetricWriter(tmp_path, start_step=0, last_step=9)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._board._file, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write(1, "train", {"loss": 1.0}, "a line")
    writer.close()
    assert capsys.readouterr().err == ""
