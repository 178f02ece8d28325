"""Prompts, character by character."""

import pytest

from ssmd_jax.evaluation.reasoning import prompts
from ssmd_jax.evaluation.reasoning.problems import Problem

WORDS = Problem("1", "How many are 1 and 1?", (), "2", "There is 1.\nOne more is 2.")
CHOICE = Problem("2", "Which?", ("w", "x", "y", "z"), "C", subject="s")


def test_number():
    assert prompts.question(WORDS, "direct") == (
        "How many are 1 and 1?\nDo not show any steps. Reply with a single line: Answer: <number>"
    )
    assert prompts.question(WORDS, "steps") == (
        "How many are 1 and 1?\nThink step by step, then end with a line: Answer: <number>"
    )


def test_letter():
    assert prompts.question(CHOICE, "direct") == (
        "Which?\n\nA. w\nB. x\nC. y\nD. z\n\n"
        "Choose one letter only. Do not show any steps. Reply with a single line: Answer: <letter>"
    )


def test_examples():
    said = prompts.turns(CHOICE._replace(question="And?"), [CHOICE], "direct")
    assert [turn.role for turn in said] == ["user", "assistant", "user"]
    assert said[1].content == "Answer: C"
    asked = prompts.question(CHOICE, "direct")
    assert prompts.as_text(said) == f"{asked}\nAnswer: C\n\n{asked.replace('Which', 'And')}\n"


@pytest.mark.parametrize(
    ("problem", "style", "expected"),
    [
        (WORDS, "direct", "Answer: 2"),
        (WORDS, "steps", "There is 1.\nOne more is 2.\nAnswer: 2"),
        (CHOICE, "steps", "Answer: C"),
    ],
)
def test_an_example_is_answered_as_asked(problem, style, expected):
    assert prompts.reply(problem, style) == expected
    assert prompts.parse(problem, expected) == problem.answer
