"""Decoders from what users write."""

import pytest

from ssmd_jax.evaluation.reasoning import decoders
from ssmd_jax.sampling.dual import feeding, presets, rules
from ssmd_jax.sampling.dual.commit import Factor, Fixed, Threshold
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig
from ssmd_jax.sampling.dual.proposal import Proposal

EOS = 9
# What a user writes -> what it means.
MEANT = {
    ("llada", "gen_length=16,block_length=8,steps=8"): presets.llada(16, 8, 8, eos_id=EOS),
    ("llada", "gen_length=16,block_length=8,stop=false,guidance=0.5"): presets.llada(16, 8, None, guidance=0.5),
    ("llada", "gen_length=16,block_length=8,ban_end=true"): presets.llada(
        16, 8, None, eos_id=EOS, proposal=Proposal(banned=(7, EOS))
    ),
    ("llada", "gen_length=16,block_length=8,late_end=True,temperature=1,score=random"): presets.llada(
        16, 8, None, eos_id=EOS, proposal=Proposal(late=(7, EOS), temperature=1, score="random")
    ),
    ("threshold", "gen_length=16,block_length=8"): presets.fast_dllm(16, 8, "none", eos_id=EOS),
    ("prefix", "gen_length=16,block_length=8,threshold=0.5"): presets.fast_dllm(
        16, 8, "prefix", Threshold(0.5), eos_id=EOS
    ),
    ("dual", "gen_length=16,block_length=8,factor=1"): presets.fast_dllm(16, 8, "dual", Factor(1), eos_id=EOS),
    ("dual", "gen_length=16,block_length=8,steps=4,budget=5"): presets.fast_dllm(
        16, 8, "dual", Fixed(), steps=4, budget=5, eos_id=EOS
    ),
    ("dkv", "gen_length=16,block_length=8,refresh=4"): presets.dkv_decode(16, 8, None, 4, eos_id=EOS),
    ("dkv_greedy", "gen_length=16,block_length=8,window=2"): presets.dkv_greedy(16, 8, None, 2, 2, eos_id=EOS),
    ("dream", "gen_length=16,steps=8,temperature=0.2,top_p=0.95"): presets.dream(
        16, 8, Proposal(temperature=0.2, top_p=0.95, score="entropy"), eos_id=EOS
    ),
    ("dkv_dream", "gen_length=16,steps=8,cache=pd"): presets.dkv_dream(16, 8, "pd", eos_id=EOS),
    ("dualdiffusion", "gen_length=16,block_length=8"): DualConfig(presets.fast_dllm(16, 8, "dual", eos_id=EOS)),
    (
        "dualdiffusion",
        "gen_length=16,block_length=8,drafter=dkv,rule=top_k,rule_value=3,view=masked,fix_up=0,draft_steps=4",
    ): DualConfig(
        presets.dkv_decode(16, 8, None, eos_id=EOS), rule=rules.TopK(3), view="masked", fix_up=0, draft_steps=4
    ),
    (
        "dualdiffusion",
        "gen_length=16,block_length=8,rule=ratio,rule_value=1,groups=2,view=leave_one_out,remask=first_rejection",
    ): DualConfig(
        presets.fast_dllm(16, 8, "dual", eos_id=EOS),
        rule=rules.Ratio(1.0),
        groups=2,
        view="leave_one_out",
        remask="first_rejection",
    ),
}


@pytest.mark.parametrize("written", MEANT, ids=" ".join)
def test_what_is_meant(written):
    name, text = written
    assert decoders.make(name, decoders.parse(text), EOS, [7]) == MEANT[written]


def test_every_rule_takes_its_number():
    for name, rule in rules.RULES.items():
        made = decoders.make("dualdiffusion", {"rule": name}, EOS)
        assert made.rule == rule()
        if name not in ("trust_verifier", "no_verification", "exact_match"):
            assert decoders.make("dualdiffusion", {"rule": name, "rule_value": 2}, EOS).rule == rule(2)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("best", "", "sampler must be one of llada, threshold,"),
        ("llada", "steps", "must be NAME=VALUE, separated by commas, got 'steps'"),
        ("llada", "threshold=0.9", "sampler llada has no argument 'threshold'; it takes gen_length"),
        ("llada", "rule=exact_match", "has no argument 'rule'"),
        ("llada", "steps=many", "steps must be a whole number or none, got 'many'"),
        ("llada", "steps=true", "steps must be a whole number or none, got True"),
        ("llada", "stop=1", "stop must be true or false, got 1"),
        ("llada", "gen_length=10,block_length=4", "gen_length 10 is not divisible by block_length 4"),
        ("dualdiffusion", "drafter=dualdiffusion", "drafter must be one of llada"),
        ("dualdiffusion", "rule=trust", "rule 'trust' is none of trust_verifier"),
        ("dualdiffusion", "rule=exact_match,rule_value=1", "rule exact_match has no number to set"),
        ("dualdiffusion", "rule=top_k,rule_value=0.5", "k must be a whole number"),
        ("dualdiffusion", "view=both", "view must be one of visible"),
    ],
)
def test_refused_in_a_sentence(name, text, said):
    with pytest.raises(ValueError, match=said) as refused:
        decoders.make(name, decoders.parse(text), EOS)
    assert "\n" not in str(refused.value)


def test_fields_of_the_drafter():
    made = decoders.make("dualdiffusion", {"drafter": "prefix"}, EOS)
    assert decoders.drafting_of(made).feeding == feeding.Prefix()
    assert decoders.with_drafting(made, budget=9).drafting.budget == 9
    assert decoders.with_drafting(made.drafting, budget=9) == decoders.with_drafting(made, budget=9).drafting
