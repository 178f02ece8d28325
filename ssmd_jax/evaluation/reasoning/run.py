"""Tasks from end to end: questions asked, answers judged, every finished one on disk."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssmd_jax.evaluation.reasoning import decoders, generator, journal, problems, prompts
from ssmd_jax.evaluation.reasoning.generator import Generated, Generator
from ssmd_jax.evaluation.reasoning.problems import Problem, Problems
from ssmd_jax.evaluation.statistics import Estimate, mean, ratio, to_json
from ssmd_jax.training.terminal import say

RESULTS_FILE = "results.json"
COUNTS = ("drafter_forwards", "verifier_forwards", "drafter_positions", "verifier_positions", "accepted", "rejected")


@dataclasses.dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        num_fewshot: worked examples before each question; 0 for none.
        style: "direct" asks for the answer alone, as DualDiffusion's evaluation; "steps" for steps before it.
        chat: in the tokenizer's chat template, or as plain text; None for the template where there is one.
        limit: questions of a task at most, drawn over all its subjects; None for all.
        seed: of what is random in a decoder.
    """

    num_fewshot: int = 0
    style: str = "direct"
    chat: bool | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.style not in prompts.STYLES:
            raise ValueError(f"style must be one of {', '.join(prompts.STYLES)}, got {self.style!r}")
        if self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must be at least 0, got {self.num_fewshot}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")


def read_tasks(names: Sequence[str], folder: os.PathLike | str | None) -> dict[str, Problems]:
    """The problems of tasks by name; see `problems.data_folder`.

    Raises:
        ValueError: an unknown task, or data that are not there.
    """
    for name in names:
        if name not in problems.READERS:
            raise ValueError(f"task must be one of {', '.join(problems.READERS)}, got {name!r}")
    found = problems.data_folder(folder)
    return {name: problems.READERS[name](found) for name in names}


def prompt_of(machine: Generator, asking: Asking, problem: Problem, examples: Mapping[str, list[Problem]]) -> list[int]:
    """The tokens that a question is asked with.

    Raises:
        ValueError: fewer examples than wanted, or more tokens than the network can hold.
    """
    shown = examples[problem.subject][: asking.num_fewshot]
    if len(shown) < asking.num_fewshot:
        raise ValueError(
            f"there are {len(shown)} examples for {problem.id}, fewer than num_fewshot {asking.num_fewshot}"
        )
    said = prompts.turns(problem, shown, asking.style)
    in_chat = machine.tokenizer.has_chat_template if asking.chat is None else asking.chat
    # The template brings what a text begins with.
    text = machine.tokenizer.chat(said) if in_chat else prompts.as_text(said)
    tokens = machine.tokenizer.encode(text, special=not in_chat)
    generator.check_length(machine, tokens, f"question {problem.id}")
    return tokens


def settings_of(machine: Generator, asking: Asking, models: Mapping[str, str]) -> dict[str, Any]:
    """What a record depends on, as JSON has it. The limit is not of it: a larger one goes on from a smaller one.

    Args:
        machine: that answers.
        asking: how.
        models: fingerprints of the networks by role.
    """
    said = {name: value for name, value in dataclasses.asdict(asking).items() if name != "limit"}
    device = jax.devices()[0].device_kind
    batch = {"batch_size": machine.batch_size, "pad_to": machine.pad_to, "device": device}
    decoder = {"tokenizer": machine.tokenizer.fingerprint(), **_described("decoder", machine.config)}
    return json.loads(json.dumps({**models, **said, **decoder, **batch}))


def _described(name: str, value: Any) -> dict[str, Any]:
    """Settings one by one, so that an error can name the one that differs."""
    if not dataclasses.is_dataclass(value):
        return {name: value}
    found = {name: type(value).__name__}
    for field in dataclasses.fields(value):
        found |= _described(f"{name}.{field.name}", getattr(value, field.name))
    return found


def run_task(
    machine: Generator,
    asking: Asking,
    name: str,
    task: Problems,
    path: os.PathLike | str,
    models: Mapping[str, str],
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Asks the questions that a journal does not have yet, and returns the records of all.

    Args:
        machine: that answers.
        asking: how.
        name: the task's, for progress.
        task: its problems.
        path: of the journal.
        models: fingerprints of the networks by role.
        progress: told of every batch.

    Raises:
        ValueError: as `prompt_of` and `journal.resume`, before anything is answered.
    """
    asked = task.test[: asking.limit]
    finished = {
        record["id"]: record for record in journal.resume(path, {"task": name, **settings_of(machine, asking, models)})
    }
    open_ones = [problem for problem in asked if problem.id not in finished]
    tokens = [prompt_of(machine, asking, problem, task.examples) for problem in open_ones]
    keys = [generator.key_of(asking.seed, problem.id) for problem in open_ones]
    for batch in generator.generate(machine, tokens, keys):
        records = [record_of(machine, open_ones[n], len(tokens[n]), made) for n, made in batch]
        journal.append(path, records)
        finished |= {record["id"]: record for record in records}
        done = [finished[problem.id] for problem in asked if problem.id in finished]
        right = sum(record["correct"] for record in done)
        progress(f"{name}: {len(done)} of {len(asked)}, {right} right, {records[-1]['seconds']:.2f} s a question")
    return [finished[problem.id] for problem in asked]


def record_of(machine: Generator, problem: Problem, prompt_tokens: int, made: Generated) -> dict[str, Any]:
    """A finished question, as JSON has it."""
    text = machine.tokenizer.decode(made.tokens)
    answer = prompts.parse(problem, text)
    return {
        "id": problem.id,
        "subject": problem.subject,
        "text": text,
        "answer": answer,
        "gold": problem.answer,
        "correct": answer == problem.answer,
        "prompt_tokens": prompt_tokens,
        "tokens": made.counts["num_tokens"],
        **{name: made.counts[name] for name in COUNTS},
        "seconds": made.seconds,
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a task, with standard errors over questions but for times, which the questions of a batch share.

    Returns:
        "questions"; "accuracy"; "answered", the share with any answer in it; "steps", forwards of drafter and verifier
        together a question, and the counts one by one; "tokens" up to the end of text, and "tokens_per_step"; "seconds"
        of all batches, compilation apart, and "tokens_per_second"; where there are subjects "by_subject", the accuracy
        of each, and "mean_over_subjects", their plain mean.
    """
    column = lambda name: np.array([record[name] for record in records], np.float64)
    steps = column("drafter_forwards") + column("verifier_forwards")
    figures = {
        "questions": len(records),
        "accuracy": mean(column("correct")),
        "answered": mean([record["answer"] is not None for record in records]),
        "steps": mean(steps),
        **{name: mean(column(name)) for name in (*COUNTS, "prompt_tokens", "tokens")},
        "tokens_per_step": ratio(column("tokens"), steps),
        "seconds": float(column("seconds").sum()),
        "tokens_per_second": ratio(column("tokens"), column("seconds")).value,
    }
    subjects = sorted({record["subject"] for record in records})
    if subjects != [""]:
        by_subject = {
            subject: mean([record["correct"] for record in records if record["subject"] == subject])
            for subject in subjects
        }
        figures |= {"mean_over_subjects": _mean_of(list(by_subject.values())), "by_subject": by_subject}
    return figures


def _mean_of(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates."""
    error = float(np.sqrt(np.sum([part.standard_error**2 for part in parts]))) / len(parts)
    return Estimate(float(np.mean([part.value for part in parts])), error)


def evaluate(
    tasks: Sequence[str],
    output: os.PathLike | str,
    asking: Asking,
    *,
    data: str | None = None,
    model: str,
    verifier: str | None = None,
    sampler: str,
    sampler_args: str = "",
    **loading: Any,
) -> dict[str, Any]:
    """Answers tasks with the networks of folders: what `launch/reasoning.py` does.

    Args:
        tasks: names of `problems.READERS`.
        output: folder for a journal of each task and for the results; those of an interrupted run are taken up.
        asking: how questions are asked.
        data: see `problems.data_folder`.
        model, verifier, sampler: see `generator.load`.
        sampler_args: as `decoders.parse` reads them.
        loading: other arguments of `generator.load`.

    Returns:
        What is also written to `results.json`: the settings, and "tasks", by name what `summarise` gives.

    Raises:
        ValueError, ImportError: as the parts do.
    """
    read = read_tasks(tasks, data)
    given = decoders.parse(sampler_args)
    machine = generator.load(model, verifier, sampler=sampler, sampler_args=given, **loading)
    roles = {"model": model} if verifier is None else {"model": model, "verifier": verifier}
    models = {role: generator.fingerprint(folder) for role, folder in roles.items()}
    output, found = pathlib.Path(os.path.expanduser(output)), {}
    for name, task in read.items():
        records = run_task(machine, asking, name, task, output / f"{name}.jsonl", models, say)
        found[name] = summarise(records)
    results = to_json(
        {
            "sampler": sampler,
            "sampler_args": given,
            **settings_of(machine, asking, models),
            "limit": asking.limit,
            "tasks": found,
        }
    )
    (output / RESULTS_FILE).write_text(json.dumps(results, indent=2))
    return results
