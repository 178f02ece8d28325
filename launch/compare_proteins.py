"""How many fewer NFE samplers need than plain sampling for proteins that are judged equally good.

    python -m launch.draw_proteins --workdir=runs/proteins --output=drawn --settings=plain:0.04,speculative:0.04:8 ...
    python -m launch.judge_proteins --samples=drawn/a.fasta,drawn/b.fasta --profiles=Pfam.h3m ... > judged.json
    python -m launch.compare_proteins --drawn=drawn --judged=judged.json --plots=proteins.png,proteins.svg

Qualities are the share with a Pfam hit, the pseudo-perplexity, and for scaffolds the natural letters recovered. Each
setting of the baseline names one; the NFE of the other curves there are interpolated. Settings of a sampler that differ
in the argument swept alone are a curve: --baseline="plain temperature=0.6" compares temperatures like samplers. The
table goes to standard error, `*` at the largest gain where the baseline is within 5 % of its best; standard output is
one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/compare_proteins.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import protein_gains

_DRAWN = flags.DEFINE_list("drawn", None, "Folders of launch/draw_proteins.py.", required=True)
_JUDGED = flags.DEFINE_list("judged", None, "Files with the JSON of launch/judge_proteins.py.", required=True)
_BASELINE = flags.DEFINE_string(
    "baseline", protein_gains.BASELINE, "Sampler, or curve of one with several, to compare with."
)
_PLOTS = flags.DEFINE_list("plots", [], "Pictures to write; their endings name the formats.")


def main():
    results, table = protein_gains.compare_files(_DRAWN.value, _JUDGED.value, _PLOTS.value, _BASELINE.value)
    print(table, file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    program.run(main)
