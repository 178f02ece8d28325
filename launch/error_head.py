"""Trains the error head of G-Star on a finished run, for `--sampler=gstar`.

    python -m launch.error_head --workdir=runs/quickstart --steps=500

The head is kept in the workdir. Progress goes to standard error; standard output is one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/error_head.py`

from absl import flags

from launch import program
from ssmd_jax.training import error_head

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of AdamW.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows a step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "At its peak.")
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Width of the head.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")


def main():
    return error_head.train(
        _WORKDIR.value,
        steps=_STEPS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        hidden=_HIDDEN.value,
        seed=_SEED.value,
    )


if __name__ == "__main__":
    program.run(main)
