"""Trains a small model in the layout of LLaDA on arithmetic, and saves it as models are published.

    python -m launch.train_masked_lm --config=configs/arithmetic.py:verifier --output=runs/arithmetic/verifier

The folder then holds config.json, safetensors and a tokenizer, and `launch/arithmetic.py` and `launch/reasoning.py`
decode with it. SIGTERM and Ctrl-C save the model as it then is. Standard output is one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/train_masked_lm.py`

from absl import flags
from ml_collections import config_flags

from launch import program
from ssmd_jax.training import masked_lm

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/arithmetic.py:drafter.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the model; made if it is not there.")
flags.mark_flags_as_required(["config", "output"])


def main():
    return masked_lm.train(_CONFIG.value, _OUTPUT.value)


if __name__ == "__main__":
    program.run(main)
