"""Draws proteins with many settings of samplers, one FASTA file each, for `launch/judge_proteins.py`.

    python -m launch.draw_proteins --workdir=runs/proteins --output=drawn --settings=plain:0.04,speculative:0.04:8 \\
        --samplers=p2,remdm --sweep=steps=16:32:64 --num_samples=1000
    python -m launch.draw_proteins --workdir=runs/proteins --output=filled --scaffolds=proteins_test.fasta.xz ...

Whole proteins have lengths drawn from those of the training set; with --scaffolds one stretch of each natural protein
is given and the rest filled in. Settings and samplers read as in launch/evaluate.py. Function evaluations, seconds
and the share of natural letters found again stand in sets.json; standard output is the same as one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/draw_proteins.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import protein_sets

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run on proteins.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the FASTA files and sets.json.", required=True)
_SETTINGS = flags.DEFINE_string("settings", None, "Settings of plain and speculative, separated by commas.")
_SAMPLERS = flags.DEFINE_string("samplers", None, "Any samplers, NAME or NAME:ARGUMENT=VALUE, separated by commas.")
_SWEEP = flags.DEFINE_string("sweep", "", "What they run through: ARGUMENT=VALUE:VALUE..., separated by commas.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Proteins a setting.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Proteins drawn at a time.", lower_bound=1)
_NUM_WIDTHS = flags.DEFINE_integer(
    "num_widths", 1, "Widths that batches of like lengths are padded to: less waste, more to compile.", lower_bound=1
)
_SCAFFOLDS = flags.DEFINE_string("scaffolds", None, "FASTA of natural proteins of which a stretch is given.")
_KEEP = flags.DEFINE_float("keep", 0.3, "Share of their letters in that stretch.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")


def main():
    return protein_sets.draw_workdir(
        _WORKDIR.value,
        _OUTPUT.value,
        settings_text=_SETTINGS.value,
        samplers=_SAMPLERS.value,
        sweep=_SWEEP.value,
        num_samples=_NUM_SAMPLES.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        scaffolds=_SCAFFOLDS.value,
        keep=_KEEP.value,
        num_widths=_NUM_WIDTHS.value,
    )


if __name__ == "__main__":
    program.run(main)
