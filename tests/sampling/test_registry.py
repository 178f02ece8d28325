"""Every sampler by its name: draws, keeps its budget; settings from text, and one sentence for what is wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from ssmd_jax.sampling import registry
from ssmd_jax.sampling.policies.confidence import TopK
from ssmd_jax.sampling.policies.dilated import Spaced
from ssmd_jax.sampling.policies.path_planning import ModelPlanner
from tests.tabular import tabular_model

NAMES = [*registry.REGISTRY, "eb+spaced"]


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_knob(name):
    entry = registry.entry(name)
    assert entry.knob in entry.arguments and entry.note
    for value in entry.values:
        registry.make(name, registry.parse(name, f"{entry.knob}={value}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_draws_by_name(name):
    entry = registry.entry(name)
    config = registry.make(name, {entry.knob: entry.values[0], "budget_nfe": 3.0})
    model = tabular_model(6, num_tokens=3)
    critic = {"critic": ModelPlanner(model)} if getattr(config, "asks_critic", False) else {}
    result = entry.sample(model, jax.random.key(0), config, batch_size=3, length=6, **critic)
    assert (np.asarray(result.nfe) <= 3 + 1e-4).all() and (np.asarray(result.tokens) < 3).all()


def test_values_from_text():
    assert registry.make("llada", registry.parse("llada", "steps=8, block=none,temperature=0")) == TopK(
        steps=8, temperature=0.0
    )
    assert registry.parse("p2", "planner=True,eta=2") == {"planner": True, "eta": 2.0}
    spaced = registry.make("llada+spaced", registry.parse("llada+spaced", "gap=4,budget_nfe=7"))
    assert spaced == Spaced(inner=TopK(block=32), gap=4.0, block=32, budget_nfe=7.0)
    found = registry.make("speculative", registry.parse("speculative", "window=1..4,order=dilated,confidence_stop=.2"))
    assert (found.order, found.confidence_stop, found.window.last) == ("dilated", 0.2, 4.0)
    every = {
        "window": "3", "verify_rounds": 5, "budget_nfe": 9.5, "temperature": 0.5, "top_p": 0.6,
        "draft_temperature": 0.7,
        "order": "spread", "tie_first": True, "confidence_stop": 0.1, "divergence_stop": 0.2, "shared_noise": True,
    }  # fmt: skip
    found = dataclasses.asdict(registry.make("speculative", every))
    assert {**found, "window": "3"} == every and found["window"] == {"size": 3}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("best", "", "sampler must be one of plain"),
        ("speculative+spaced", "", "name of a policy"),
        ("eb", "gama=1", "gama"),
        ("eb", "gamma", "NAME=VALUE"),
        ("eb", "gamma=much", "gamma must be a number"),
        ("eb", "gamma=-1", "gamma must be at least 0"),
        ("llada", "steps=1.5", "steps must be a whole number"),
        ("llada", "steps=0", "steps must be a whole number of at least 1"),
        ("p2", "planner=maybe", "true or false"),
        ("mdlm", "temperature=-1", "temperature"),
        ("remdm", "rule=no", "rule must be one of"),
        ("md4", "grid_name=no", "grid_name"),
        ("first_hitting", "passes=0", "passes"),
        ("maskgit", "schedule=no", "schedule"),
        ("threshold", "block=0", "block"),
        ("factor", "factor=-1", "factor"),
        ("klass", "history=0", "history"),
        ("dus", "base=1", "base"),
        ("dus+spaced", "gap=-1", "gap"),
        ("star", "t_on=2", "t_on"),
        ("remdm", "rule=loop,eta=.5", "eta"),
    ],
)
def test_bad_arguments_are_one_sentence(name, text, words):
    with pytest.raises(ValueError, match=words):
        registry.make(name, registry.parse(name, text))


def test_critics_are_asked_for():
    model = tabular_model(4)
    for name, given, critic, words in (
        ("gstar", {}, None, "needs a critic"),
        ("star", {}, ModelPlanner(model), "does not ask"),
        ("gstar", {"budget_nfe": 0.5}, ModelPlanner(model), "one trunk pass and one evaluation of the critic, which"),
    ):
        with pytest.raises(ValueError, match=words):
            registry.sample_of(name)(
                model, jax.random.key(0), registry.make(name, given), batch_size=1, length=4, critic=critic
            )
