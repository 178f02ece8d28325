"""Judges generated proteins, beside held-out natural ones and these with their letters shuffled.

    python -m launch.judge_proteins --samples=samples.fasta --natural=proteins_test.fasta.xz \\
        --reference=proteins_train.fasta.xz --profiles=Pfam.h3m --mmseqs=mmseqs --workdir=runs/proteins

Composition and words of three letters need nothing else. --profiles adds the share with a Pfam hit (package pyhmmer),
--mmseqs novelty and diversity (the program MMseqs2), --workdir the pseudo-perplexity under that run's trunk, --esmfold
the confidence of ESMFold (packages torch and transformers). The table goes to standard error; standard output is one
line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/judge_proteins.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import proteins

_SAMPLES = flags.DEFINE_list("samples", None, "FASTA of generated proteins; several, sets of their own.", required=True)
_NATURAL = flags.DEFINE_string("natural", None, "FASTA of held-out natural proteins.", required=True)
_REFERENCE = flags.DEFINE_string("reference", None, "FASTA of the training split.", required=True)
_NUM_SEQUENCES = flags.DEFINE_integer("num_sequences", 1000, "At most so many of each set.", lower_bound=1)
_PROFILES = flags.DEFINE_string("profiles", None, "File of HMMER profiles.")
_MMSEQS = flags.DEFINE_string("mmseqs", None, "Program of MMseqs2, by path or name.")
_ESMFOLD = flags.DEFINE_string("esmfold", None, "Folder of ESMFold as Hugging Face publishes it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run whose trunk gives pseudo-perplexities.")
_POSITIONS = flags.DEFINE_integer("positions", 8, "Letters of each sequence judged for it.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of these positions, and of the shuffled letters.")


def main():
    return proteins.judge_files(
        _SAMPLES.value,
        _NATURAL.value,
        _REFERENCE.value,
        num_sequences=_NUM_SEQUENCES.value,
        workdir=_WORKDIR.value,
        profiles=_PROFILES.value,
        mmseqs=_MMSEQS.value,
        esmfold=_ESMFOLD.value,
        positions=_POSITIONS.value,
        seed=_SEED.value,
    )


if __name__ == "__main__":
    program.run(main)
