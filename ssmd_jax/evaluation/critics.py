"""What a sampler asks besides the network: the critic that belongs to a setting."""

import os
import pathlib

from ssmd_jax.model.bound import HybridModel
from ssmd_jax.sampling.policies.path_planning import ModelPlanner, PathPlanning
from ssmd_jax.sampling.policy import Critic, Policy
from ssmd_jax.training import error_head


def critic_of(config, model: HybridModel, workdir: os.PathLike | str) -> Critic | None:
    """The critic that a sampler's configuration asks, None if it asks none.

    Path planning asks the model itself about the complete row, G-Star the error head of the workdir.

    Args:
        config: of any sampler.
        model: of the workdir.
        workdir: of a training run.

    Raises:
        ValueError: where the workdir has no error head.
    """
    if not isinstance(config, Policy) or not config.asks_critic:
        return None
    rule = getattr(config, "inner", config)
    if isinstance(rule, PathPlanning):
        return ModelPlanner(model)
    return error_head.load(pathlib.Path(os.path.expanduser(workdir)), model)
