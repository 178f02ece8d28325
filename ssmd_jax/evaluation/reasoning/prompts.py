"""What a model is asked: the prompts of DualDiffusion's evaluation (arXiv 2604.05250), zero-shot or behind examples.

A number or a letter is wanted on a line `Answer: ...`, at once as in the public evaluation, or behind steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ssmd_jax.evaluation.reasoning import answers
from ssmd_jax.evaluation.reasoning.problems import Problem

STYLES = ("direct", "steps")
INSTRUCTIONS = {
    ("number", "direct"): "Do not show any steps. Reply with a single line: Answer: <number>",
    ("number", "steps"): "Think step by step, then end with a line: Answer: <number>",
    ("letter", "direct"): "Choose one letter only. Do not show any steps. Reply with a single line: Answer: <letter>",
    ("letter", "steps"): "Think step by step, choose one letter only, and end with a line: Answer: <letter>",
}


class Turn(NamedTuple):
    """What one side says; `role` is "user" or "assistant"."""

    role: str
    content: str


def question(problem: Problem, style: str) -> str:
    """The problem with its instruction.

    Args:
        problem: with choices for a letter, without for a number.
        style: of `STYLES`.
    """
    if not problem.choices:
        return f"{problem.question}\n{INSTRUCTIONS['number', style]}"
    choices = "\n".join(f"{name}. {text}" for name, text in zip(answers.LETTERS, problem.choices, strict=True))
    return f"{problem.question}\n\n{choices}\n\n{INSTRUCTIONS['letter', style]}"


def reply(problem: Problem, style: str) -> str:
    """The answer that an example shows."""
    steps = f"{problem.solution}\n" if style == "steps" and problem.solution else ""
    return f"{steps}Answer: {problem.answer}"


def turns(problem: Problem, examples: Sequence[Problem], style: str) -> list[Turn]:
    """A conversation that ends with the problem."""
    said = []
    for example in examples:
        said += [Turn("user", question(example, style)), Turn("assistant", reply(example, style))]
    return [*said, Turn("user", question(problem, style))]


def as_text(said: Sequence[Turn]) -> str:
    """The conversation for a model without a chat template: a blank line behind each answer, a line feed at the end."""
    return "".join(turn.content + ("\n" if turn.role == "user" else "\n\n") for turn in said)


def parse(problem: Problem, text: str) -> str | None:
    """The answer in a generated text; None where there is none."""
    return answers.letter(text) if problem.choices else answers.number(text)
