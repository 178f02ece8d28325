"""Settings of samplers as users write them: the config's `sampling` section, flags, and short lists of settings."""

import dataclasses
import re

from ssmd_jax.diffusion.window import window_by_name
from ssmd_jax.sampling.config import ORDERS, SpeculativeConfig
from ssmd_jax.training.config import SamplingConfig

SAMPLERS = ("plain", "speculative")
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
        sampler: "plain" (drafts alone) or "speculative".
        label: how the user wrote the setting, for tables.
        config: the configuration.
    """

    sampler: str
    label: str
    config: SpeculativeConfig

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")


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


def parse_settings(text: str, sampling: SamplingConfig) -> list[Setting]:
    """Reads a list such as `plain:0.04,speculative:0.04:8,speculative:full:16`.

    Each entry is `plain:WINDOW` or `speculative:WINDOW:ROUNDS`; WINDOW is the step `delta_tau` of a cosine window,
    below 1, or else as `diffusion.window.window_by_name`: a whole number of tracks, "full", or FIRST..LAST. Behind them
    may stand "tie_first" and the name of an order. What an entry does not say comes from the config's section.

    Raises:
        ValueError: naming the entry that cannot be read, or is out of range.
    """
    settings = []
    for entry in (part.strip() for part in text.split(",")):
        sampler, *rest = entry.split(":")
        options = [word for word in rest if word == "tie_first" or word in ORDERS]
        fields = dict(("tie_first", True) if word == "tie_first" else ("order", word) for word in options)
        rest = [word for word in rest if word not in options]
        expected = {"plain": 1, "speculative": 2}.get(sampler)
        if expected != len(rest):
            raise ValueError(f'setting {entry!r} must be "plain:WINDOW" or "speculative:WINDOW:ROUNDS"')
        is_cosine = rest[0] != "full" and ".." not in rest[0] and not re.fullmatch(r"[+-]?\d+", rest[0])
        try:
            fields["verify_rounds"] = int(rest[1]) if len(rest) > 1 else sampling.verify_rounds
            fields |= {"delta_tau": float(rest[0])} if is_cosine else {"window": rest[0]}
        except ValueError:
            raise ValueError(
                f"setting {entry!r}: the window must be a number, full or FIRST..LAST, the rounds a whole number"
            ) from None
        if is_cosine and fields["delta_tau"] >= 1:
            raise ValueError(
                f"setting {entry!r}: the step of a cosine window is below 1; a whole number counts tracks, and full "
                "takes all at once"
            )
        try:
            config = make_config(sampling, **fields)
        except ValueError as error:
            raise ValueError(f"setting {entry!r}: {error}") from None
        settings.append(Setting(sampler, " ".join([" x ".join(rest), *options]), config))
    return settings
