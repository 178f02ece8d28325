"""`launch/harness.py` as its users run it."""

import json

import pytest

from tests.evaluation.reasoning import small
from tests.launch import programs

pytest.importorskip("transformers", reason="tokenizers of published models need transformers")
pytest.importorskip("lm_eval", reason="the adapter needs lm-evaluation-harness")


@pytest.mark.slow
def test_a_task_from_disk(tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    model = small.write_model(tmp_path / "model", chat=True)
    rows = [{"question": f"{n}?", "answer": str(n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The format is YAML, of which JSON is a part.
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "toy.yaml").write_text(json.dumps(task))
    base = [f"--model={model}", f"--include_path={tmp_path}", "--dtype=float32", "--sampler=dual"]
    args = "--sampler_args=gen_length=8,block_length=4,temperature=0.2"
    done, unknown = programs.run(
        "harness",
        [
            [
                *base,
                args,
                "--tasks=toy",
                "--limit=2",
                "--chat",
                "--batch_size=2",
                "--gen_kwargs=do_sample=true,temperature=0.2",
            ],
            [*base, "--tasks=nothing"],
        ],
    )
    assert done[0] == 0, done
    found = programs.last_json(done[1])
    assert 0 <= found["results"]["toy"]["exact_match,none"] <= 1
    assert found["n-samples"]["toy"]["effective"] == 2
    programs.check_refused(unknown, "has no task 'nothing'")
