"""A drafter and a verifier: as the twin, in the degenerate cases, under rules that accept nothing, and in a batch."""

import dataclasses

import jax
import numpy as np
import pytest

from ssmd_jax.sampling.dual import commit, decode, dualdiffusion, feeding, presets, rules
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig
from tests.model.published import LLADA, lively_model
from tests.sampling.dual import twins

KEY = jax.random.key(0)
PROMPTS = [[3, 14, 15, 9, 2], [6, 5], [3, 5, 8, 9]]
VERIFIER = lively_model(LLADA, seed=2)
# Near enough to the verifier that some of its drafts are accepted.
NOISY = VERIFIER.replace(
    params=jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), VERIFIER.params
    )
)
SMALL = lively_model(dataclasses.replace(LLADA, num_layers=1))
PLAIN = DecodeConfig(12, 4, commit=commit.Threshold(0.27))
CACHED = presets.fast_dllm(12, 4, "dual", commit.Threshold(0.27))
SETTLED = DecodeConfig(12, 12, feeding=feeding.Settled(5, buckets=1), commit=commit.Threshold(0.27))


@dataclasses.dataclass(frozen=True)
class RejectAll:
    """The adversary."""

    needs_verifier = True
    needs_distribution = False

    def judge(self, evidence):
        return evidence.draft_Bxb, np.ones(evidence.draft_Bxb.shape, bool)


def sample(config, prompts=PROMPTS, key=KEY, drafter=None, **fields):
    return dualdiffusion.sample(VERIFIER, key, config, prompts, drafter=drafter, **fields)


# Name -> (drafter, settings, rule, its fields).
TWINS = {
    "shared, visible": (None, DualConfig(CACHED, 3, fix_up=0), "kl_divergence", {"tau": 0.15}),
    "shared, masked": (None, DualConfig(CACHED, 2, view="masked", fix_up=2), "exact_match", {}),
    "settled, visible": (None, DualConfig(SETTLED, 2), "confidence_threshold", {"tau": 0.3}),
    "settled, masked": (None, DualConfig(SETTLED, 2, view="masked"), "top_k", {"k": 1}),
    "leave one out": (None, DualConfig(CACHED, 2, view="leave_one_out"), "top_k", {"k": 1}),
    "another drafter": (NOISY, DualConfig(CACHED, 4, view="masked"), "true_kl", {"kappa": 0.2}),
    "small drafter": (SMALL, DualConfig(PLAIN, 4, view="masked", max_rejections=1), "ratio", {"alpha": 0.7}),
    "left to right": (NOISY, DualConfig(PLAIN, 3, view="masked", remask="first_rejection"), "top_k", {"k": 1}),
    "trusting": (NOISY, DualConfig(PLAIN, 2), "trust_verifier", {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "shared, masked" else name for name in TWINS]
)
def test_twin(name):
    """A batch of prompts of different lengths: each row as the twin, which knows of no batch and no padding."""
    drafter, config, rule, fields = TWINS[name]
    config = dataclasses.replace(config, rule=rules.rule(rule, **fields))
    found = sample(config, drafter=drafter)
    for row, prompt in enumerate(PROMPTS):
        choose = twins.threshold(config.drafting.commit.tau)
        drafts = VERIFIER if drafter is None else drafter
        tokens, drafted, verified, rejected = twins.dual(VERIFIER, drafts, prompt, config, rule, fields, choose)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        counts = found.drafter_forwards[row], found.verifier_forwards[row], found.rejected[row]
        assert counts == (drafted, verified, rejected)
        assert found.verifier_positions[row] == verified * (len(prompt) + 12)
    np.testing.assert_array_equal(found.accepted + found.replaced, 12)
    # Some drafts are accepted and, but by the rule that trusts, some rejected.
    assert found.accepted.sum() > 0 and (rule == "trust_verifier" or found.rejected.sum() > 0)
    assert len({tuple(row) for row in np.asarray(found.tokens)}) == 3 and len(np.unique(found.tokens)) > 5


def test_draft_only():
    """A rule that accepts every draft, one draft pass a round and no fix-up: the drafter alone, uncached."""
    config = DualConfig(PLAIN, 1, rules.TopK(LLADA.vocab_size), fix_up=0)
    found, alone = sample(config, drafter=NOISY), decode.sample(NOISY, KEY, PLAIN, PROMPTS)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_array_equal(found.drafter_forwards, alone.drafter_forwards)
    np.testing.assert_array_equal(found.verifier_forwards, alone.drafter_forwards)
    unverified = sample(dataclasses.replace(config, rule=rules.NoVerification()), drafter=NOISY)
    np.testing.assert_array_equal(unverified.tokens, alone.tokens)
    assert (unverified.verifier_forwards == 0).all()


def test_verify_only():
    """No draft passes: the verifier commits its surest tokens, so many a forward, as its own sampler does."""
    found = sample(DualConfig(PLAIN, 0, fix_up=2))
    alone = decode.sample(VERIFIER, KEY, presets.llada(12, 4, 6), PROMPTS)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    assert (found.drafter_forwards == 0).all() and (found.verifier_forwards == 6).all()
    assert (found.replaced == 12).all()


@pytest.mark.slow
def test_equal_models():
    """What an equal network drafted in one pass, it says again of the masked text."""
    config = DualConfig(PLAIN, 1, rules.ExactMatch(), view="masked", fix_up=0)
    found, alone = sample(config, drafter=VERIFIER), decode.sample(VERIFIER, KEY, PLAIN, PROMPTS)
    assert (found.rejected == 0).all() and (found.accepted == 12).all()
    np.testing.assert_array_equal(found.tokens, alone.tokens)


@pytest.mark.parametrize("remask", dualdiffusion.REMASKS)
def test_progress_whatever_the_rule_says(remask):
    """Nothing is ever accepted and no fix-up asked for: one token of the verifier's a round."""
    found = sample(DualConfig(PLAIN, 2, RejectAll(), remask=remask, fix_up=0))
    assert (found.iterations == 12).all() and (found.replaced == 12).all() and (found.accepted == 0).all()
    assert (found.tokens != LLADA.mask_id).all()


def test_rejections_are_bounded():
    found = sample(DualConfig(PLAIN, 4, RejectAll(), fix_up=0, max_rejections=1))
    assert (found.iterations < 12).all() and (found.replaced == 12).all()


@pytest.mark.slow
@pytest.mark.parametrize("view", ["masked", "leave_one_out"])
@pytest.mark.parametrize("budget", [3, 8, 40])
def test_budget_is_a_hard_bound(view, budget):
    drafting = dataclasses.replace(CACHED, budget=budget)
    found = sample(DualConfig(drafting, 2, rules.TopK(1), view=view, groups=2))
    assert (found.drafter_forwards + found.verifier_forwards <= budget).all()
    assert (found.tokens != LLADA.mask_id).all()
    np.testing.assert_array_equal(found.accepted + found.replaced, 12)
    if budget == 3:
        assert (found.verifier_forwards == 3).all()


@pytest.mark.slow
def test_rows_alone_and_padding():
    """With noise: a row is the same alone under its own key, and under more padding."""
    proposal = dataclasses.replace(PLAIN.proposal, temperature=0.7)
    drafting = DecodeConfig(12, 6, 6, feeding=feeding.Settled(3, buckets=1), proposal=proposal)
    config = DualConfig(drafting, 3, rules.Ratio(0.8), view="masked")
    batch = sample(config, prompt_length=5)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(config, [prompt], jax.random.fold_in(KEY, row)[None], prompt_length=7)
        # Passes of the batch belong to no row.
        for name in set(batch.__dict__) - {"drafter_passes", "verifier_passes"}:
            np.testing.assert_array_equal(getattr(batch, name)[row], getattr(alone, name)[0], name)


@pytest.mark.slow
def test_end_of_text():
    config = DualConfig(CACHED, 3, rules.TopK(1), view="masked")
    full = sample(config, drafter=NOISY)
    eos = int(full.tokens[1, 5])
    ending = dataclasses.replace(config, drafting=dataclasses.replace(CACHED, eos_id=eos))
    short = sample(ending, drafter=NOISY)
    for row in range(3):
        text = list(np.asarray(full.tokens[row]))
        end = text.index(eos) + 1 if eos in text else 12
        np.testing.assert_array_equal(short.tokens[row], text[:end] + [eos] * (12 - end))
        assert short.num_tokens[row] == end
    assert (short.verifier_forwards <= full.verifier_forwards).all()
    assert short.verifier_forwards[1] < full.verifier_forwards[1]


def test_bad_arguments():
    other = lively_model(dataclasses.replace(LLADA, vocab_size=24))
    with pytest.raises(ValueError, match="one tokenizer: vocab_size is 24 and 23"):
        sample(DualConfig(PLAIN), drafter=other)
    other = lively_model(dataclasses.replace(LLADA, mask_id=20))
    with pytest.raises(ValueError, match="one tokenizer: mask_id is 20 and 21"):
        sample(DualConfig(PLAIN), drafter=other)
    other = lively_model(dataclasses.replace(LLADA, max_length=16))
    with pytest.raises(ValueError, match="the drafter can hold 16 tokens"):
        sample(DualConfig(PLAIN), drafter=other)
    for fields, message in (
        ({"view": "hidden"}, "view must be one of visible, masked, leave_one_out"),
        ({"remask": "all"}, "remask must be one of any, first_rejection"),
        ({"draft_steps": -1}, "draft_steps must be a whole number of at least 0"),
        ({"groups": 0}, "groups must be a whole number of at least 1"),
        ({"fix_up": None}, "fix_up must be a whole number"),
        ({"max_rejections": 0}, "max_rejections must be"),
    ):
        with pytest.raises(ValueError, match=message):
            DualConfig(PLAIN, **fields)
