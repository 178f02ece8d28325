"""Validation of the configuration: one sentence that names the field."""

import pytest

from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.differences import differences
from tests.training import tiny


def test_json_gives_the_same_back():
    values = tiny.config_dict().to_dict()
    values["data"]["source"] = ["a", "b"]
    config = ExperimentConfig.from_config_dict(values)
    again = ExperimentConfig.from_json(config.to_json())
    assert again == config and differences(again, config) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training__num_steps": 0}, "training.num_steps must be at least 1, got 0"),
        ({"training__accumulation": 3}, "not divisible by training.accumulation"),
        ({"training__nonfinite": "ignore"}, "training.nonfinite must be one of stop, skip"),
        ({"training__max_skips": -1}, "training.max_skips must be at least 0"),
        ({"training__spike_factor": 0.5}, "training.spike_factor must be above 1, or 0 for off"),
        ({"training__spike_factor": 2.0, "training__keep_last": 1}, "set training.keep_last to 2 or more"),
        (
            {"training__spike_factor": 2.0, "training__checkpoint_every": 3, "training__log_every": 4},
            "training.checkpoint_every to training.log_every or more",
        ),
        ({"training__keep_best": 1}, "set training.eval_every and training.checkpoint_every"),
        (
            {"training__keep_best": 1, "training__eval_every": 3, "training__checkpoint_every": 4},
            "one a multiple of the other",
        ),
        ({"training__sample_every": -1}, "training.sample_every must be at least 0"),
        ({"optimizer__name": "sgd"}, "optimizer.name must be one of adamw, muon"),
        ({"optimizer__learning_rate": -1.0}, "optimizer.learning_rate must be positive"),
        ({"model__num_heads": 3}, "model.width"),
        ({"mesh__fsdp": -1, "mesh__data": -1}, "only one of data, fsdp and tensor"),
        ({"sampling__verify_rounds": 0}, "sampling.verify_rounds must be at least 1"),
        ({"loss__tie_first": True}, "set sampling.tie_first too"),
        ({"sampling__delta_tau": -1.0}, "sampling.delta_tau must be positive"),
        ({"loss__target_weight": -1.0}, "loss.target_weight"),
        ({"data__tokenizer": "words"}, "words"),
        ({"length": 0}, "length must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny.config(**fields)
    assert "\n" not in str(error.value)


def test_unknown_field_names_the_nearest():
    values = tiny.config_dict().to_dict()
    values["optimizer"]["learning_rat"] = 1.0
    with pytest.raises(ValueError, match=r"no field optimizer.learning_rat; .* optimizer.learning_rate"):
        ExperimentConfig.from_config_dict(values)
    with pytest.raises(ValueError, match=r"no field modle; .* model"):
        ExperimentConfig.from_config_dict({**tiny.config_dict().to_dict(), "modle": {}})


def test_wrong_type_and_missing_section():
    values = tiny.config_dict().to_dict()
    values["training"]["num_steps"] = 1.5
    with pytest.raises(ValueError, match=r"training.num_steps must be of type int, got 1.5"):
        ExperimentConfig.from_config_dict(values)
    del values["loss"]
    with pytest.raises(ValueError, match="loss missing"):
        ExperimentConfig.from_config_dict(values)


def test_what_a_resumed_run_may_change():
    """Where a run would end, its user may say otherwise; what decides the data, or what is learned, stays."""
    free = {"nonfinite": "skip", "spike_factor": 3.0, "spike_rollbacks": 1, "sample_every": 5, "keep_last": 3}
    assert differences(tiny.config(), tiny.config(**{f"training__{name}": value for name, value in free.items()})) == []
    for name, value in (("seed", 1), ("length", 8), ("training__batch_size", 16), ("data__field", "body")):
        (changed,) = differences(tiny.config(), tiny.config(**{name: value}))
        assert changed.startswith(name.replace("__", "."))


def test_sampling_section_gives_the_samplers_config():
    config = tiny.config(sampling__window="3", sampling__top_p=0.5, sampling__order="entropy").sampling.speculative()
    assert (config.window.size, config.top_p, config.order, config.verify_rounds) == (3, 0.5, "entropy", 8)
