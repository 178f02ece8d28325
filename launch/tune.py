"""Measures what windows cost a trained model, and lists the best ones for a number of function evaluations.

    python -m launch.tune --workdir=runs/books

The profile is kept in the workdir; from then on "best12" names the best windows for 12 function evaluations in
launch/evaluate.py, and `ssmd_jax.sampling.recommend` makes a setting of them. Standard output is one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/tune.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import report, tuning

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
_NUM_SEQUENCES = flags.DEFINE_integer("num_sequences", 256, "Held-out sequences; each costs as many passes as tokens.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Sequences computed at a time.")
_DATA = flags.DEFINE_string("data", None, "Folder of the run's data files, where they have moved.")
_LARGEST = flags.DEFINE_integer("largest", 0, "Windows up to so many tracks; 0 for all.")
_SPLIT = flags.DEFINE_enum("split", "valid", report.SPLITS, "Which held-out text.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")


def main():
    return tuning.tune_workdir(
        _WORKDIR.value,
        num_sequences=_NUM_SEQUENCES.value,
        batch_size=_BATCH_SIZE.value,
        split=_SPLIT.value,
        seed=_SEED.value,
        largest=_LARGEST.value,
        data_folder=_DATA.value,
    )


if __name__ == "__main__":
    program.run(main)
