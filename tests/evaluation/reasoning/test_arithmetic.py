"""The points of a pair of networks: counts against a dumb twin, resumption, bad input, margins and the frontier."""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from configs import arithmetic as experiments
from ssmd_jax.data import arithmetic as problems
from ssmd_jax.data import characters
from ssmd_jax.evaluation.reasoning import arithmetic, decoders, frontier
from ssmd_jax.evaluation.reasoning.generator import Generated
from ssmd_jax.model import pretrained
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.sampling.dual import decode, dualdiffusion, presets, rules
from ssmd_jax.sampling.dual.commit import Threshold
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig
from ssmd_jax.training import masked_lm

CONFIG = masked_lm.Experiment.from_config_dict(experiments.get_config("tiny")).model


def network(seed: int) -> MaskedLanguageModel:
    return MaskedLanguageModel(masked_lm.init_params(CONFIG, jax.random.key(seed)), CONFIG)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("drafter", "verifier")):
        pretrained.save(root / name, network(seed))
    return str(root / "drafter"), str(root / "verifier")


def generated(text: str, **counts) -> Generated:
    tokens = np.array([*characters.encode(text), characters.EOS_ID], np.int32)
    zeros = dict.fromkeys(("drafter_forwards", "verifier_forwards", "drafter_positions", "verifier_positions"), 0)
    return Generated(tokens, zeros | {"num_tokens": len(tokens)} | counts, 0.5)


def test_summary_counts_what_a_dumb_twin_counts():
    asked = list(problems.problems("test", 4))
    right = [problem.solution for problem in asked]
    texts = [right[0], f"1+1=3\nAnswer: {asked[1].answer}", right[2].replace("Answer: ", "Answer: 9"), "Answer:"]
    made = [
        generated(text, drafter_forwards=n, verifier_forwards=1, drafter_positions=10 * n, verifier_positions=176)
        for n, text in enumerate(texts)
    ]
    found = arithmetic.summary(made, asked, 2e9, 5e9)
    assert (found["accuracy"], found["exact"], found["seconds"]) == (0.5, 0.25, 0.5)
    assert found["accuracy_standard_error"] == pytest.approx(math.sqrt(0.25 / 3))
    assert (found["drafter_forwards"], found["verifier_forwards"], found["forwards"]) == (1.5, 1.0, 2.5)
    assert found["gflop"] == pytest.approx(2 * 15 + 5 * 176)
    assert found["answer_tokens"] == np.mean([len(text) + 1 for text in texts])
    json.dumps(found)


def test_points_are_what_the_samplers_give_one_problem_at_a_time():
    """In batches of four with padding, against single rows without; forwards, positions and texts."""
    small = dataclasses.replace(CONFIG, mlp_width=16)
    drafter = MaskedLanguageModel(masked_lm.init_params(small, jax.random.key(0)), small)
    pair, asked = arithmetic.Pair(drafter, network(1)), list(problems.problems("test", 3))
    shapes = {"gen_length": 16, "block_length": 8, "prompt_length": 112, "batch_size": 4, "seed": 0}
    alone = arithmetic.Setting("verifier alone", "verifier", "llada", {"steps": 4})
    both = arithmetic.Setting(
        "pair", "both", "dualdiffusion", {"drafter": "dual", "threshold": 0.02, "rule": "ratio", "draft_steps": 2}
    )
    drafting = presets.fast_dllm(16, 8, commit=Threshold(0.02), eos_id=characters.EOS_ID)
    dual = DualConfig(drafting, draft_steps=2, rule=rules.Ratio())
    cost = [arithmetic.forward_flops(model) for model in pair]
    parameters = sum(x.size for x in jax.tree.leaves(pair.drafter.params))
    assert cost[0] == 2 * (parameters - CONFIG.vocab_size * CONFIG.width) < cost[1]
    for setting in (alone, both, both._replace(networks="shared")):
        made, flops = [], 0.0
        for problem in asked:
            key, prompt = jax.random.key(9), [characters.encode(problem.question)]
            if setting is alone:
                one = decode.sample(pair.verifier, key, presets.llada(16, 8, 4, eos_id=characters.EOS_ID), prompt)
                flops += cost[1] * int(one.drafter_positions[0])
            else:
                drafter, cheap = (pair.drafter, cost[0]) if setting is both else (None, cost[1])
                one = dualdiffusion.sample(pair.verifier, key, dual, prompt, drafter=drafter)
                flops += cheap * int(one.drafter_positions[0]) + cost[1] * int(one.verifier_positions[0])
            made.append(one)
        found = arithmetic.measure(pair, setting, asked, **shapes)
        for name in ("drafter_forwards", "verifier_forwards"):
            assert found[name] == pytest.approx(np.mean([int(getattr(one, name)[0]) for one in made]))
        assert found["answer_tokens"] == pytest.approx(np.mean([int(one.num_tokens[0]) for one in made]))
        assert found["gflop"] == pytest.approx(flops / 3e9) and found["seconds"] > 0


def test_every_setting_is_one_of_the_decoders():
    found = arithmetic.settings()
    assert len({setting.name for setting in found}) == len(found)
    for setting in found:
        decoders.make(setting.sampler, {"gen_length": 64, "block_length": 32, **setting.arguments}, characters.EOS_ID)
        assert (setting.networks in ("both", "shared")) == (setting.sampler == decoders.DUAL)
    used = {setting.arguments["rule"] for setting in found if setting.networks == "both"}
    assert used == set(rules.RULES) - {"no_verification"}, "that one is the drafter alone"


def test_a_run_is_taken_up_where_it_stopped(folders, tmp_path, monkeypatch):
    counter = itertools.count()

    def fake(pair, setting, asked, **_):
        number = next(counter)
        if number == 3:
            raise KeyboardInterrupt
        return arithmetic.summary([generated(problem.solution) for problem in asked], asked, 1.0, 1.0) | {
            "seconds": 1.0 + number
        }

    monkeypatch.setattr(arithmetic, "measure", fake)
    said = []
    run = lambda **fields: arithmetic.evaluate(
        *folders, tmp_path / "points", num_problems=5, dtype="float32", say=said.append, **fields
    )
    with pytest.raises(KeyboardInterrupt):
        run(methods=["drafter alone", "exact_match"])
    assert len(said) == 3
    found = run(methods=["drafter alone", "exact_match"])
    # One point was lost; three are not measured again, of eleven.
    assert len(found["points"]) == 11 and len(said) == 11 and next(counter) == 12
    assert all(point["accuracy"] == 1 for point in found["points"].values())
    assert json.loads((tmp_path / "points" / arithmetic.RESULTS).read_text()) == found
    more = run(methods=["dkv"])
    assert len(more["points"]) == 14 and len(more["margins"]) == 7 * 3
    with pytest.raises(ValueError, match="was made with num_problems 5, not 6"):
        arithmetic.evaluate(*folders, tmp_path / "points", num_problems=6, dtype="float32", methods=["dkv"])


def test_bad_input(folders, tmp_path):
    with pytest.raises(ValueError, match=r"no method is called greedy: there are drafter alone, verifier alone"):
        arithmetic.evaluate(*folders, tmp_path, methods=["greedy"])
    with pytest.raises(ValueError, match="num_problems"):
        arithmetic.evaluate(*folders, tmp_path, num_problems=0)
    with pytest.raises(ValueError, match=r"no config.json"):
        arithmetic.evaluate(tmp_path / "none", folders[1], tmp_path / "points")
    other = dataclasses.replace(CONFIG, mask_id=3)
    pretrained.save(tmp_path / "other", MaskedLanguageModel(network(0).params, other))
    with pytest.raises(ValueError, match=r"other has 104 tokens and is none of the arithmetic experiment"):
        arithmetic.evaluate(folders[0], tmp_path / "other", tmp_path / "points")


def point(name: str, accuracy: float, seconds: float, networks: str = "verifier", error: float = 0.01):
    return {
        "id": name,
        "method": name[0],
        "networks": networks,
        "accuracy": accuracy,
        "accuracy_standard_error": error,
        "seconds": seconds,
        "gflop": seconds,
        "forwards": 10 * seconds,
    }


def test_margins_and_frontier():
    points = [
        point("a1", 0.5, 1.0),
        point("a2", 0.4, 2.0),
        point("b1", 0.9, 4.0),
        point("c1", 0.7, 3.0, "both", 0.02),
        point("c2", 0.6, 0.5, "both"),
        point("c3", 0.8, 4.0, "shared"),
    ]
    found = frontier.margins(points)
    assert len(found) == 9
    assert found["c1: seconds"] == {
        "margin": pytest.approx(0.2),
        "standard_error": math.hypot(0.02, 0.01),
        "over": "a1",
    }
    assert found["c2: gflop"] == {"margin": None, "standard_error": None, "over": None}
    assert found["c3: seconds"]["margin"] == pytest.approx(-0.1) and found["c3: seconds"]["over"] == "b1"
    assert [each["id"] for each in frontier.frontier(points, "seconds")] == ["c2", "c1", "b1"]
    tied = [point("a1", 0.5, 1.0), point("a2", 0.7, 1.0), point("a3", 0.7, 2.0)]
    assert [each["id"] for each in frontier.frontier(tied, "seconds")] == ["a2"]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    points = [point("a1", 0.5, 1.0), point("a2", 0.6, 2.0, error=None), point("c1", 0.7, 3.0, "both")]
    frontier.plot(points, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
