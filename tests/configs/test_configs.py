"""Every experiment loads, locks, and builds a model."""

import dataclasses
import importlib
import pathlib

import pytest

from ssmd_jax.model.networks import make_network
from ssmd_jax.training import state
from ssmd_jax.training.config import ExperimentConfig

# Of another trainer: tests/training/test_masked_lm.py.
MASKED_LM = {"arithmetic"}
NAMES = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
    if path.stem[0] != "_" and path.stem not in MASKED_LM
)
NUM_TOKENS = {"openwebtext": 50_257, "books_bpe": 8_192, "proteins": 32, "llada": 126_349}
PARAMETERS = {"openwebtext": 164_583_168, "books_char": 21_855_744, "quickstart": 926_208}


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_a_model(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config().lock()
    experiment = ExperimentConfig.from_config_dict(config)
    assert ExperimentConfig.from_json(experiment.to_json()) == experiment
    network = make_network(experiment.network_config(NUM_TOKENS.get(name, 27)))
    count = state.count_params(state.abstract_params(network))
    assert count == PARAMETERS.get(name, count)
    if name != "base":
        assert "python -m launch.train" in module.__doc__ and f"configs/{name}.py" in module.__doc__


def test_the_dataclasses_have_the_defaults_of_base():
    base = ExperimentConfig.from_config_dict(importlib.import_module("configs.base").get_config())
    for section in dataclasses.fields(base):
        value = getattr(base, section.name)
        if dataclasses.is_dataclass(value):
            assert value == type(value)(**({"num_tokens": 1} if section.name == "model" else {})), section.name


def test_openwebtext_has_the_papers_settings():
    config = importlib.import_module("configs.openwebtext").get_config()
    assert (config.model.n_noncausal, config.model.n_causal, config.model.width, config.length) == (11, 1, 768, 1024)
    assert (config.training.num_steps, config.training.batch_size) == (1_000_000, 256)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (1.5e-4, 10_000, 0.01)
    assert (optimizer.b1, optimizer.b2, optimizer.clip_norm, config.model.dropout) == (0.9, 0.999, 1.0, 0.1)


@pytest.mark.parametrize(
    ("which", "trunk", "causal"),
    [("trunk", 21_455_649, 0), ("head", 21_455_649, 2_361_600), ("finetune-35M", 33_501_153, 3_689_280),
     ("joint", 21_455_649, 2_361_600), ("evidence", 21_455_649, 1_769_862), ("head-150M", 148_139_553, 6_598_400)],
)  # fmt: skip
def test_proteins_in_stages_and_sizes(which, trunk, causal):
    experiment = ExperimentConfig.from_config_dict(importlib.import_module("configs.proteins").get_config(which))
    params = state.abstract_params(make_network(experiment.network_config(32)))
    head = state.count_params(params.pop("causal", {}))
    assert (state.count_params(params), head) == (trunk, causal)
    assert experiment.loss.freeze_trunk == which.startswith(("head", "evidence"))
    assert (experiment.loss.teacher_passes > 0) == (experiment.model.causal_form == "evidence") == (which == "evidence")
    assert (experiment.optimizer.trunk_rate < 1) == which.startswith("finetune")
    is_whole = which in ("trunk", "joint")
    assert (experiment.training.num_steps == 30_000) == (experiment.optimizer.warmup_steps == 1_000) == is_whole
    assert (experiment.loss.target_weight > 0) == (experiment.model.n_causal > 0) == (which != "trunk")


@pytest.mark.parametrize("which", ["heads", "head-8M"])
def test_other_proteins_are_one_sentence(which):
    with pytest.raises(
        ValueError, match=f"proteins.py:{which} is unknown: give trunk, head, finetune, evidence, joint, and -21M"
    ):
        importlib.import_module("configs.proteins").get_config(which)
