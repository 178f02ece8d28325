"""The adapter answers lm-evaluation-harness as it asks: its own tasks, its own requests."""

import json

import pytest

pytest.importorskip("lm_eval", reason="the adapter needs lm-evaluation-harness")

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from ssmd_jax.evaluation.reasoning import generator, harness, likelihood
from ssmd_jax.evaluation.reasoning.likelihood import Pair
from tests.evaluation.reasoning import small

TASKS = {
    "toy_words": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "toy_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["A", "BC", "D"],
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}],
    },
    "toy_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def model(**fields) -> harness.HarnessModel:
    options = {name: fields.pop(name) for name in ("mc_num", "check_greedy", "seed") if name in fields}
    machine = small.generator(**{"steps": 6, "batch_size": 2, "pad_to": 16, **fields})
    return harness.HarnessModel(machine, **{"mc_num": 4, **options})


def requests(kind, arguments):
    return [Instance(kind, {}, one, n) for n, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tasks with three questions on disk."""
    folder = tmp_path_factory.mktemp("tasks")
    lm, questions = model(), ["one and 1?", "two?", "three?"]
    texts = lm.generate_until(requests("generate_until", [(q, {"until": ["\n"]}) for q in questions]))
    # Two of three answers are those that the model gives.
    texts[0] += "!"
    rows = [{"question": q, "answer": text} for q, text in zip(questions, texts, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, fields in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        task = {"task": name, **source, "test_split": "test", **fields, "metadata": {"version": 1}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.mark.slow
def test_tasks_of_the_harness(folder):
    manager = TaskManager(include_path=str(folder))
    found = simple_evaluate(model=model(), tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    assert found["results"]["toy_words"]["exact_match,none"] == pytest.approx(2 / 3)
    assert 0 <= found["results"]["toy_choice"]["acc,none"] <= 1
    assert found["results"]["toy_rolling"]["bits_per_byte,none"] > 0
    assert {name: n["effective"] for name, n in found["n-samples"].items()} == dict.fromkeys(TASKS, 3)


def test_it_is_registered():
    assert get_model("ssmd_jax") is harness.HarnessModel


def test_texts_end_before_the_first_stop():
    lm = model(temperature=0.7)
    whole = lm.generate_until(requests("generate_until", [("two?", {}), ("333", {})]))
    assert all(len(text) > 1 for text in whole)
    stopped = lm.generate_until(requests("generate_until", [("two?", {}), ("333", {"until": ["never", whole[1][1]]})]))
    # Another stop is another request, with randomness of its own: it is asked for at temperature 0 below.
    assert stopped[0] == whole[0]
    lm = model()
    (whole,) = lm.generate_until(requests("generate_until", [("333", {})]))
    for until, expected in [(["never", whole[1]], whole.split(whole[1])[0]), (whole[1], whole.split(whole[1])[0])]:
        assert lm.generate_until(requests("generate_until", [("333", {"until": until})])) == [expected]
    assert lm.generate_until(requests("generate_until", [("333", {"max_gen_toks": 2})])) == [whole[:2]]


def test_repeats_differ_and_runs_do_not():
    lm = model(temperature=1.0)
    (one,) = requests("generate_until", [("two?", {"until": []})])
    texts = lm.generate_until([one] * 6)
    assert len(set(texts)) > 1
    assert lm.generate_until([one] * 6) == texts
    assert lm.generate_until([one]) == texts[:1]
    assert model(temperature=1.0, seed=1).generate_until([one] * 6) != texts


def test_loglikelihood_is_the_estimate():
    lm = model(mc_num=6)
    asked = [("ab ", "c"), ("", "xyz"), ("q", "12")]
    found = lm.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    # The harness moves a context's last spaces, and puts the start token where there is none.
    pairs = [Pair([*b"ab"], [*b" c"]), Pair([258], [*b"xyz"]), Pair([*b"q"], [*b"12"])]
    keys = [generator.key_of(0, f"{pair.context} {pair.target}") for pair in pairs]
    expected = likelihood.estimates(lm.generator.model, pairs, keys, samples=6, batch_size=3, pad_to=4)
    assert [value for value, _ in found] == pytest.approx([one.value for one in expected], abs=1e-4)
    assert lm.loglikelihood(requests("loglikelihood", asked[1:2]), disable_tqdm=True) == [
        (pytest.approx(found[1][0], abs=1e-4), found[1][1])
    ]


def test_greedy_or_not():
    lm = model(mc_num=1, steps=None, block_length=1, gen_length=1, stop=False)
    context = "two?"
    best = lm.generator.tokenizer.decode(
        next(iter(generator.generate(lm.generator, [[*b"two?"]], small.keys(1))))[0][1].tokens
    )
    found = lm.loglikelihood(requests("loglikelihood", [(context, best), (context, "~")]), disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]
    lm = model(mc_num=1, check_greedy=False)
    assert lm.loglikelihood(requests("loglikelihood", [(context, best)]), disable_tqdm=True)[0][1] is False


def test_rolling_adds_up_windows(monkeypatch):
    lm = model(mc_num=3)
    (whole,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("abcdefgh",)]))
    (same, one) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("abcdefgh",), ("a",)]))
    assert same == pytest.approx(whole, abs=1e-4)
    assert one < 0
    asked = []
    monkeypatch.setattr(type(lm.generator.model), "max_length", 6)
    monkeypatch.setattr(lm, "_estimates", lambda pairs, _: asked.extend(pairs) or [1.0] * len(pairs))
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("abcdefgh",), ("",)])) == [2.0, 0.0]
    assert [bytes(pair.target) for pair in asked] == [b"abcde", b"fgh"]
    assert all(len(pair.context) + len(pair.target) <= 6 for pair in asked)


def test_refused():
    lm = model()
    ask = lambda context, wanted: lm.generate_until(requests("generate_until", [(context, wanted)]))
    with pytest.raises(ValueError, match=r"the task asks for temperature 0.7, and the decoder has 0.0: give"):
        ask("x", {"do_sample": True, "temperature": 0.7})
    assert ask("x", {"do_sample": False, "temperature": 1.0, "top_p": 0.9, "top_k": None})
    with pytest.raises(ValueError, match=r"the task asks for top_p 0.9, and the decoder has 1.0"):
        ask("x", {"do_sample": True, "top_p": 0.9})
    with pytest.raises(
        ValueError, match=r"temperature 0.0, and the decoder has 0.7: .* do_sample=true,temperature=0.7"
    ):
        model(temperature=0.7).generate_until(requests("generate_until", [("x", {"do_sample": False})]))
    with pytest.raises(ValueError, match="the prompt of request 0 has 2040 tokens"):
        ask("x" * 2040, {})
    with pytest.raises(ValueError, match="batch_size must be a whole number, got 'auto'"):
        harness.HarnessModel("folder", batch_size="auto")


@pytest.mark.slow
def test_an_unknown_task():
    with pytest.raises(ValueError, match="no task 'nothing': give its folder by --include_path"):
        harness.evaluate(["nothing"], model="folder")


def test_from_the_arguments_of_the_command_line(tmp_path):
    folder = small.write_model(tmp_path / "model", chat=True)
    lm = harness.HarnessModel.create_from_arg_string(
        f"model={folder},sampler=dual,gen_length=8,block_length=4,threshold=0.5,mc_num=2,dtype=float32",
        {"batch_size": 2, "max_batch_size": None, "device": None},
    )
    assert lm.generator.config.gen_length == 8 and lm.generator.batch_size == 2 and lm.mc_num == 2
    history = [{"role": "user", "content": "1?"}]
    assert lm.apply_chat_template(history) == "<bos>[user]1?[assistant]"
    assert lm.chat_template(True) == small.TEMPLATE
    assert len(lm.tokenizer_name) == 64
    # The start is in the template; it is not put there twice.
    assert lm.tok_encode("<bos>[user]")[:2].count(258) == 1
