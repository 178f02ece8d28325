"""Trains the quick start and draws from it with both samplers.

    python -m launch.demo --workdir=runs/quickstart

A finished run in the workdir is not trained again. Standard output is three samples, a table of the samplers and one
line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/demo.py`

from absl import flags

from configs import quickstart
from launch import program
from ssmd_jax.evaluation import demo

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run; created if it is not there.")


def main():
    return demo.demo(quickstart.get_config(), _WORKDIR.value)


if __name__ == "__main__":
    program.run(main)
