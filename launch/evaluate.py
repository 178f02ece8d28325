"""Evaluates a trained model: bounds on held-out text, the distance table, and samplers side by side.

    python -m launch.evaluate --workdir=runs/quickstart --output=results.json
    python -m launch.evaluate --workdir=runs/books --settings=plain:0.04,speculative:0.04:8 --num_samples=256

Progress and tables go to standard error; standard output is one line of JSON, which --output keeps in a file too.
An entry of --settings is plain:WINDOW or speculative:WINDOW:ROUNDS; WINDOW is the step of a cosine window, below 1, or
a whole number of tracks, "full", or FIRST..LAST for a linear window. ":tie_first", ":shared_noise" and the name of an
order, as in speculative:0.04:8:confidence, may follow.
--samplers=mdlm,llada:block=64,eb --sweep=steps=16:32:64,gamma=0.1:1 compares any samplers; those without an argument
that the sweep names run through values of their own. --plot=samplers.svg draws quality against cost, --texts=FOLDER
keeps the samples for launch/judge.py.
It is a program of one process, on one device: there is no --distributed.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/evaluate.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import plot, report

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
_SETTINGS = flags.DEFINE_string("settings", None, "Settings of plain and speculative, separated by commas.")
_SAMPLERS = flags.DEFINE_string("samplers", None, "Any samplers, NAME or NAME:ARGUMENT=VALUE, separated by commas.")
_SWEEP = flags.DEFINE_string("sweep", "", "What they run through: ARGUMENT=VALUE:VALUE..., separated by commas.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 256, "Samples a setting.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Sequences computed at a time.")
_LIKELIHOOD_SEQUENCES = flags.DEFINE_integer(
    "likelihood_sequences", 32, "Held-out sequences whose likelihood is bounded; 0 for none."
)
_ORDERS = flags.DEFINE_integer("orders", 4, "Random orders for each of them.")
_SPLIT = flags.DEFINE_enum("split", "valid", report.SPLITS, "Which held-out text.")
_DATA = flags.DEFINE_string("data", None, "Folder of the run's data files, where they have moved.")
_WORD_LIST = flags.DEFINE_string("word_list", None, "Known words, one a line, instead of those of the training text.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results, as JSON.")
_TEXTS = flags.DEFINE_string("texts", None, "Folder for the samples and as much held-out text, for launch/judge.py.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of quality against NFE and seconds, such as samplers.svg.")


def main():
    if _OUTPUT.value is not None:
        report.check_output(_OUTPUT.value)
    if _PLOT.value is not None:
        plot.check(_PLOT.value)
    results = report.evaluate_workdir(
        _WORKDIR.value,
        settings_text=_SETTINGS.value,
        samplers=_SAMPLERS.value,
        sweep=_SWEEP.value,
        num_samples=_NUM_SAMPLES.value,
        batch_size=_BATCH_SIZE.value,
        likelihood_sequences=_LIKELIHOOD_SEQUENCES.value,
        orders=_ORDERS.value,
        split=_SPLIT.value,
        seed=_SEED.value,
        word_list=_WORD_LIST.value,
        data_folder=_DATA.value,
        texts=_TEXTS.value,
    )
    # Printed here, and before it is written: a disk that has filled up meanwhile must not lose long work.
    print(json.dumps(results), flush=True)
    if _OUTPUT.value is not None:
        report.write_output(results, _OUTPUT.value)
    if _PLOT.value is not None:
        plot.plot_samplers(results, _PLOT.value)


if __name__ == "__main__":
    program.run(main)
