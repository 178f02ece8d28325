"""All samplers by name, and their settings from text: `registry.make("eb", {"gamma": 0.5})`."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ssmd_jax.diffusion.window import window_by_name
from ssmd_jax.sampling import ancestral, any_subset, big_little, policy, speculative
from ssmd_jax.sampling.any_subset import AnySubsetConfig
from ssmd_jax.sampling.big_little import BigLittleConfig
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.policies import confidence, dilated, entropy_bounded, grid, klass, path_planning, remdm, star

SPACED = "+spaced"


def windowed(
    delta_tau: float = 0.04,
    window: str = "cosine",
    verify_rounds: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    draft_temperature: float = 1.0,
    order: str = "random",
    tie_first: bool = False,
    confidence_stop: float = 0.0,
    divergence_stop: float = 0.0,
    shared_noise: bool = False,
    budget_nfe: float | None = None,
) -> SpeculativeConfig:
    """A `SpeculativeConfig` from plain values; the window as `diffusion.window.window_by_name` reads it."""
    return SpeculativeConfig(
        window_by_name(window, delta_tau),
        verify_rounds,
        budget_nfe,
        temperature,
        top_p,
        draft_temperature,
        order,
        tie_first,
        confidence_stop,
        divergence_stop,
        shared_noise,
    )


def cautious(
    window: str = "10",
    delta_tau: float = 0.04,
    fallback: float = 0.6,
    rollback: float = 5.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    order: str = "random",
    budget_nfe: float | None = None,
) -> BigLittleConfig:
    """A `BigLittleConfig` from plain values, likewise."""
    return BigLittleConfig(
        window=window_by_name(window, delta_tau),
        fallback=fallback,
        rollback=rollback,
        temperature=temperature,
        top_p=top_p,
        order=order,
        budget_nfe=budget_nfe,
    )


class Entry(NamedTuple):
    """A sampler.

    Attributes:
        make: from arguments by name to the configuration.
        sample: `(model, key, configuration, *, batch_size, length, ...) -> SampleResult`.
        note: one line for whoever chooses.
        knob: the argument that trades function evaluations for quality.
        values: of the knob, what a comparison runs through by default.
        preset: arguments other than their defaults.
    """

    make: Callable
    sample: Callable
    note: str
    knob: str
    values: tuple
    preset: Mapping[str, Any] = {}

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """What `make` takes, by name."""
        return dict(inspect.signature(self.make).parameters)


STEPS = (16, 32, 64)


def _of(make, note, knob="steps", values=STEPS, **preset) -> Entry:
    return Entry(make, policy.sample, note, knob, values, preset)


REGISTRY = {
    "plain": Entry(windowed, ancestral.sample, "drafts alone, windows", "delta_tau", (0.02, 0.04, 0.083)),
    "speculative": Entry(windowed, speculative.sample, "SSMD", "delta_tau", (0.02, 0.04, 0.083)),
    "assd": Entry(
        AnySubsetConfig, any_subset.sample, "two-pass speculation, oracle of k nested states, k NFE", "drafts", (2, 5)
    ),
    "big_little": Entry(cautious, big_little.sample, "fallback and rollback, BIASED", "rollback", (2.0, 3.0, 5.0)),
    "mdlm": _of(grid.Mdlm, "ancestral, even grid, steps without a change are free"),
    "md4": _of(grid.Md4, "ancestral, cosine grid, every step a pass"),
    "first_hitting": _of(grid.FirstHitting, "random order, so many passes", "passes"),
    "maskgit": _of(confidence.TopK, "top confidence, cosine schedule", schedule="cosine", choice_temperature=4.5),
    "llada": _of(confidence.TopK, "top confidence, even schedule, blocks", block=32),
    "margin": _of(confidence.TopK, "top margin, even schedule", score="margin"),
    "entropy": _of(confidence.TopK, "lowest entropy, even schedule", score="entropy"),
    "threshold": _of(
        confidence.Threshold, "all above a confidence (Fast-dLLM, no caches)", "threshold", (0.5, 0.7, 0.9)
    ),
    "factor": _of(confidence.Factor, "Fast-dLLM's factor, no caches", "factor", (0.5, 1.0, 2.0)),
    "eb": _of(entropy_bounded.EntropyBounded, "entropy-bounded", "gamma", (0.1, 1.0, 4.0)),
    "klass": _of(klass.Klass, "stable by KL divergence", "threshold", (0.3, 0.6, 0.9)),
    "dus": _of(dilated.Dilated, "dilated unmasking", "block", (8, 16, 32)),
    "remdm": _of(remdm.Remdm, "re-masking by rule cap, rescale, conf or loop", eta=0.04),
    "p2": _of(path_planning.PathPlanning, "path planning, by itself or by a planner"),
    "star": _of(star.Star, "star-shaped, random re-masking", guided=False),
    "gstar": _of(star.Star, "star-shaped, error head (launch/error_head.py)"),
}


def entry(name: str) -> Entry:
    """The sampler of that name; "+spaced" behind the name of a policy adds the spacing filter of DUS.

    Raises:
        ValueError: for a name that is not there.
    """
    inner = name.removesuffix(SPACED)
    if inner not in REGISTRY or (inner != name and REGISTRY[inner].sample is not policy.sample):
        raise ValueError(
            f"sampler must be one of {', '.join(REGISTRY)}, or the name of a policy followed by {SPACED}, got {name!r}"
        )
    found = REGISTRY[inner]
    return found if inner == name else found._replace(note=f"{found.note}, far from each other")


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """What a sampler can be told, by name. Raises as `entry`."""
    gap = {field.name: field for field in inspect.signature(dilated.Spaced).parameters.values() if field.name == "gap"}
    return entry(name).arguments | (gap if name.endswith(SPACED) else {})


def parse(name: str, text: str) -> dict[str, Any]:
    """Arguments such as `steps=32,temperature=0.9`, each of the type that the sampler takes.

    Raises:
        ValueError: naming the sampler and the argument.
    """
    return {field: read_value(name, field, value) for field, value in pairs(text, f"sampler {name}")}


def pairs(text: str, whose: str) -> Iterator[tuple[str, str]]:
    """Names and values of `NAME=VALUE,...`, both as text.

    Args:
        text: to read; "" holds none.
        whose: for errors.

    Raises:
        ValueError: where an equals sign is missing.
    """
    for item in filter(None, (item.strip() for item in text.split(","))):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"arguments of {whose} must be NAME=VALUE, separated by commas, got {item!r}")
        yield field, value


def read_value(name: str, field: str, text: str) -> Any:
    """The value of one argument of a sampler. Raises as `parse`."""
    known = arguments(name)
    if field not in known:
        raise ValueError(f"sampler {name} has no argument {field!r}; it takes {', '.join(known)}")
    annotation = known[field].annotation
    kinds = typing.get_args(annotation) or (annotation,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    for kind in (bool, int, float, str):
        if kind not in kinds:
            continue
        try:
            return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            what = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise ValueError(f"sampler {name}: {field} must be {what}, got {text!r}") from None
    raise ValueError(f"sampler {name}: {field} cannot be written as text")


def make(name: str, given: Mapping[str, Any]) -> Any:
    """The configuration of a sampler from its arguments; what is left open has the sampler's own default.

    Raises:
        ValueError: as `entry`, for an argument that the sampler does not take, or a value out of range.
    """
    found, known = entry(name), arguments(name)
    for field in given:
        if field not in known:
            raise ValueError(f"sampler {name} has no argument {field!r}; it takes {', '.join(known)}")
    own = {field: value for field, value in given.items() if field in found.arguments}
    config = found.make(**{**found.preset, **own})
    if not name.endswith(SPACED):
        return config
    gap = {field: value for field, value in given.items() if field not in own}
    return dilated.Spaced(
        inner=dataclasses.replace(config, budget_nfe=None),
        budget_nfe=config.budget_nfe,
        block=getattr(config, "block", None),
        **gap,
    )


def sample_of(name: str) -> Callable:
    """The function that draws with a configuration of `make`. Raises as `entry`."""
    return entry(name).sample
