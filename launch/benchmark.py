"""Measures sampling, training, likelihood and cost by shape, beside what this device can do at most.

    python -m launch.benchmark
    python -m launch.benchmark --suite=sampling --preset=openwebtext --output=openwebtext.json
    python -m launch.benchmark --suite=sampling --workdir=runs/books_char --parts=trunk,speculative --profile=traces

Random weights by default, perturbed so that drafts are rejected. Progress and the table go to standard error; standard
output is one line of JSON. A part that the device cannot run is one row with the reason. One device is measured.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/benchmark.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import report
from ssmd_jax.evaluation.benchmark import harness, plot, settings
from ssmd_jax.model.config import ATTENTIONS, DTYPES, MLPS

_SUITE = flags.DEFINE_string("suite", ",".join(settings.SUITES), "Suites, separated by commas.")
_PRESET = flags.DEFINE_enum("preset", "tiny", list(settings.PRESETS), "Shapes.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Trained run to measure instead of random weights.")
_PARTS = flags.DEFINE_string("parts", "", "Only parts whose name holds one of these words, separated by commas.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of one call of each part.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results, as JSON.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of the suite cost, for example cost.png.")
_OVERRIDES = {
    "batch_size": flags.DEFINE_integer("batch_size", None, "Sequences in a batch of sampling and training."),
    "likelihood_batch": flags.DEFINE_integer("likelihood_batch", None, "Sequences in a batch of likelihood."),
    "length": flags.DEFINE_integer("length", None, "Tokens in a sequence."),
    "width": flags.DEFINE_integer("width", None, "Residual width; heads keep their channels."),
    "verify_rounds": flags.DEFINE_integer("verify_rounds", None, "Verify rounds a trunk pass at most."),
    "delta_tau": flags.DEFINE_float("delta_tau", None, "Step of the cosine window."),
    "attention": flags.DEFINE_enum(
        "attention", None, list(ATTENTIONS), "cudnn by default where there is a GPU and bfloat16."
    ),
    "mlp": flags.DEFINE_enum("mlp", None, list(MLPS), "In sampling and likelihood."),
    "unroll": flags.DEFINE_integer("unroll", None, "Trunk blocks a step of the scan."),
    "dtype": flags.DEFINE_enum("dtype", None, list(DTYPES), "Of computation."),
    "dropout": flags.DEFINE_float("dropout", None, "In training."),
    "remat": flags.DEFINE_bool("remat", None, "Recompute blocks in the backward pass."),
    "perturbation": flags.DEFINE_float("perturbation", None, "Random weights: how far the target is from the draft."),
    "runs": flags.DEFINE_integer("runs", None, "Timed runs of each part."),
    "max_seconds": flags.DEFINE_float("max_seconds", None, "Of timed runs for each part."),
    "seed": flags.DEFINE_integer("seed", None, "Of weights and samples."),
}


def main():
    if _OUTPUT.value is not None:
        report.check_output(_OUTPUT.value)
    if _PLOT.value is not None:
        plot.check()
        report.check_output(_PLOT.value)
    results = harness.benchmark(
        suites=_SUITE.value,
        preset=_PRESET.value,
        workdir=_WORKDIR.value,
        parts=_PARTS.value,
        profile=_PROFILE.value,
        **{name: flag.value for name, flag in _OVERRIDES.items()},
    )
    # Printed before it is written: a disk that has filled up meanwhile must not lose the work.
    print(json.dumps(results), flush=True)
    if _OUTPUT.value is not None:
        report.write_output(results, _OUTPUT.value)
    if _PLOT.value is not None:
        plot.plot_cost(results, _PLOT.value)


if __name__ == "__main__":
    program.run(main)
