"""Runs tasks of lm-evaluation-harness with a masked diffusion language model of published weights.

    pip install "ssmd_jax[harness]"
    python -m launch.harness --tasks=gsm8k --model=LLaDA-8B-Instruct --sampler=dual --chat

The harness fetches the data of its own tasks; --include_path names a folder of tasks on disk. Standard output is one
line of JSON.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/harness.py`

from absl import flags

from launch import decoding_flags, program
from ssmd_jax.evaluation.statistics import to_json

_TASKS = flags.DEFINE_list("tasks", None, "The harness's names of tasks, separated by commas.", required=True)
_INCLUDE = flags.DEFINE_string("include_path", None, "Folder with more tasks.")
_LIMIT = flags.DEFINE_integer("limit", None, "Questions of a task at most.", lower_bound=1)
_FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "Worked examples; the task's own number if unset.", lower_bound=0)
_CHAT = flags.DEFINE_bool("chat", False, "In the tokenizer's chat template.")
_GENERATION = flags.DEFINE_string("gen_kwargs", None, "For tasks instead of their own: do_sample=true,temperature=0.2.")
_MASKS = flags.DEFINE_integer("mc_num", 128, "Masks for each log-likelihood.", lower_bound=1)
_GREEDY = flags.DEFINE_bool("check_greedy", True, "Compute whether continuations are what greedy decoding gives.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of all random numbers.")


def main():
    from ssmd_jax.evaluation.reasoning import harness  # the harness is optional, and slow to import

    return to_json(
        harness.evaluate(
            _TASKS.value,
            include_path=_INCLUDE.value,
            limit=_LIMIT.value,
            num_fewshot=_FEWSHOT.value,
            chat=_CHAT.value,
            gen_kwargs=_GENERATION.value,
            mc_num=_MASKS.value,
            check_greedy=_GREEDY.value,
            seed=_SEED.value,
            **decoding_flags.given("tokenizer"),
        )
    )


if __name__ == "__main__":
    program.run(main)
