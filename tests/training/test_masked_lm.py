"""Training in the layout of LLaDA: its loss against a twin, what a step and a run do, and what a folder then holds."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import arithmetic as experiments
from ssmd_jax.data import arithmetic, characters
from ssmd_jax.evaluation.reasoning import answers
from ssmd_jax.model import pretrained
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.sampling.dual import decode, presets
from ssmd_jax.training import masked_lm, optimizer
from tests.model.published import Twin


def config(**fields):
    made = experiments.get_config("tiny")
    made.update({"num_problems": 4, "num_held_out": 8, "num_steps": 4, "log_every": 2, "batch_size": 4})
    made.update(fields)
    return made


EXPERIMENT = masked_lm.Experiment.from_config_dict(config())


def some_rows(count: int = 3):
    found = list(arithmetic.problems("train", count, EXPERIMENT.seed, EXPERIMENT.digits))
    tokens_NxL, start_N = arithmetic.rows(found, EXPERIMENT.prompt_length, EXPERIMENT.gen_length)
    return jnp.asarray(tokens_NxL, jnp.int32), jnp.asarray(start_N)


def test_loss_is_that_of_a_dumb_twin():
    """Row by row, without padding, in float64: cross-entropy of masked tokens over the probability of their mask."""
    tokens_BxL, start_B = some_rows(2)
    params = masked_lm.init_params(EXPERIMENT.model, jax.random.key(1))
    masked_BxG, ratio_Bx1 = masked_lm.draw_masks(jax.random.key(2), (2, 64), 1e-3)
    shown_BxG = masked_lm.corrupt(jax.random.key(3), tokens_BxL[:, -64:], 0.5)
    seen = [np.where(masked_BxG, characters.MASK_ID, x) for x in (tokens_BxL[:, -64:], shown_BxG)]
    assert masked_BxG.any() and (seen[0] != seen[1]).any()

    def twin(seen_BxG, is_shown_learnt: bool) -> float:
        total, arrays = 0.0, map(np.asarray, (tokens_BxL, start_B, masked_BxG, ratio_Bx1, seen_BxG))
        for tokens_L, start, masked_G, ratio, seen_G in zip(*arrays, strict=True):
            row = [int(token) for token in tokens_L[start:]]
            answer, question = row[-64:], row[:-64]
            logits = Twin(MaskedLanguageModel(params, EXPERIMENT.model)).forward(question + seen_G.tolist())
            for n in range(64):
                row_V = logits[len(question) + n]
                nll = np.log(np.exp(row_V - row_V.max()).sum()) + row_V.max() - row_V[answer[n]]
                total += nll / ratio[0] if masked_G[n] else nll * is_shown_learnt
        return total / (2 * 64)

    given = (params, EXPERIMENT.model, tokens_BxL, start_B, masked_BxG, ratio_Bx1)
    np.testing.assert_allclose(masked_lm.masked_loss(*given), twin(seen[0], False), rtol=1e-4)
    np.testing.assert_allclose(masked_lm.masked_loss(*given, shown_BxG), twin(seen[1], True), rtol=1e-4)


def test_wrong_tokens():
    """A share of every second row, each from its own place in another row."""
    answers_BxG = jnp.arange(400)[None] + 1000 * jnp.arange(64)[:, None]
    shown_BxG = np.asarray(masked_lm.corrupt(jax.random.key(0), answers_BxG, 0.2))
    np.testing.assert_array_equal(shown_BxG % 1000, np.broadcast_to(np.arange(400), (64, 400)))
    is_wrong_BxG = shown_BxG != answers_BxG
    assert not is_wrong_BxG[::2].any()
    assert len(np.unique(shown_BxG[is_wrong_BxG] // 1000)) == 64
    # A token may come from its own row.
    assert is_wrong_BxG[1::2].mean() == pytest.approx(0.2 * 63 / 64, abs=5 * np.sqrt(0.2 * 0.8 / (32 * 400)))
    np.testing.assert_array_equal(masked_lm.corrupt(jax.random.key(0), answers_BxG, 0.0), answers_BxG)


def test_corrections_are_counted(monkeypatch):
    """Of a network that repeats what it sees no wrong token is corrected, and every right one kept; of one that knows
    the answers, all."""

    def repeating(params, config, tokens_BxL, start_B, seen_BxG):
        return jax.nn.one_hot(seen_BxG, characters.VOCAB_SIZE)

    def knowing(params, config, tokens_BxL, start_B, seen_BxG):
        return jax.nn.one_hot(tokens_BxL[:, -64:], characters.VOCAB_SIZE)

    for said, wanted in ((repeating, (0.0, 1.0)), (knowing, (1.0, 1.0))):
        monkeypatch.setattr(masked_lm, "answer_logits", said)
        masked_lm._corrections.clear_cache()
        assert masked_lm.corrections({}, EXPERIMENT, masked_lm.held_out(EXPERIMENT)) == wanted
    masked_lm._corrections.clear_cache()


@pytest.mark.parametrize(("corrupted", "least", "most"), [(0.1, 0.9, 1.0), (0.0, 0.0, 0.4)])
def test_a_network_learns_to_correct_what_it_sees(corrupted, least, most):
    """Shown one wrong token in an answer known by heart, it says the right one; by LLaDA's loss alone it does not."""
    fields = {"num_steps": 240, "log_every": 240, "num_problems": 2, "batch_size": 16, "corrupted": corrupted}
    made = config(**fields, ema_decay=0.0)
    made.model.width, made.model.head_dim, made.model.mlp_width = 64, 32, 128
    made.optimizer.learning_rate, made.optimizer.warmup_steps = 1e-2, 20
    experiment = masked_lm.Experiment.from_config_dict(made)
    tokens_BxL, start_B = (np.asarray(x) for x in some_rows(2))
    state = masked_lm.init_state(jax.random.key(0), experiment=experiment)
    rows = (jnp.asarray(tokens_BxL, jnp.uint8), jnp.asarray(start_B))
    state, _ = masked_lm.train_steps(state, *rows, jax.random.key(1), experiment=experiment)
    # Wherever the two answers differ, one of them with the other's token there, and then with a mask.
    row_N, place_N = np.nonzero(tokens_BxL[:, -64:] != tokens_BxL[::-1, -64:])
    answers_NxG, each_N = tokens_BxL[row_N, -64:], np.arange(len(row_N))

    def share_right(token_N) -> float:
        seen_NxG = answers_NxG.copy()
        seen_NxG[each_N, place_N] = token_N
        logits = masked_lm.answer_logits(state.params, experiment.model, tokens_BxL[row_N], start_B[row_N], seen_NxG)
        return np.mean(logits[each_N, place_N].argmax(axis=-1) == answers_NxG[each_N, place_N])

    assert least <= share_right(tokens_BxL[1 - row_N, place_N - 64]) <= most
    # Both know it by heart.
    assert share_right(characters.MASK_ID) > 0.9


def test_muon_takes_every_kernel_of_the_blocks():
    """Each as the matrices it is made of, as in a trunk of this layout (tests/model/test_llada_trunk.py)."""
    params = masked_lm.init_params(EXPERIMENT.model, jax.random.key(0))
    found = optimizer.muon_dimensions(params)
    assert found["embedding"] is None and found["head"] is None
    inside = optimizer.muon_dimensions({"network": params})["network"]
    for part in ("attention", "mlp"):
        kernels = found["blocks_0"][part]
        assert None not in jax.tree.leaves(kernels, is_leaf=lambda x: x is None)
        assert kernels == inside["blocks_0"][part]
    assert found["blocks_0"]["mlp"]["gate_up"].reduction_axis == (-3,)
    assert found["blocks_0"]["attention"]["qkv"].output_axis == (-3, -1)


def test_masks():
    """Times cover (0, 1) evenly within a batch; tokens are masked with the probability that they are weighted by."""
    masked_BxG, ratio_Bx1 = masked_lm.draw_masks(jax.random.key(0), (512, 400), 0.01)
    spread = np.diff(np.sort(np.asarray(ratio_Bx1)[:, 0]))
    np.testing.assert_allclose(spread, 0.99 / 512, rtol=1e-2)
    assert ratio_Bx1.min() >= 0.01 and ratio_Bx1.max() <= 1
    ratio_B = np.asarray(ratio_Bx1)[:, 0]
    deviation_B = (np.asarray(masked_BxG).mean(1) - ratio_B) / np.sqrt(ratio_B * (1 - ratio_B) / 400 + 1e-6)
    assert abs(deviation_B).max() < 5 and abs(float(deviation_B.mean())) < 0.2
    other, _ = masked_lm.draw_masks(jax.random.key(1), (512, 400), 0.01)
    assert not np.array_equal(masked_BxG, other)


def test_a_call_is_its_steps_one_by_one():
    """The scan against a loop in Python: keys come from the step's number, so that two calls of two are one of four."""
    rows = some_rows(4)
    key, fresh = jax.random.key(3), lambda: masked_lm.init_state(jax.random.key(0), experiment=EXPERIMENT)
    one_by_one = dataclasses.replace(EXPERIMENT, log_every=1)
    singly, losses = fresh(), []
    for _ in range(4):
        singly, loss = masked_lm.train_steps(singly, *rows, key, experiment=one_by_one)
        losses.append(float(loss))
    twice, first = masked_lm.train_steps(fresh(), *rows, key, experiment=EXPERIMENT)
    twice, second = masked_lm.train_steps(twice, *rows, key, experiment=EXPERIMENT)
    np.testing.assert_allclose([first, second], [np.mean(losses[:2]), np.mean(losses[2:])], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), twice.params, singly.params)
    assert int(twice.step) == 4
    assert not np.allclose(twice.ema_params["head"], twice.params["head"], atol=1e-5)


def test_average_of_weights():
    """A dumb twin of the average, whose memory grows with the steps; none is the last weights."""
    rows, key = some_rows(4), jax.random.key(3)
    one_by_one = dataclasses.replace(EXPERIMENT, log_every=1)
    state = masked_lm.init_state(jax.random.key(0), experiment=one_by_one)
    average = np.asarray(state.params["head"], np.float64)
    for step in range(3):
        state, _ = masked_lm.train_steps(state, *rows, key, experiment=one_by_one)
        decay = min(0.999, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * np.asarray(state.params["head"])
    np.testing.assert_allclose(state.ema_params["head"], average, atol=1e-5)
    none = dataclasses.replace(one_by_one, ema_decay=0.0)
    state, _ = masked_lm.train_steps(masked_lm.init_state(key, experiment=none), *rows, key, experiment=none)
    np.testing.assert_array_equal(state.ema_params["head"], state.params["head"])


def test_a_model_learns_its_problems_and_is_read_back(tmp_path):
    """Two problems by heart, saved, loaded, decoded: the answers are right."""
    fields = {"num_steps": 240, "log_every": 120, "num_problems": 2, "batch_size": 8}
    made, lines = config(**fields, ema_decay=0.9), []
    made.model.width, made.model.head_dim, made.model.mlp_width = 64, 32, 128
    made.optimizer.learning_rate, made.optimizer.warmup_steps = 1e-2, 20
    result = masked_lm.train(made, tmp_path, say=lines.append)
    assert result["steps"] == 240 and result["loss"] < 0.2 < result["held_out_loss"]
    assert result["held_out_loss_standard_error"] is None and result["seconds_per_step"] > 0
    assert len(lines) == 3 and "step 240" in lines[-1]
    assert json.loads((tmp_path / masked_lm.RESULTS_FILE).read_text())["result"] == result
    assert (tmp_path / "tokenizer.json").exists()

    model = pretrained.load(tmp_path, dtype="float32")
    assert (model.mask_id, model.config.eos_id) == (characters.MASK_ID, characters.EOS_ID)
    assert sum(x.size for x in jax.tree.leaves(model.params)) == result["parameters"]
    found = list(arithmetic.problems("train", 2))
    prompts = [characters.encode(problem.question) for problem in found]
    drawn = decode.sample(
        model, jax.random.key(0), presets.llada(64, 32, 64, eos_id=characters.EOS_ID), prompts, prompt_length=112
    )
    texts = [characters.decode(tokens) for tokens in drawn.tokens]
    assert [answers.number(text) for text in texts] == [str(problem.answer) for problem in found]
    with pytest.raises(ValueError, match="holds a model already"):
        masked_lm.train(made, tmp_path)


@pytest.mark.parametrize("last", [2, 6])
def test_a_run_that_is_stopped_saves_its_model(tmp_path, last):
    """After the call in which the signal came; one that comes in the last call stops nothing."""
    lines = []

    def say(text):
        lines.append(text)
        if text.startswith(f"step {last}:"):
            signal.raise_signal(signal.SIGTERM)

    result = masked_lm.train(config(num_steps=6), tmp_path, say=say)
    early = last < 6
    assert (result["steps"], result["stopped_by"]) == (last, "SIGTERM" if early else None)
    assert lines[-1].startswith("SIGTERM: saving the model of step 2 of 6" if early else "step 6")
    pretrained.load(tmp_path, dtype="float32")


def test_a_loss_that_is_not_finite_saves_nothing(tmp_path, monkeypatch):
    broken = lambda state, *_, experiment: (state, jnp.float32(jnp.nan))
    monkeypatch.setattr(masked_lm, "train_steps", broken)
    with pytest.raises(FloatingPointError, match=r"loss is nan .* lower optimizer.learning_rate"):
        masked_lm.train(config(), tmp_path / "run", say=lambda text: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "parameters"), [("drafter", 4_873_472), ("verifier", 25_018_880)])
def test_sizes(size, parameters):
    """Five to twenty-five million parameters; both read the same tokens."""
    experiment = masked_lm.Experiment.from_config_dict(experiments.get_config(size).lock())
    shapes = jax.eval_shape(lambda: masked_lm.init_params(experiment.model, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters
    assert experiment.model.vocab_size == characters.VOCAB_SIZE and experiment.model.dtype == "bfloat16"
    assert f"configs/arithmetic.py:{size}" in experiments.__doc__


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_steps": 3}, "num_steps 3 is not divisible by log_every 2"),
        ({"batch_size": 0}, "batch_size"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"prompt_length": 250}, "model.max_length 256"),
        ({"least_ratio": 0.0}, "least_ratio"),
    ],
)
def test_bad_settings(fields, named):
    with pytest.raises(ValueError, match=named):
        masked_lm.Experiment.from_config_dict(config(**fields))


def test_unknown_size():
    with pytest.raises(ValueError, match=r"arithmetic.py:huge is unknown: give drafter, verifier, tiny"):
        experiments.get_config("huge")


def test_rows_of_gsm8k_stand_behind_the_problems(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "Five.\n#### 5"}) + "\n")
    without = masked_lm.training_rows(EXPERIMENT)
    tokens_NxL, start_N = masked_lm.training_rows(dataclasses.replace(EXPERIMENT, gsm8k=str(path)))
    np.testing.assert_array_equal(tokens_NxL[:-1], without.tokens_NxL)
    np.testing.assert_array_equal(start_N[:-1], without.start_N)
    assert characters.decode(tokens_NxL[-1, EXPERIMENT.prompt_length :]) == "How many?\nFive.\n#### 5"
