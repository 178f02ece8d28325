"""Writes a page of HTML that plays how samples came about, pass by pass; it needs a browser and nothing else.

    python -m launch.visualize --workdir=runs/quickstart --output=generation.html
    python -m launch.visualize --workdir=runs/quickstart --prompt="the people of the " --num_samples=8
    python -m launch.visualize --workdir=runs/quickstart --infill="the con________ of the united ______"

The flags are those of launch/sample.py. Standard output is one line of JSON.
It is a program of one process, on one device: there is no --distributed.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/visualize.py`

from absl import flags

from launch import program, sampling_flags
from ssmd_jax.evaluation import visualize

flags.adopt_module_key_flags(sampling_flags)
_OUTPUT = flags.DEFINE_string("output", "generation.html", "File for the page.")


def main():
    return visualize.visualize(output=_OUTPUT.value, **sampling_flags.given())


if __name__ == "__main__":
    program.run(main)
