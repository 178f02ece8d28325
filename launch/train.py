"""Trains a model, or goes on with the run in a workdir: the same command again resumes it.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart --config.model.width=256

Standard output ends with one line of JSON: steps, losses, seconds. SIGTERM and Ctrl-C save before leaving (exit status
0 and 130).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/train.py`

from absl import flags
from ml_collections import config_flags

from launch import program
from ssmd_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics; created if it is not there.")
flags.mark_flags_as_required(["config", "workdir"])


def main():
    return loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    program.run(main)
