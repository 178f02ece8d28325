"""One network decodes: every public decoder as its implementation does, and as a twin in plain Python."""

import dataclasses

import jax
import numpy as np
import pytest

from ssmd_jax.model import pretrained
from ssmd_jax.sampling import keys
from ssmd_jax.sampling.dual import commit, decode, feeding, presets
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.proposal import Proposal
from tests import fixtures
from tests.model.published import DREAM, LLADA, lively_model
from tests.sampling.dual import twins

KEY = jax.random.key(0)
PROMPTS = [[3, 14, 15, 9, 2], [6, 5], [3, 5, 8, 9]]


def some_slow(names, *slow: str) -> list:
    """The names; those that end in one of `slow` are run by `make test-slow` alone."""
    return [pytest.param(name, marks=pytest.mark.slow) if name.endswith(slow) else name for name in names]


# Expected output -> (decoder, forwards, positions); few sizes are compiled where the number of them changes nothing.
PUBLISHED = {
    "llada_k2": (presets.llada(32, 8, 16), 16, 688),
    # The public code feeds both halves as one batch and counts 32.
    "llada_cfg05": (presets.llada(32, 8, 32, guidance=0.5), 64, 2752),
    "fastdllm_plain_topk32": (presets.fast_dllm(32, 8, "none", commit.Fixed(), steps=32), 32, 1376),
    "fastdllm_plain_thr09": (presets.fast_dllm(32, 8, "none"), 32, 1376),
    "fastdllm_prefix_topk16": (
        DecodeConfig(32, 8, 16, feeding=feeding.Prefix(buckets=1)),
        16,
        412,
    ),
    "fastdllm_prefix_thr09": (presets.fast_dllm(32, 8, "prefix"), 32, 732),
    "fastdllm_dual_topk32": (presets.fast_dllm(32, 8, "dual", commit.Fixed(), steps=32), 32, 396),
    "fastdllm_dual_thr05": (presets.fast_dllm(32, 8, "dual", commit.Threshold(0.5)), 18, 284),
    "dkvdecode_r2": (DecodeConfig(32, 16, 32, feeding=feeding.Settled(2, buckets=1)), 32, 998),
    "dkvdecode_r8": (DecodeConfig(32, 16, 32, feeding=feeding.Settled(8, buckets=2)), 32, 686),
}


@pytest.mark.parametrize("name", some_slow(PUBLISHED, "plain_topk32", "prefix_topk16", "dkvdecode_r2"))
def test_public_implementations(name, tmp_path):
    folder, expected = fixtures.llada_tiny(tmp_path)
    config, forwards, positions = PUBLISHED[name]
    found = decode.sample(pretrained.load(folder, dtype="float32"), KEY, config, expected["prompt"])
    np.testing.assert_array_equal(found.tokens, expected[name][:, 11:])
    assert (found.drafter_forwards, found.drafter_positions) == (forwards, positions)
    assert (found.verifier_forwards, found.drafter_passes) == (0, forwards // config.cost)


# Name -> (network, decoder, choice of the twin, score of the twin).
TWINS = {
    "prefix": (LLADA, DecodeConfig(12, 4, 6, feeding=feeding.Prefix(buckets=2)), twins.fixed, "confidence"),
    "dual": (LLADA, presets.fast_dllm(12, 4, "dual", commit.Threshold(0.3)), twins.threshold(0.3), "confidence"),
    # A block is finished by its first pass, and a second one spent.
    "paper": (LLADA, presets.fast_dllm(8, 4, commit=commit.Threshold(0), paper=True), twins.threshold(0), "confidence"),
    "factor": (LLADA, presets.fast_dllm(12, 4, "none", commit.Factor(2.0)), twins.factor(2.0), "confidence"),
    "settled": (LLADA, DecodeConfig(12, 6, 12, feeding=feeding.Settled(4, buckets=2)), twins.fixed, "confidence"),
    "dream": (DREAM, presets.dream(10, 5), twins.timesteps, "entropy"),
    "dream prefix": (
        DREAM,
        DecodeConfig(8, 4, 6, feeding=feeding.Prefix(1), commit=commit.Timesteps(), proposal=Proposal(score="entropy")),
        twins.timesteps,
        "entropy",
    ),
    "dream dual": (DREAM, presets.fast_dllm(12, 4, "dual", commit.Threshold(0.3)), twins.threshold(0.3), "confidence"),
    "dream decode": (DREAM, presets.dkv_dream(10, 10, "decode", 3), twins.timesteps, "entropy"),
    "dream un_right": (
        DREAM,
        presets.dkv_dream(10, 10, "decode", 3, "un_right", proposal=Proposal(score="margin")),
        twins.timesteps,
        "margin",
    ),
    "dream right": (DREAM, presets.dkv_dream(10, 10, "decode", 4, "right"), twins.timesteps, "entropy"),
    "dream prefill": (DREAM, presets.dkv_dream(10, 10, "prefill"), twins.timesteps, "entropy"),
    "dream pd": (DREAM, presets.dkv_dream(10, 10, "pd", 3), twins.timesteps, "entropy"),
}


@pytest.mark.parametrize("name", some_slow(TWINS, "right", "dream prefix", "dream decode"))
def test_twin(name):
    """A batch of prompts of different lengths: each row as the twin, which knows of no batch and no padding."""
    network, config, choose, score = TWINS[name]
    model = lively_model(network)
    found = decode.sample(model, KEY, config, PROMPTS)
    # Texts differ, and have many tokens: what is cached and what is fed shows.
    assert len({tuple(row) for row in np.asarray(found.tokens)}) > 1 and len(np.unique(found.tokens)) > 5
    for row, prompt in enumerate(PROMPTS):
        tokens, forwards, positions = twins.decode(model, prompt, config, choose, score)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        assert (found.drafter_forwards[row], found.drafter_positions[row]) == (forwards, positions)


def test_budget_is_a_hard_bound():
    """One program for all budgets; what a block's last pass finds masked it commits, as the twin does."""
    model, config = lively_model(LLADA), DecodeConfig(12, 4, 12, budget=100)
    sample = lambda budget: decode.sample(model, KEY, dataclasses.replace(config, budget=budget), PROMPTS)
    sample(100)
    programs = decode._sample._cache_size()
    for budget in (3, 5, 11, 100):
        found = sample(budget)
        assert (found.drafter_forwards == min(budget, 12)).all() and (found.tokens != LLADA.mask_id).all()
        for row, prompt in enumerate(PROMPTS):
            tokens, _, _ = twins.decode(model, prompt, config, twins.fixed, budget=budget)
            np.testing.assert_array_equal(found.tokens[row], tokens)
    assert decode._sample._cache_size() == programs


def test_budget_where_vectors_are_not_computed():
    """A shifted network whose settled positions predict masked ones: the last pass feeds them all the same."""
    for budget in (2, 3):
        found = decode.sample(
            lively_model(DREAM), KEY, presets.dkv_dream(8, 8, "decode", 8, "right", budget=budget), PROMPTS
        )
        assert (found.drafter_forwards == budget).all() and (found.tokens != DREAM.mask_id).all()


@pytest.mark.slow
def test_temperature_rows_alone_and_padding():
    """With noise in tokens and positions: a row is the same alone under its own key, and under more padding."""
    model = lively_model(LLADA)
    proposal = Proposal(temperature=0.8, top_p=0.9, position_temperature=0.5)
    config = DecodeConfig(12, 6, 6, feeding=feeding.Settled(3, buckets=1), proposal=proposal)
    prompts = [*PROMPTS, []]
    batch = decode.sample(model, KEY, config, prompts, prompt_length=5)
    for row, prompt in enumerate(prompts):
        alone = decode.sample(model, jax.random.fold_in(KEY, row)[None], config, [prompt], prompt_length=7)
        np.testing.assert_array_equal(batch.tokens[row], alone.tokens[0])
        assert batch.drafter_positions[row] == alone.drafter_positions[0]
    assert len({tuple(row) for row in np.asarray(batch.tokens)}) == 4


@pytest.mark.slow
def test_end_of_text():
    """Stopping at the end of text gives the full run, cut there, for less; a row that has ended counts no more."""
    model = lively_model(LLADA)
    config = presets.fast_dllm(12, 4, "dual", commit.Fixed())
    full = decode.sample(model, KEY, config, PROMPTS)
    eos = int(full.tokens[0, 5])
    short = decode.sample(model, KEY, dataclasses.replace(config, eos_id=eos), PROMPTS)
    for row in range(3):
        text = list(np.asarray(full.tokens[row]))
        end = text.index(eos) + 1 if eos in text else 12
        np.testing.assert_array_equal(short.tokens[row], text[:end] + [eos] * (12 - end))
        assert short.num_tokens[row] == end
    assert short.drafter_forwards[0] < 12 and (short.drafter_forwards <= full.drafter_forwards).all()


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 2])
def test_greedy_twin(window):
    """Given the random orders, which a row's own key draws."""
    model, config = lively_model(LLADA), presets.dkv_greedy(12, 6, 8, 3, window)
    found = decode.sample(model, KEY, config, PROMPTS)
    row_keys = keys.stream(keys.row_keys(KEY, 3), keys.ORDER)
    for row, prompt in enumerate(PROMPTS):
        order = [np.asarray(jax.random.uniform(jax.random.fold_in(row_keys[row], n), (6,))) for n in range(2)]
        tokens, forwards, positions = twins.decode(model, prompt, config, twins.fixed, order=order)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        assert (found.drafter_forwards[row], found.drafter_positions[row]) == (forwards, positions)


def test_bad_arguments():
    model = lively_model(LLADA)
    config = DecodeConfig(12, 4)
    for prompts, fields, message in (
        ([], {}, "at least one prompt"),
        ([[1, 23]], {}, r"token 23, outside the vocabulary 0\.\.22"),
        ([[1, 21]], {}, "has the mask token 21"),
        ([[1.5]], {}, "sequence of token ids"),
        ([[1, 2, 3]], {"prompt_length": 2}, "more than prompt_length 2"),
        ([[1, 2, 3]], {"prompt_length": 8.0}, "prompt_length must be a whole number, got 8.0"),
        ([[1] * 53], {}, "make 65, more than the 64"),
    ):
        with pytest.raises(ValueError, match=message):
            decode.sample(model, KEY, config, prompts, **fields)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode.sample(lively_model(DREAM), KEY, config, [[1], []])
    for fields, message in (
        ({"gen_length": 0}, "gen_length must be a whole number"),
        ({"block_length": 5}, "not divisible by block_length 5"),
        ({"steps": 4}, "steps 4 must be a multiple of the 3 blocks"),
        ({"steps": 15}, "no more than gen_length"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
        ({"budget": 2}, "budget 2 pays no pass for each of the 3 blocks"),
        ({"feeding": feeding.Greedy()}, "it needs the score 'random'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **fields)
    for make, message in (
        (lambda: feeding.Settled(0), "refresh must be"),
        (lambda: feeding.Greedy(2, -1), "window must be"),
        (lambda: feeding.ShiftedSettled(2, "left"), "shift_type must be one of"),
        (lambda: Proposal(score="best"), "score must be one of"),
        (lambda: Proposal(top_p=0.0), "top_p must lie"),
        (lambda: Proposal(top_k=-1), "top_k must be"),
        (lambda: Proposal(temperature=-1.0), "temperature must be"),
        (lambda: presets.fast_dllm(8, 4, "both"), "cache must be one of none, prefix, dual"),
        (lambda: presets.dkv_dream(8, 4, "both"), "cache must be one of decode"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
