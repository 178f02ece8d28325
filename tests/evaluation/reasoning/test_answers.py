"""What counts as the answer of a text."""

import pytest

from ssmd_jax.evaluation.reasoning import answers

NUMBERS = {
    "Answer: 18": "18",
    "answer:18.": "18",
    "ANSWER:\n 18": "18",
    "Answer: 1,234,567 apples": "1234567",
    "Answer: $1,234.50": "1234.5",
    "Answer: $ 5": "5",  # no number behind "Answer:", so the last one
    "Answer: -7": "-7",
    "Answer: \u22127": "-7",
    "Answer: -$7.00": "-7",
    "Answer: $-7": "-7",
    "Answer: +7": "7",
    "Answer: 0.50": "0.5",
    "Answer: .5": "0.5",
    "Answer: -0": "0",
    "Answer: 100": "100",
    "Answer: 20%": "20",
    "Answer: 3/4": "3",
    "Answer: 1,2": "1",
    "Answer: 1,2345": "1",
    "Answer: 12,345,6": "12345",
    "Answer: 1\nAnswer: 2": "1",
    "Answer: <number>\nAnswer: 2": "2",
    "Answer: **18** of 20": "20",
    "First 3, then 4.": "4",
    "It is 16-3=13": "13",
    "It is 16-3": "3",
    "It is (2)-3": "3",
    "It fell to -3": "-3",
    "v1.2.3": "3",
    "The answer is 1,000.": "1000",
    "none": None,
    "": None,
    "Answer: many": None,
}
LETTERS = {
    "Answer: B": "B",
    "answer: b": "B",
    "Answer:\n\nC.": "C",
    "Answer: (D)": "D",
    "Answer: Because\nA": "A",
    "Answer: E\nB": "B",
    "Answer: A\nAnswer: B": "A",
    "I think so.\nB": "B",
    "I think so.\n(c).\n\n": "C",
    "B\nis right": None,
    "It is B": None,
    "AB": None,
    "": None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_number(text):
    assert answers.number(text) == NUMBERS[text]


@pytest.mark.parametrize("text", LETTERS)
def test_letter(text):
    assert answers.letter(text) == LETTERS[text]


@pytest.mark.parametrize("number", ["1,080", " 1080 ", "$1080", "1080.00"])
def test_one_writing(number):
    assert answers.canonical(number) == "1080"


def test_no_number():
    with pytest.raises(ValueError, match="'many' is not a number"):
        answers.canonical("many")
