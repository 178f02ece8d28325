"""Word problems: right, split by calculation, drawn again alike, laid out as decoders lay them out."""

import json
import re

import numpy as np
import pytest

from ssmd_jax.data import arithmetic, characters

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def told(question: str) -> int:
    """The answer by the story alone: its first number, and then what each event does to it."""
    story, asked = question.split(". ")
    has, *events = re.split(r", (?!.*\bhas\b)| and ", story)
    total = int(re.search(r"\d+", has)[0])
    for event in events:
        numbers = [int(number) for number in re.findall(r"\d+", event)]
        sign = -1 if re.search(r"gives away|loses|sells|uses", event) else 1
        total += sign * int(np.prod(numbers))
    assert re.fullmatch(r"How many \w+ now\?\n", asked)
    return total


@pytest.mark.parametrize("split", arithmetic.SPLITS)
@pytest.mark.parametrize("digits", [2, 3])
def test_problems_are_right(split, digits):
    """By each line of a solution, by the chain of lines, by the calculation and by the story."""
    found = list(arithmetic.problems(split, 400, seed=3, digits=digits))
    for problem in found:
        *lines, last = problem.solution.split("\n")
        known = {int(number) for number in re.findall(r"\d+", problem.question)}
        for line in lines:
            first, sign, second, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups()
            assert SIGNS[sign](int(first), int(second)) == int(result)
            assert {int(first), int(second)} <= known, "a line follows from the question and what is before it"
            known.add(int(result))
        assert last == f"Answer: {problem.answer}" and int(result) == problem.answer > 0
        # Digits and signs alone: the program's own text.
        assert eval(problem.calculation) == problem.answer == told(problem.question)
    assert max(len(number) for problem in found for number in re.findall(r"\d+", problem.question)) == digits
    assert {problem.solution.count("*") for problem in found} == {0, 1}
    assert {len(problem.solution.split("\n")) for problem in found} == {3, 4, 5}


def test_splits_share_no_calculation():
    """Each is of one split by its own numbers, whatever the names; about one in sixteen is held out."""
    of = {split: {p.calculation for p in arithmetic.problems(split, 3000)} for split in arithmetic.SPLITS}
    assert not of["train"] & of["test"]
    for split, calculations in of.items():
        assert {arithmetic.split_of(calculation) for calculation in calculations} == {split}
    random = [f"{a}+{b}-7" for a in range(10, 90) for b in range(10, 90)]
    share = np.mean([arithmetic.split_of(calculation) == "test" for calculation in random])
    assert share == pytest.approx(1 / arithmetic.HELD_OUT, abs=0.015)


def test_problems_are_the_same_again():
    few, many = (list(arithmetic.problems("train", count, seed=5)) for count in (10, 30))
    assert many[:10] == few and few != list(arithmetic.problems("train", 10, seed=6))
    # An update of the generator makes other problems: change this line, and train anew.
    assert next(arithmetic.problems("test", 1)).calculation == "41-36+9*7-11"


def test_the_longest_problem_fits():
    """By the templates: the defaults of the experiment hold every problem of three digits."""
    longest = lambda texts, *numbers: max((text.format(*numbers) for text in texts), key=len)
    packed, more = longest(arithmetic.PACKED, 9, 99), longest((*arithmetic.MORE, *arithmetic.FEWER), 999)
    name, things = (max(words, key=len) for words in (arithmetic.NAMES, arithmetic.THINGS))
    question = f"{name} has 999 {things}, {packed}, {more} and {more}. How many {things} now?\n"
    assert len(question) <= 112
    solution = "9*99=891\n999+891=1890\n1890+999=2889\n2889+999=3888\nAnswer: 3888"
    assert len(solution) + 1 <= 64


def test_rows():
    """Padding, question, solution, ends of text; nothing else."""
    found = list(arithmetic.problems("train", 5))
    tokens_NxL, start_N = arithmetic.rows(found, 112, 64)
    assert tokens_NxL.shape == (5, 176)
    for problem, tokens_L, start in zip(found, tokens_NxL, start_N, strict=True):
        assert (tokens_L[:start] == characters.EOS_ID).all()
        assert list(tokens_L[start:112]) == characters.encode(problem.question)
        solved = characters.encode(problem.solution)
        assert list(tokens_L[112:]) == solved + [characters.EOS_ID] * (64 - len(solved))
    with pytest.raises(ValueError, match=r"question .* more than the 20"):
        arithmetic.rows(found, 20, 64)
    with pytest.raises(ValueError, match=r"solution .* more than the 12"):
        arithmetic.rows(found, 112, 12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="split must be one of train, test, got 'valid'"):
        next(arithmetic.problems("valid", 1))
    with pytest.raises(ValueError, match="digits must be 2 or 3, got 4"):
        next(arithmetic.problems("train", 1, digits=4))


def test_text_rows():
    """Every symbol is learnt once, behind those before it; one end of text closes a text."""
    text = "caf\u00e9 au lait, \u20ac 5: " + "0123456789" * 3
    tokens_NxL, start_N = arithmetic.text_rows([text, "x"], 12, 8)
    learnt = "cafe au lait,  5: " + "0123456789" * 3
    assert len(start_N) == 7 + 1 and list(start_N) == [12, 4, 0, 0, 0, 0, 0, 12]
    ids = [*characters.encode(learnt), characters.EOS_ID]
    assert list(tokens_NxL[:7, 12:].reshape(-1)) == ids + [characters.EOS_ID] * (56 - len(ids))
    for row, (tokens_L, start) in enumerate(zip(tokens_NxL[:7], start_N[:7], strict=True)):
        assert list(tokens_L[start:12]) == ids[max(0, 8 * row - 12) : 8 * row]
        assert (tokens_L[:start] == characters.EOS_ID).all()
    assert characters.decode(tokens_NxL[7, 12:]) == "x"


def test_gsm8k_rows(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    made = [("How many?", "2+3 = <<2+3=5>>5\n#### 5"), ("And now?", "One.\n#### 1")]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in made))
    tokens_NxL, start_N = arithmetic.gsm8k_rows(path, 4, 40)
    assert [characters.decode(tokens_L[4:]) for tokens_L in tokens_NxL] == [
        "How many?\n2+3 = 5\n#### 5",
        "And now?\nOne.\n#### 1",
    ]
    assert list(start_N) == [4, 4]
    path.write_text('{"question": "How many?"}\n')
    with pytest.raises(ValueError, match="answer"):
        arithmetic.gsm8k_rows(path, 4, 40)
    path.write_text('{"question": "How many?", "answer": ""}\n')
    with pytest.raises(ValueError, match="1 questions and 0 answers"):
        arithmetic.gsm8k_rows(path, 4, 40)
    with pytest.raises(ValueError, match=r"give JSON lines"):
        arithmetic.gsm8k_rows(tmp_path / "gsm8k.txt", 4, 40)
