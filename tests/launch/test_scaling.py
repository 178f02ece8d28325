"""`launch/scaling.py`: bad input, as its users see it; what it measures is in tests/evaluation/test_scaling.py."""

import pytest

from tests.launch import programs

LINES = {
    "7b": ["--models=7b"],
    "powers of two": ["--devices=3"],
    "folder": ["--output=/nowhere/scaling.json"],
    "no folder: create": ["--workdir=/nowhere"],
    "model.dropout": ["--config=configs/openwebtext.py", "--config.model.dropout=3.0"],
    "runs": ["--runs=0"],
}


@pytest.fixture(scope="module")
def outcomes():
    return dict(zip(LINES, programs.run("scaling", list(LINES.values())), strict=True))


@pytest.mark.parametrize("named", LINES)
def test_bad_input_is_one_sentence(outcomes, named):
    programs.check_refused(outcomes[named], named)
