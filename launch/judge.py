"""Judges texts by a causal language model on disk: bits per byte, and nats per token of its own.

    python -m launch.sample --workdir=runs/books --num_samples=256 > samples.json
    python -m launch.judge --judge=SmolLM2-135M-Instruct.Q4_1.gguf --texts=samples.json,held_out.txt

A file of texts is what launch/sample.py prints, a JSON list, or plain text, one text a line. Standard output is one
line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/judge.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import judge
from ssmd_jax.evaluation.statistics import to_json

_JUDGE = flags.DEFINE_string("judge", None, "Folder of a model of transformers, or a .gguf file.", required=True)
_TEXTS = flags.DEFINE_list("texts", None, "Files of texts, separated by commas.", required=True)
_COUNT = flags.DEFINE_integer("count", None, "Texts of each file, at most; all by default.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", judge.DTYPES, "Of the judge's weights and arithmetic.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Texts computed at a time.", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Of a text, at most; all the judge can see.", lower_bound=1)


def main():
    return to_json(
        judge.judge_files(
            _JUDGE.value,
            _TEXTS.value,
            dtype=_DTYPE.value,
            batch_size=_BATCH_SIZE.value,
            max_tokens=_MAX_TOKENS.value,
            count=_COUNT.value,
        )
    )


if __name__ == "__main__":
    program.run(main)
