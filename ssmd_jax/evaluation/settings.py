"""Settings of samplers as users write them: the config's `sampling` section, flags, and short lists of settings."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ssmd_jax.diffusion.window import window_by_name
from ssmd_jax.sampling import registry
from ssmd_jax.sampling.config import ORDERS, SpeculativeConfig
from ssmd_jax.sampling.recommend import Profile, recommend
from ssmd_jax.training.config import SamplingConfig

# Those that the config's `sampling` section describes.
WINDOWED = ("plain", "speculative")
# Words behind a setting that switch a field on.
SWITCHES = ("tie_first", "shared_noise")
# Those whose history tells all their passes and rounds, so that they can be shown pass by pass.
TRACED = (*WINDOWED, "big_little")
BEST = re.compile(r"best([0-9.]+)")
# Those of METHOD.md section 8: the step of the cosine window, and for the speculative sampler the verify rounds.
DEFAULT_SETTINGS = (
    "plain:0.002,plain:0.01,plain:0.02,plain:0.03,plain:0.04,plain:0.06,plain:0.083,plain:0.12,"
    "speculative:0.01:3,speculative:0.02:4,speculative:0.04:8,speculative:0.06:10,speculative:0.083:10,"
    "speculative:0.12:12,speculative:0.2:20,speculative:0.3:30"
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One sampler with its configuration.

    Attributes:
        sampler: a name of `ssmd_jax.sampling.registry`.
        label: how the user wrote the setting, for tables.
        config: the configuration, a `SpeculativeConfig` for "plain" (drafts alone) and "speculative".
        critic: what the sampler asks besides the network; None for most.
    """

    sampler: str
    label: str
    config: Any
    critic: Any = None

    def __post_init__(self):
        registry.entry(self.sampler)


def make_config(sampling: SamplingConfig, *, window: str | None = None, delta_tau=None, **flags) -> SpeculativeConfig:
    """What the config's `sampling` section says, and flags go before it.

    Args:
        sampling: the section.
        window: as `diffusion.window.window_by_name`; None for the section's own, or "cosine" where `delta_tau` is
            given.
        delta_tau: step of the cosine window; None for the section's own.
        **flags: other fields of `SpeculativeConfig`; None for the section's own.

    Raises:
        ValueError: for a value out of range, or a `delta_tau` beside another window.
    """
    if delta_tau is not None and window not in (None, "cosine"):
        raise ValueError(f"delta_tau belongs to the cosine window, not to window {window!r}: give one of the two")
    given = {name: value for name, value in flags.items() if value is not None}
    if window is not None or delta_tau is not None:
        given["window"] = window_by_name(
            "cosine" if window is None else window, sampling.delta_tau if delta_tau is None else delta_tau
        )
    return dataclasses.replace(sampling.speculative(), **given)


def named_config(name: str, given: dict[str, Any], sampling: SamplingConfig) -> Any:
    """The configuration of any sampler; what `given` leaves open comes from the section, or is the sampler's default.

    Args:
        name: of `ssmd_jax.sampling.registry`.
        given: arguments by name.
        sampling: the config's section, for "plain" and "speculative" alone.

    Raises:
        ValueError: for a sampler or an argument that is not there, or a value out of range.
    """
    if name not in WINDOWED:
        return registry.make(name, given)
    for field in given:
        if field not in registry.arguments(name):
            raise ValueError(f"sampler {name} has no argument {field!r}")
    return make_config(sampling, **given)


def with_best_windows(
    config: SpeculativeConfig, sampler: str, profile: Profile, budget_nfe: float
) -> SpeculativeConfig:
    """The configuration with the windows and rounds that `sampling.recommend` gives for a mean number of evaluations.

    Args:
        config: of one of `WINDOWED`.
        sampler: which of them.
        profile: of the network.
        budget_nfe: mean NFE of a sample.

    Raises:
        ValueError: if the budget is below the NFE of the cheapest windows.
    """
    laws = {"tie_first": config.tie_first, "shared_noise": config.shared_noise}
    best = recommend(profile, budget_nfe, plain=sampler == "plain", **laws)
    return dataclasses.replace(config, window=best.window, verify_rounds=best.verify_rounds)


def sweep_settings(names: str, sweep: str, sampling: SamplingConfig) -> list[Setting]:
    """Several samplers, each with several values of an argument.

    Args:
        names: samplers, separated by commas; each may have fixed arguments behind colons, as in `eb:temperature=0.9`.
        sweep: `ARGUMENT=VALUE:VALUE...`, separated by commas, as in `steps=16:32,gamma=0.1:1`: what samplers with this
            argument run through, the registry's knob before others. A sampler with none of them runs through its own
            default values.
        sampling: the config's section.

    Returns:
        The settings, sampler by sampler.

    Raises:
        ValueError: naming the sampler, the argument, or a sweep that no sampler follows.
    """
    values = {}
    for item in filter(None, sweep.split(",")):
        field, equals, listed = item.partition("=")
        if not equals or not all(listed.split(":")):
            raise ValueError(f"sweep must be ARGUMENT=VALUE:VALUE... separated by commas, got {item!r}")
        values[field.strip()] = listed.split(":")
    settings, unused = [], set(values)
    for entry in names.split(","):
        name, *fixed = entry.strip().split(":")
        fixed = registry.parse(name, ",".join(fixed))
        fields = [field for field in values if field in registry.arguments(name) and field not in fixed]
        own = registry.entry(name)
        fields = [own.knob] if own.knob in fields else fields
        unused -= set(fields)
        if len(fields) > 1:
            raise ValueError(f"sweep has several arguments of sampler {name}: {', '.join(fields)}; leave one")
        field = fields[0] if fields else own.knob
        listed = [registry.read_value(name, field, text) for text in values[field]] if fields else own.values
        for value in [None] if field in fixed else listed:
            given = fixed if value is None else {**fixed, field: value}
            label = " ".join(f"{key}={text}" for key, text in given.items())
            settings.append(Setting(name, label, named_config(name, given, sampling)))
    if unused:
        raise ValueError(f"sweep: no sampler of {names} has an argument {', '.join(sorted(unused))} to run through")
    return settings


def with_critics(settings: Sequence[Setting], critic_of) -> list[Setting]:
    """The settings with what their samplers ask; `critic_of(config)` makes it."""
    return [dataclasses.replace(setting, critic=critic_of(setting.config)) for setting in settings]


def needs_profile(text: str) -> bool:
    """Whether a list of settings has one whose windows come from the network's profile."""
    return any(BEST.fullmatch(word) for entry in text.split(",") for word in entry.strip().split(":"))


def parse_settings(text: str, sampling: SamplingConfig, profile: Profile | None = None) -> list[Setting]:
    """Reads a list such as `plain:0.04,speculative:0.04:8,speculative:best12`.

    Each entry is `plain:WINDOW` or `speculative:WINDOW:ROUNDS`; WINDOW is the step `delta_tau` of a cosine window,
    below 1, or else as `diffusion.window.window_by_name`: a whole number of tracks, "full", or FIRST..LAST. "bestNFE",
    as in `best12`, takes the best windows for a mean of so many function evaluations, and then the rounds may be left
    out. Behind them may stand "tie_first", "shared_noise" and the name of an order. What an entry does not say comes
    from the config's section.

    Args:
        text: the list.
        sampling: the config's section.
        profile: of the network, for "best".

    Raises:
        ValueError: naming the entry that cannot be read, or is out of range.
    """
    return [_parse(entry.strip(), sampling, profile) for entry in text.split(",")]


def _parse(entry: str, sampling: SamplingConfig, profile: Profile | None) -> Setting:
    sampler, *rest = entry.split(":")
    options = [word for word in rest if word in SWITCHES or word in ORDERS]
    fields = dict((word, True) if word in SWITCHES else ("order", word) for word in options)
    rest = [word for word in rest if word not in options]
    best = BEST.fullmatch(rest[0]) if rest else None
    expected = {"plain": (1,), "speculative": (1, 2) if best else (2,)}.get(sampler, ())
    if len(rest) not in expected:
        raise ValueError(f'setting {entry!r} must be "plain:WINDOW" or "speculative:WINDOW:ROUNDS"')
    is_cosine = not best and rest[0] != "full" and ".." not in rest[0] and not re.fullmatch(r"[+-]?\d+", rest[0])
    try:
        if len(rest) > 1:
            fields["verify_rounds"] = int(rest[1])
        if best:
            budget = float(best[1])
        else:
            fields |= {"delta_tau": float(rest[0])} if is_cosine else {"window": rest[0]}
    except ValueError:
        raise ValueError(
            f"setting {entry!r}: the window must be a number, full, FIRST..LAST or bestNFE, the rounds a whole number"
        ) from None
    if is_cosine and fields["delta_tau"] >= 1:
        raise ValueError(
            f"setting {entry!r}: the step of a cosine window is below 1; a whole number counts tracks, and full "
            "takes all at once"
        )
    if best and profile is None:
        raise ValueError(f"setting {entry!r} needs the network's profile: launch/tune.py measures it")
    try:
        config = make_config(sampling, **fields)
        if best:
            rounds = {name: value for name, value in fields.items() if name == "verify_rounds"}
            config = dataclasses.replace(with_best_windows(config, sampler, profile, budget), **rounds)
    except ValueError as error:
        raise ValueError(f"setting {entry!r}: {error}") from None
    return Setting(sampler, " ".join([" x ".join(rest), *options]), config)
