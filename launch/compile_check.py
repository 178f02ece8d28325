"""Compiles train step, validation and sampler of an experiment for devices that need not be there.

    python -m launch.compile_check --config=configs/openwebtext.py --num_tokens=50257 --topology=v5e:4x4
    python -m launch.compile_check --config=configs/text8.py --topology=v5p:4x4x8 --largest_batch
    python -m launch.compile_check --config=configs/text8.py --topology=local

Prints memory, operations, collectives and a bound on the time of a step to standard error, by the compiler of that
device; standard output ends with one line of JSON. Exit status 1 where it does not fit. No data is read. A TPU topology
needs the TPU's compiler, not a TPU: `pip install -e ".[tpu]"`.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/compile_check.py`

from absl import flags
from ml_collections import config_flags

from launch import program
from ssmd_jax.evaluation.compile_check import check, lowering

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/openwebtext.py.")
_TOPOLOGY = flags.DEFINE_string("topology", "local", '"local", or a TPU slice: v5e:4x4, v6e:8x8, v5p:4x4x8.')
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", None, "Of the tokenizer, where its file is not here.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Of training, in place of the config's.", lower_bound=1)
_SAMPLE_BATCH = flags.DEFINE_integer(
    "sample_batch", None, "Sequences that the sampler draws at a time, over all devices; 32 a device.", lower_bound=1
)
_PROGRAMS = flags.DEFINE_list("programs", list(lowering.PROGRAMS), "Which of them.")
_LARGEST = flags.DEFINE_bool("largest_batch", False, "Search the largest batch of training that fits, and report it.")
_EFFORT = flags.DEFINE_float(
    "effort", -1.0, "Of the TPU's compiler; 0 is what training uses, and takes ten times longer.", -1.0, 1.0
)
flags.mark_flags_as_required(["config"])


def main():
    result = check.check(
        _CONFIG.value,
        _TOPOLOGY.value,
        num_tokens=_NUM_TOKENS.value,
        batch_size=_BATCH_SIZE.value,
        sample_batch=_SAMPLE_BATCH.value,
        programs=tuple(_PROGRAMS.value),
        effort=_EFFORT.value,
        largest_batch=_LARGEST.value,
    )
    print(json.dumps(result), flush=True)
    if result["fits"] is False:
        raise ValueError(result["reason"])


if __name__ == "__main__":
    program.run(main)
