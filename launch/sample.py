"""Draws samples from a trained model and prints their text.

    python -m launch.sample --workdir=runs/quickstart --num_samples=4
    python -m launch.sample --workdir=runs/quickstart --sampler=plain --delta_tau=0.02
    python -m launch.sample --workdir=runs/quickstart --prompt="the people of the "
    python -m launch.sample --workdir=runs/quickstart --infill="the con________ of the united ______" --trace

The texts go to standard output, figures and the trace to standard error; standard output ends with one line of JSON.
What the flags leave open comes from the `sampling` section of the run's config.
It is a program of one process, on one device: there is no --distributed.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/sample.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import generate, settings

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "How many samples.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Samples drawn at a time.")
_LENGTH = flags.DEFINE_integer("length", None, "Tokens a sample; the length of training if unset.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")
_SAMPLER = flags.DEFINE_enum("sampler", "speculative", settings.SAMPLERS, "Which sampler.")
_WINDOW = flags.DEFINE_string("window", None, '"cosine", "full", a number of tracks, or FIRST..LAST.')
_DELTA_TAU = flags.DEFINE_float("delta_tau", None, "Step of the cosine window.")
_VERIFY_ROUNDS = flags.DEFINE_integer("verify_rounds", None, "Verify rounds a trunk pass at most.")
_BUDGET_NFE = flags.DEFINE_float("budget_nfe", None, "Hard bound on the function evaluations of a sample.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the likeliest token.")
_TOP_P = flags.DEFINE_float("top_p", None, "Nucleus: the likeliest tokens with this much probability.")
_DRAFT_TEMPERATURE = flags.DEFINE_float("draft_temperature", None, "Of the proposals alone; changes no law.")
_ORDER = flags.DEFINE_string("order", None, '"random", "left_to_right", "confidence" or "entropy".')
_TIE_FIRST = flags.DEFINE_bool("tie_first", None, "The first target of each pass is the draft's.")
_PROMPT = flags.DEFINE_string("prompt", None, "Text that starts every sample.")
_INFILL = flags.DEFINE_string("infill", None, "Text whose gap symbols are filled in, one token each.")
_GAP = flags.DEFINE_string("gap", "_", "The gap symbol of --infill.")
_TRACE = flags.DEFINE_bool("trace", False, "Show pass by pass how the first sample came about.")


def main():
    return generate.generate(
        _WORKDIR.value,
        sampler=_SAMPLER.value,
        num_samples=_NUM_SAMPLES.value,
        batch_size=_BATCH_SIZE.value,
        length=_LENGTH.value,
        seed=_SEED.value,
        prompt=_PROMPT.value,
        infill=_INFILL.value,
        gap=_GAP.value,
        trace_first=_TRACE.value,
        window=_WINDOW.value,
        delta_tau=_DELTA_TAU.value,
        verify_rounds=_VERIFY_ROUNDS.value,
        budget_nfe=_BUDGET_NFE.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        draft_temperature=_DRAFT_TEMPERATURE.value,
        order=_ORDER.value,
        tie_first=_TIE_FIRST.value,
    )


if __name__ == "__main__":
    program.run(main)
