"""Measures training, sampling and checkpoints on 1, 2, 4, ... devices of this host.

    python -m launch.scaling --output=scaling.json
    python -m launch.scaling --models=150m --devices=1,4 --config=configs/openwebtext.py --config.model.dropout=0.0
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m launch.scaling --tiny --devices=1,2,4

"150m" is the network of the config, "1b" a wider and deeper one; tokens and weights are random. Everything is compiled
first, many programs at a time; a case that fails is a row with the reason. Progress and the tables go to standard
error; standard output is one line of JSON, which the file of `--output` has after every case too.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/scaling.py`

from absl import flags
from ml_collections import config_flags

from configs import openwebtext
from launch import program
from ssmd_jax.evaluation.scaling import settings, study
from ssmd_jax.model.config import ATTENTIONS, MLPS

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; configs/openwebtext.py by default.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results, as JSON, written anew after every case.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the checkpoints' temporary folder; the system's.")
_FIELDS = {
    "num_tokens": flags.DEFINE_integer("num_tokens", 50_257, "Of the tokenizer, whose file is not read."),
    "models": flags.DEFINE_list("models", list(settings.SIZES), "Models, separated by commas."),
    "devices": flags.DEFINE_list("devices", [], "Numbers of devices; all powers of two up to those that are here."),
    "parts": flags.DEFINE_list("parts", list(settings.PARTS), "Parts of the study, separated by commas."),
    "batch_sizes": flags.DEFINE_list("batch_sizes", [], "Sequences a device in training, one number a model."),
    "sample_sizes": flags.DEFINE_list("sample_sizes", [], "Sequences a device in sampling, one number a model."),
    "loss_batch": flags.DEFINE_integer("loss_batch", 32, "Sequences a step, over all devices, to compare losses."),
    "loss_steps": flags.DEFINE_integer("loss_steps", 5, "Steps of that comparison."),
    "checkpoint_model": flags.DEFINE_string("checkpoint_model", None, "Model whose state is saved; the first."),
    "attention": flags.DEFINE_enum(
        "attention", None, list(ATTENTIONS), "cudnn by default where there is a GPU and bfloat16."
    ),
    "mlp": flags.DEFINE_enum("mlp", None, list(MLPS), "In sampling; xla by default."),
    "unroll": flags.DEFINE_integer("unroll", None, "Trunk blocks a step of the scan; all by default on a GPU."),
    "runs": flags.DEFINE_integer("runs", 5, "Timed runs of each case."),
    "max_seconds": flags.DEFINE_float("max_seconds", 8.0, "Of timed runs for each case."),
    "budget_seconds": flags.DEFINE_float("budget_seconds", None, "No case starts later than this; no bound."),
    "compile_threads": flags.DEFINE_integer(
        "compile_threads", None, "Programs compiled at a time; as many as there are cores, 16 at most."
    ),
    "tiny": flags.DEFINE_bool("tiny", False, "Shapes that any device runs in no time, to see that all works."),
}


def main():
    values = {name: flag.value for name, flag in _FIELDS.items()}
    config = openwebtext.get_config() if _CONFIG.value is None else _CONFIG.value
    return study.study(config, output=_OUTPUT.value, workdir=_WORKDIR.value, **values)


if __name__ == "__main__":
    program.run(main)
