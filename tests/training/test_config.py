"""Validation of the configuration: one sentence that names the field."""

import pytest

from ssmd_jax.training.config import ExperimentConfig, differences
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
