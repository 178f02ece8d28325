"""Lists of any samplers, and what they run through."""

import types

import pytest

from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.evaluation import critics, settings
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.policies.confidence import TopK
from ssmd_jax.sampling.policies.dilated import Spaced
from ssmd_jax.sampling.policies.entropy_bounded import EntropyBounded
from ssmd_jax.sampling.policies.path_planning import ModelPlanner, PathPlanning
from ssmd_jax.training.config import SamplingConfig

SECTION = SamplingConfig()


def sweep(names, text=""):
    return [(s.sampler, s.label, s.config) for s in settings.sweep_settings(names, text, SECTION)]


def test_samplers_run_through_values():
    llada = [("llada", f"block=8 steps={n}", TopK(steps=n, block=8)) for n in (4, 8)]
    bounded = [("eb", f"gamma={g}", EntropyBounded(gamma=g)) for g in (0.5, 2.0)]
    spaced = Spaced(inner=EntropyBounded(gamma=0.5, temperature=0.9))
    assert sweep("llada:block=8, eb,eb+spaced:gamma=0.5:temperature=0.9", "steps=4:8,gamma=.5:2") == [
        *llada,
        *bounded,
        ("eb+spaced", "gamma=0.5 temperature=0.9", spaced),
    ]
    base = SECTION.speculative()
    ((_, label, config),) = sweep("speculative:order=dilated", "delta_tau=0.1")
    assert label == "order=dilated delta_tau=0.1" and isinstance(config, SpeculativeConfig)
    assert (config.window, config.order, config.verify_rounds) == (CosineWindow(0.1), "dilated", base.verify_rounds)
    # Its own values where the sweep has nothing to say; its knob before other arguments.
    assert [label for _, label, _ in sweep("eb,llada", "steps=2")] == [
        "gamma=0.1", "gamma=1.0", "gamma=4.0", "steps=2"
    ]  # fmt: skip
    mixed = sweep("klass,llada", "steps=2,threshold=.5")
    assert [label for _, label, _ in mixed] == ["threshold=0.5", "steps=2"]


@pytest.mark.parametrize(
    ("names", "text", "words"),
    [
        ("best", "", "sampler must be one of"),
        ("eb", "gamma", "ARGUMENT=VALUE"),
        ("eb", "gamma=1:", "ARGUMENT=VALUE"),
        ("eb", "steps=4", "no sampler of eb has an argument steps"),
        ("eb", "gamma=much", "gamma must be a number"),
        ("eb:gama=1", "", "no argument 'gama'"),
        ("llada", "steps=0", "steps must be"),
        ("eb", "temperature=1:2,top_p=.5", "several arguments of sampler eb"),
        ("plain:gamma=1", "", "no argument 'gamma'"),
    ],
)
def test_bad_lists_are_one_sentence(names, text, words):
    with pytest.raises(ValueError, match=words):
        sweep(names, text)


def test_critics(tmp_path):
    """Path planning asks the model itself, G-Star a head that must be there, others nobody."""
    model = types.SimpleNamespace(trunk_cost=0.5)
    of = lambda config: critics.critic_of(config, model, tmp_path)
    assert of(SECTION.speculative()) is None and of(EntropyBounded()) is None and of(PathPlanning()) is None
    planner = of(PathPlanning(planner=True))
    assert isinstance(planner, ModelPlanner) and planner.cost == 0.5
    with pytest.raises(ValueError, match=r"no error head: launch/error_head\.py"):
        of(settings.registry.make("gstar", {}))
