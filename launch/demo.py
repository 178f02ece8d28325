"""Draws from the model that comes with the package with both samplers, or trains one in minutes and draws from that.

    python -m launch.demo
    python -m launch.demo --train --workdir=runs/quickstart

Standard output is a generation pass by pass, samples, a table of the samplers and one line of JSON. --train takes
speeches of US presidents; a finished run in the workdir is not trained again.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/demo.py`

from absl import flags

from configs import quickstart
from launch import program
from ssmd_jax.evaluation import demo

_TRAIN = flags.DEFINE_bool("train", False, "Train a small model first: minutes on two CPU cores.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "With --train: folder of the run, made if not there.")


def main():
    if _TRAIN.value:
        return demo.demo(quickstart.get_config(), _WORKDIR.value)
    return demo.draw_released()


if __name__ == "__main__":
    program.run(main)
