"""How much less the speculative sampler of one model costs than the plain sampler of another, at equal quality.

    python -m launch.compare --baseline=plain.json --candidate=hybrid.json,hybrid_best.json --plots=gain.png,gain.svg

The files are those of launch/evaluate.py. The baseline's settings with --passes trunk passes, or of these names, as in
--passes=24,best24, give the spelling accuracies; the candidate's cost there is interpolated between its settings. The
table goes to standard error, standard output is one line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/compare.py`

from absl import flags

from launch import program
from ssmd_jax.evaluation import headline

_BASELINE = flags.DEFINE_list("baseline", None, "Files with the plain sampler's settings.", required=True)
_CANDIDATE = flags.DEFINE_list("candidate", None, "Files with the speculative sampler's.", required=True)
_PASSES = flags.DEFINE_list(
    "passes", [str(count) for count in headline.PASSES], "Trunk passes, or names, of the baseline's settings."
)
_JUDGED = flags.DEFINE_string("judged", None, "File of launch/judge.py: bits per byte instead of spelling accuracy.")
_PLOTS = flags.DEFINE_list("plots", [], "Pictures to write; their endings name the formats.")


def main():
    results, table = headline.compare_files(
        _BASELINE.value,
        _CANDIDATE.value,
        [int(point) if point.isdigit() else point for point in _PASSES.value],
        _PLOTS.value,
        _JUDGED.value,
    )
    print(table, file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    program.run(main)
