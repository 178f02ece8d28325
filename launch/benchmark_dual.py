"""Measures the decoders of masked language models beside what this device can do at most.

    python -m launch.benchmark_dual
    python -m launch.benchmark_dual --preset=llada8b --output=llada8b.json
    python -m launch.benchmark_dual --preset=llada8b --batches=1 --parts="dual step,full pass" --profile=traces
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 python -m launch.benchmark_dual --preset=llada8b --batches=16

The preset llada8b has the shapes of LLaDA-8B with random bfloat16 weights, prompts of 512 tokens, 256 to generate in
blocks of 32, 8 a pass: 16 GB of weights and, for 16 rows, some times 6.4 GB of keys and values. All parts are compiled
before the first is timed. Progress and the table go to standard error; standard output is one line of JSON. A part that
the device cannot run is one row with the reason.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/benchmark_dual.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import report
from ssmd_jax.evaluation.benchmark import dual, dual_settings
from ssmd_jax.model.bidirectional import ATTENTIONS

_PRESET = flags.DEFINE_enum("preset", "tiny", list(dual_settings.PRESETS), "Shapes.")
_PARTS = flags.DEFINE_string("parts", "", "Only parts whose name holds one of these words, separated by commas.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of one call of each part.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results, as JSON.")
_BATCHES = flags.DEFINE_multi_integer("batches", None, "Rows decoded at a time; once for each measurement.")
_OVERRIDES = {
    "prompt_length": flags.DEFINE_integer("prompt_length", None, "Tokens of a prompt."),
    "gen_length": flags.DEFINE_integer("gen_length", None, "Tokens to generate."),
    "block_length": flags.DEFINE_integer("block_length", None, "Tokens of a block."),
    "tokens_a_step": flags.DEFINE_integer("tokens_a_step", None, "Tokens that a pass commits."),
    "num_layers": flags.DEFINE_integer("num_layers", None, "Blocks of the network, for a smaller machine."),
    "attention": flags.DEFINE_enum(
        "attention", None, list(ATTENTIONS), "cudnn by default where there is a GPU and bfloat16."
    ),
    "buckets": flags.DEFINE_integer("buckets", None, "Numbers of fed positions that are compiled.", lower_bound=1),
    "refresh": flags.DEFINE_integer("refresh", None, "dKV-Cache: a full pass every so many.", lower_bound=1),
    "loop_steps": flags.DEFINE_integer("loop_steps", None, "Cached passes in a call where they are measured alone."),
    "compilers": flags.DEFINE_integer("compilers", None, "Programs that are compiled at a time."),
    "runs": flags.DEFINE_integer("runs", None, "Timed runs of each part."),
    "max_seconds": flags.DEFINE_float("max_seconds", None, "Of timed runs for each part."),
    "seed": flags.DEFINE_integer("seed", None, "Of weights and prompts."),
}


def main():
    if _OUTPUT.value is not None:
        report.check_output(_OUTPUT.value)
    results = dual.benchmark(
        preset=_PRESET.value,
        parts=_PARTS.value,
        profile=_PROFILE.value,
        batches=None if _BATCHES.value is None else tuple(_BATCHES.value),
        **{name: flag.value for name, flag in _OVERRIDES.items()},
    )
    # Printed before it is written: a disk that has filled up meanwhile must not lose the work.
    print(json.dumps(results), flush=True)
    if _OUTPUT.value is not None:
        report.write_output(results, _OUTPUT.value)


if __name__ == "__main__":
    program.run(main)
