"""Tasks from end to end, by a model of a table: asked, judged, counted, resumed."""

import json
import math

import pytest

from ssmd_jax.evaluation.reasoning import journal, problems, prompts, run
from ssmd_jax.evaluation.reasoning.run import Asking
from tests.evaluation.reasoning import small

pytest.importorskip("pyarrow", reason="MMLU is stored as Arrow files")
MODELS = {"model": "0123"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = small.write_data(tmp_path_factory.mktemp("data") / "olmo_eval")
    return run.read_tasks(["gsm8k", "mmlu"], folder)


@pytest.fixture(scope="module")
def machine():
    return small.generator(temperature=0.7, steps=6, batch_size=2, pad_to=128)


def without_seconds(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_prompts_as_they_are_asked(tasks, machine):
    problem = next(problem for problem in tasks["gsm8k"].test if problem.id == "3")
    asked = bytes(run.prompt_of(machine, Asking(num_fewshot=1), problem, tasks["gsm8k"].examples)).decode()
    direct = prompts.INSTRUCTIONS["number", "direct"]
    assert asked == f"How many are 1 and 1?\n{direct}\nAnswer: 2\n\nWhat is 3 and 1,000?\n{direct}\n"
    problem = tasks["mmlu"].test[0]
    asked = bytes(run.prompt_of(machine, Asking(num_fewshot=2), problem, tasks["mmlu"].examples)).decode()
    assert asked.count(problem.subject) == 3 and asked.count("\nAnswer: ") == 2


def test_an_interrupted_run_ends_as_one(tasks, machine, tmp_path):
    task, asking = tasks["gsm8k"], Asking()
    whole = run.run_task(machine, asking, "gsm8k", task, tmp_path / "whole.jsonl", MODELS)

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run_task(machine, asking, "gsm8k", task, tmp_path / "parts.jsonl", MODELS, interrupt)
    lines = (tmp_path / "parts.jsonl").read_text().splitlines()
    assert len(lines) == 1 + machine.batch_size
    told = []
    limited = run.run_task(machine, Asking(limit=3), "gsm8k", task, tmp_path / "parts.jsonl", MODELS, told.append)
    assert len(limited) == 3
    parts = run.run_task(machine, asking, "gsm8k", task, tmp_path / "parts.jsonl", MODELS, told.append)
    assert told[-1].startswith("gsm8k: 6 of 6, ")
    # What was finished was not asked again.
    assert (tmp_path / "parts.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert len((tmp_path / "parts.jsonl").read_text().splitlines()) == 7
    assert without_seconds(parts) == without_seconds(whole)
    assert [record["id"] for record in whole] == [problem.id for problem in task.test]
    assert len({record["text"] for record in whole}) > 3


def test_another_setting_is_refused(tasks, machine, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    run.run_task(machine, Asking(limit=1), "gsm8k", tasks["gsm8k"], path, MODELS)
    for asking, model, said in [
        (Asking(num_fewshot=1), MODELS, "was made with num_fewshot 0, not 1"),
        (Asking(style="steps"), MODELS, "was made with style 'direct', not 'steps'"),
        (Asking(), {"model": "4567"}, "was made with model '0123', not '4567'"),
        (Asking(), {**MODELS, "verifier": "4567"}, "was made with verifier None, not '4567'"),
    ]:
        with pytest.raises(ValueError, match=said):
            run.run_task(machine, asking, "gsm8k", tasks["gsm8k"], path, model)
    for fields, said in [
        ({"steps": 3, "temperature": 0.7}, r"was made with decoder\.steps 6, not 3"),
        ({"steps": 6}, r"was made with decoder\.proposal\.temperature 0.7, not 0.0"),
        ({"sampler": "dual", "steps": 6, "temperature": 0.7}, "was made with decoder.feeding 'Feeding', not 'Dual'"),
    ]:
        other = small.generator(batch_size=2, pad_to=128, **fields)
        with pytest.raises(ValueError, match=said):
            run.run_task(other, Asking(), "gsm8k", tasks["gsm8k"], path, MODELS)


def test_nothing_is_asked_where_a_prompt_is_bad(tasks, machine, tmp_path):
    path, task = tmp_path / "mmlu.jsonl", tasks["mmlu"]
    with pytest.raises(ValueError, match=r"there are 2 examples for .*, fewer than num_fewshot 3"):
        run.run_task(machine, Asking(num_fewshot=3), "mmlu", task, path, MODELS)
    long = problems.Problem("long", "x" * 3000, tuple("wxyz"), "A", subject="virology")
    with pytest.raises(ValueError, match=r"the prompt of question long has 31\d\d tokens"):
        run.run_task(machine, Asking(), "mmlu", task._replace(test=[*task.test, long]), tmp_path / "b.jsonl", MODELS)
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ValueError, match="has no chat template: give --nochat"):
        run.run_task(machine, Asking(chat=True), "mmlu", task, tmp_path / "c.jsonl", MODELS)


def record(correct, tokens, seconds, forwards, subject="", answer="1"):
    counts = {**dict.fromkeys(run.COUNTS, 0), "drafter_forwards": forwards, "verifier_forwards": 1}
    own = {"correct": correct, "tokens": tokens, "seconds": seconds, "subject": subject, "answer": answer}
    return {**counts, **own, "prompt_tokens": 5}


def test_figures():
    figures = run.summarise(
        [record(True, 10, 1.0, 3), record(False, 30, 1.0, 5, answer=None), record(True, 20, 2.0, 4), record(1, 0, 0, 0)]
    )
    assert figures["questions"] == 4
    assert figures["accuracy"].value == 0.75
    assert figures["accuracy"].standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert figures["answered"].value == 0.75
    assert figures["steps"].value == 4 and figures["drafter_forwards"].value == 3
    assert figures["tokens_per_second"] == 15 and figures["tokens_per_step"].value == 60 / 16
    assert figures["seconds"] == 4
    assert "by_subject" not in figures


def test_figures_by_subject():
    found = run.summarise([record(n < 3, 1, 1, 1, "a" if n < 4 else "b") for n in range(6)])
    assert {name: part.value for name, part in found["by_subject"].items()} == {"a": 0.75, "b": 0.0}
    assert found["mean_over_subjects"].value == 0.375
    assert found["mean_over_subjects"].standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3) / 2)
    assert found["accuracy"].value == 0.5


def test_records_tell_what_was_answered(tasks, machine, tmp_path):
    path = tmp_path / "mmlu.jsonl"
    records = run.run_task(machine, Asking(), "mmlu", tasks["mmlu"], path, MODELS)
    by_id = {problem.id: problem for problem in tasks["mmlu"].test}
    for one in records:
        assert one["gold"] == by_id[one["id"]].answer
        assert one["answer"] == prompts.parse(by_id[one["id"]], one["text"])
        assert one["correct"] == (one["answer"] == one["gold"])
        assert 0 < one["drafter_forwards"] <= 6 and one["verifier_forwards"] == 0 < one["seconds"]
    settings = json.loads(path.read_text().splitlines()[0])["settings"]
    assert journal.resume(path, settings) == sorted(records, key=lambda one: path.read_text().find(f'"{one["id"]}"'))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"style": "long"}, "style must be one of direct, steps, got 'long'"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_bad_asking(fields, said):
    with pytest.raises(ValueError, match=said):
        Asking(**fields)


def test_an_unknown_task():
    with pytest.raises(ValueError, match="task must be one of gsm8k, mmlu, got 'arc'"):
        run.read_tasks(["arc"], None)
