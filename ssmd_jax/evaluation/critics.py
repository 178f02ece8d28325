"""Settings of samplers for a trained run, with what they ask besides the network: profile and critic."""

import os
import pathlib

from ssmd_jax.evaluation.settings import Setting, needs_profile, parse_settings, sweep_settings, with_critics
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.sampling.policies.path_planning import ModelPlanner, PathPlanning
from ssmd_jax.sampling.policy import Critic, Policy
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile
from ssmd_jax.training import error_head
from ssmd_jax.training.config import SamplingConfig


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


def run_settings(
    workdir: os.PathLike | str,
    model: HybridModel,
    sampling: SamplingConfig,
    settings_text: str | None,
    samplers: str | None,
    sweep: str,
) -> list[Setting]:
    """The settings that a user asks of a run: those of "plain" and "speculative", then those of any samplers.

    Args:
        workdir: of the run.
        model: of the run.
        sampling: the section of its config.
        settings_text: as `settings.parse_settings` reads it; None for none.
        samplers: names, as `settings.sweep_settings` reads them; None for none.
        sweep: what they run through, likewise.

    Raises:
        ValueError: as these two do, where the workdir lacks a profile or an error head, or for a sweep of no samplers.
    """
    if sweep and samplers is None:
        raise ValueError("sweep needs samplers to run through: give their names")
    profile, settings = None, []
    if settings_text is not None and needs_profile(settings_text):
        profile = Profile.load(pathlib.Path(os.path.expanduser(workdir)) / PROFILE_FILE)
    if settings_text is not None:
        settings += parse_settings(settings_text, sampling, profile)
    if samplers is not None:
        named = sweep_settings(samplers, sweep, sampling)
        settings += with_critics(named, lambda config: critic_of(config, model, workdir))
    return settings
