"""Arithmetic word problems that a seeded program writes, with the steps of their solutions.

    Maria has 347 apples, finds another 205 and gets 6 boxes of 48. How many apples now?

    347+205=552
    6*48=288
    552+288=840
    Answer: 840

Every line of a solution follows from the question and the lines before it, so that what is written in parallel must
agree. Training and held-out problems share no calculation, whatever the names in them: a calculation is of one split
by a hash of its numbers.

The training split of GSM8K, whose problems are of people, can be learnt beside them: `gsm8k_rows`.
"""

import os
import pathlib
import random
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ssmd_jax.data import characters, sources

SPLITS = ("train", "test")
# One calculation in so many is held out.
HELD_OUT = 16
NAMES = ("Ada", "Ben", "Carl", "Dana", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kofi", "Lena", "Maria", "Noor")
THINGS = ("apples", "beads", "cards", "coins", "eggs", "pens", "plums", "shells", "stamps", "stones")
MORE = ("buys {} more", "finds another {}", "is given {}", "adds {}")
FEWER = ("gives away {}", "loses {}", "sells {}", "uses {}")
PACKED = ("gets {} boxes of {}", "picks {} bags of {}")
LEAST_EVENTS, MOST_EVENTS = 2, 3
# GSM8K's marks of a calculator.
CALCULATOR = re.compile(r"<<.*?>>")


class Problem(NamedTuple):
    """A question and its solution.

    Attributes:
        question: text, ending with a line feed.
        solution: one calculation a line, then "Answer: " and the number.
        answer: the number.
        calculation: the numbers and signs alone, by which problems are split.
    """

    question: str
    solution: str
    answer: int
    calculation: str


def split_of(calculation: str) -> str:
    """The split that a calculation is of."""
    return "train" if zlib.crc32(calculation.encode()) % HELD_OUT else "test"


def problems(split: str, count: int, seed: int = 0, digits: int = 3) -> Iterator[Problem]:
    """Problems of a split; the first of a larger count are those of a smaller one.

    Args:
        split: "train" or "test".
        count: how many; they may repeat.
        seed: of the random numbers.
        digits: of the numbers in a question at most, 2 or 3. A problem has 2 or as many as that, so that small numbers
            are learnt first; those in boxes and bags have one fewer.

    Raises:
        ValueError: an unknown split, or fewer than 2 or more than 3 digits.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if digits not in (2, 3):
        raise ValueError(f"digits must be 2 or 3, got {digits!r}")
    # Seeded by a text, which is hashed: neighbouring seeds have nothing in common.
    rng = random.Random(f"arithmetic {split} {seed}")
    for _ in range(count):
        problem = _draw(rng, digits)
        while split_of(problem.calculation) != split:
            problem = _draw(rng, digits)
        yield problem


def _draw(rng: random.Random, most_digits: int) -> Problem:
    digits = rng.randint(2, most_digits)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    total = first = rng.randrange(10, 10**digits)
    calculation, told, lines = str(first), [], []
    count = rng.randint(LEAST_EVENTS, MOST_EVENTS)
    # At most one event takes two lines, so that solutions fit.
    packed = rng.randrange(2 * count)
    for n in range(count):
        if n == packed:
            packs, size = rng.randrange(2, 10), rng.randrange(2, 10 ** (digits - 1))
            told.append(rng.choice(PACKED).format(packs, size))
            lines.append(f"{packs}*{size}={packs * size}")
            lines.append(f"{total}+{packs * size}={total + packs * size}")
            calculation += f"+{packs}*{size}"
            total += packs * size
        elif total > 2 and rng.random() < 0.5:
            change = rng.randrange(2, min(total, 10**digits))
            told.append(rng.choice(FEWER).format(change))
            lines.append(f"{total}-{change}={total - change}")
            calculation += f"-{change}"
            total -= change
        else:
            change = rng.randrange(2, 10**digits)
            told.append(rng.choice(MORE).format(change))
            lines.append(f"{total}+{change}={total + change}")
            calculation += f"+{change}"
            total += change
    events = ", ".join(told[:-1]) + " and " + told[-1]
    question = f"{name} has {first} {things}, {events}. How many {things} now?\n"
    return Problem(question, "\n".join([*lines, f"Answer: {total}"]), total, calculation)


class Rows(NamedTuple):
    """Problems as tokens, of one length: the question ends where the solution begins.

    Attributes:
        tokens_NxL: uint8; in front filled up with ends of text, and behind the solution, too.
        start_N: int32, where the question begins.
    """

    tokens_NxL: np.ndarray
    start_N: np.ndarray


def rows(found: Sequence[Problem], prompt_length: int, gen_length: int) -> Rows:
    """Lays problems out as decoders do: prompts padded on their left, answers on their right.

    Args:
        found: the problems.
        prompt_length: tokens of a question at most.
        gen_length: tokens of a solution at most, its end of text among them.

    Raises:
        ValueError: a problem that does not fit.
    """
    tokens_NxL = np.full((len(found), prompt_length + gen_length), characters.EOS_ID, np.uint8)
    start_N = np.zeros(len(found), np.int32)
    for n, problem in enumerate(found):
        asked, solved = characters.encode(problem.question), characters.encode(problem.solution)
        for name, ids, most in (("question", asked, prompt_length), ("solution", [*solved, 0], gen_length)):
            if len(ids) > most:
                raise ValueError(
                    f"the {name} of {problem.question!r} has {len(ids)} tokens, more than the {most} of a row: give "
                    "longer rows, or fewer digits"
                )
        start_N[n] = prompt_length - len(asked)
        tokens_NxL[n, start_N[n] : prompt_length] = asked
        tokens_NxL[n, prompt_length : prompt_length + len(solved)] = solved
    return Rows(tokens_NxL, start_N)


def text_rows(texts: Iterable[str], prompt_length: int, gen_length: int) -> Rows:
    """Lays running text out like problems: what is learnt in a row follows what the row shows of the text before it.

    Every symbol is learnt in one row. Accents are taken off, and symbols that are not in the alphabet left out; the
    last row of a text ends in ends of text.

    Args:
        texts: of any length.
        prompt_length: tokens shown at most.
        gen_length: tokens learnt.
    """
    tokens, starts = [], []
    for text in texts:
        plain = "".join(symbol for symbol in unicodedata.normalize("NFKD", text) if symbol in characters.ALPHABET)
        ids = np.array([*characters.encode(plain), characters.EOS_ID], np.uint8)
        for first in range(0, len(ids), gen_length):
            row = np.full(prompt_length + gen_length, characters.EOS_ID, np.uint8)
            shown, learnt = ids[max(0, first - prompt_length) : first], ids[first : first + gen_length]
            starts.append(prompt_length - len(shown))
            row[starts[-1] : prompt_length] = shown
            row[prompt_length : prompt_length + len(learnt)] = learnt
            tokens.append(row)
    return Rows(np.array(tokens, np.uint8).reshape(-1, prompt_length + gen_length), np.array(starts, np.int32))


def gsm8k_rows(path: os.PathLike | str, prompt_length: int, gen_length: int) -> Rows:
    """`text_rows` of GSM8K's training split (MIT licence), without the marks of its calculator.

    Args:
        path: JSON lines with "question" and "answer", neither blank, as the authors publish them (`train.jsonl` of
            openai/grade-school-math); .gz and .xz are read too.
        prompt_length, gen_length: as there.

    Raises:
        ValueError: for another kind of file, or one in which questions or answers are missing.
        FileNotFoundError: as `sources.read_documents`.
    """
    if ".jsonl" not in pathlib.Path(path).suffixes:
        raise ValueError(f"{path} is not GSM8K's training split: give JSON lines, as in train.jsonl or train.jsonl.xz")
    questions, answers = (list(sources.read_documents(os.fspath(path), field)) for field in ("question", "answer"))
    if len(questions) != len(answers):
        raise ValueError(f"{path} has {len(questions)} questions and {len(answers)} answers that are not blank")
    texts = (CALCULATOR.sub("", f"{question}\n{answer}") for question, answer in zip(questions, answers, strict=True))
    return text_rows(texts, prompt_length, gen_length)
