"""The faults of `tests/faults/run.py`, few of each."""

import pytest

from tests.faults import faults, run


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    outcomes = run.run(tmp_path, kills=3, seed=1, num_steps=40)
    assert [outcome.injected for outcome in outcomes if outcome.fault == "kill -9"] == [3]
    assert len(outcomes) == 7
    assert [outcome for outcome in outcomes if outcome.survived < outcome.injected] == []


def test_an_outcome_that_is_worse_is_seen(tmp_path):
    """A byte that changes the numbers of an unchecked file would be told as lost."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    faults.flip(path, faults.random.Random(0))
    assert sum(bin(byte).count("1") for byte in path.read_bytes()) == 1
