"""Writes a trained model as a folder of its own: weights, configuration, tokenizer and profile.

    python -m launch.export --workdir=runs/books_char --output=released/books_char --dtype=int8

The folder stands wherever a workdir is read: in launch/sample.py, launch/evaluate.py, `ssmd_jax.load` and
training.init_from. Standard output is one line of JSON.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/export.py`

from absl import flags

from launch import program
from ssmd_jax.model import weights
from ssmd_jax.training import loading

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", weights.DTYPES, "Of the weights; norms and vectors stay in float32.")


def main():
    return loading.export(os.path.expanduser(_WORKDIR.value), os.path.expanduser(_OUTPUT.value), _DTYPE.value)


if __name__ == "__main__":
    program.run(main)
