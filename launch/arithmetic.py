"""Decodes held-out arithmetic problems by every method of a drafter and a verifier: accuracy against cost.

    python -m launch.arithmetic --drafter=runs/arithmetic/drafter --verifier=runs/arithmetic/verifier \\
        --output=runs/arithmetic/points --plot=pareto.png
    python -m launch.arithmetic ... --methods=dualdiffusion,dual

Both are trained by launch/train_masked_lm.py. Finished points are lines of OUTPUT/points.jsonl: the same command goes
on where it stopped, and a later one adds methods. Standard output is one line of JSON, as OUTPUT/results.json.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/arithmetic.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation.reasoning import arithmetic
from ssmd_jax.model.bidirectional import DTYPES

_DRAFTER = flags.DEFINE_string("drafter", None, "Folder of the smaller model.", required=True)
_VERIFIER = flags.DEFINE_string("verifier", None, "Folder of the larger model.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the points; taken up where it is there.", required=True)
_METHODS = flags.DEFINE_list("methods", [], "Only methods whose name holds one of these words.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of the points, for example pareto.png.")
_NUM_PROBLEMS = flags.DEFINE_integer("num_problems", 1024, "Held-out problems a point.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Rows computed at a time.", lower_bound=1)
_GEN_LENGTH = flags.DEFINE_integer("gen_length", 64, "Tokens of an answer.")
_BLOCK_LENGTH = flags.DEFINE_integer("block_length", 32, "Tokens of a block.")
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 112, "Tokens that questions are padded to.")
_DIGITS = flags.DEFINE_integer("digits", 3, "Of the numbers, as in training.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", list(DTYPES), "Of parameters and computation.")
_SEED = flags.DEFINE_integer("seed", 0, "Of problems and samples.")


def main():
    return arithmetic.evaluate(
        _DRAFTER.value,
        _VERIFIER.value,
        _OUTPUT.value,
        num_problems=_NUM_PROBLEMS.value,
        batch_size=_BATCH_SIZE.value,
        gen_length=_GEN_LENGTH.value,
        block_length=_BLOCK_LENGTH.value,
        prompt_length=_PROMPT_LENGTH.value,
        digits=_DIGITS.value,
        methods=_METHODS.value,
        dtype=_DTYPE.value,
        seed=_SEED.value,
        plot=_PLOT.value,
    )


if __name__ == "__main__":
    program.run(main)
