"""Draws samples from a trained model and prints their text.

    python -m launch.sample --num_samples=2 --trace
    python -m launch.sample --nfe=12 --prompt="the old man looked at the sea and "
    python -m launch.sample --workdir=runs/quickstart --sampler=plain --delta_tau=0.02
    python -m launch.sample --workdir=runs/quickstart --sampler=eb --sampler_args=gamma=0.5,temperature=0.9
    python -m launch.sample --workdir=runs/quickstart --infill="the con________ of the united ______" --trace

Without --workdir it is the model that comes with the package: characters of English prose, 256 of them a sample.
The texts go to standard output, figures and the trace to standard error; standard output ends with one line of JSON.
Where launch/tune.py has measured a profile, the windows are the best ones for --nfe function evaluations, by default a
sixteenth of the tokens; what else the flags leave open comes from the `sampling` section of the run's config.
It is a program of one process, on one device: there is no --distributed.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/sample.py`

from absl import flags

from launch import program, sampling_flags
from ssmd_jax.evaluation import generate

flags.adopt_module_key_flags(sampling_flags)
_FASTA = flags.DEFINE_string("fasta", None, "File that samples of proteins are written to, too.")
_TRACE = flags.DEFINE_bool("trace", False, "Show pass by pass how the first sample came about.")


def main():
    return generate.generate(trace_first=_TRACE.value, fasta=_FASTA.value, **sampling_flags.given())


if __name__ == "__main__":
    program.run(main)
