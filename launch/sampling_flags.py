"""The flags of the programs that draw samples from a workdir: what to draw, with which sampler, around which text."""

from typing import Any

from absl import flags

from ssmd_jax.sampling import registry

_FLAGS = (
    flags.DEFINE_string("workdir", None, "Workdir of a training run; the model that comes with the package if unset."),
    flags.DEFINE_integer("num_samples", 4, "How many samples."),
    flags.DEFINE_integer("batch_size", 64, "Samples drawn at a time."),
    flags.DEFINE_integer("length", None, "Tokens a sample; the length of training if unset."),
    flags.DEFINE_integer("seed", 0, "Root of all random numbers."),
    flags.DEFINE_string("sampler", "speculative", f"Which sampler: {', '.join(registry.REGISTRY)}; NAME+spaced."),
    flags.DEFINE_string("sampler_args", "", "Its arguments, NAME=VALUE separated by commas."),
    flags.DEFINE_float("nfe", None, "Mean function evaluations of a sample: the best windows for it (launch/tune.py)."),
    flags.DEFINE_string("window", None, '"cosine", "full", a number of tracks, or FIRST..LAST.'),
    flags.DEFINE_float("delta_tau", None, "Step of the cosine window."),
    flags.DEFINE_integer("verify_rounds", None, "Verify rounds a trunk pass at most."),
    flags.DEFINE_float("budget_nfe", None, "Hard bound on the function evaluations of a sample."),
    flags.DEFINE_float("temperature", None, "0 takes the likeliest token."),
    flags.DEFINE_float("top_p", None, "Nucleus: the likeliest tokens with this much probability."),
    flags.DEFINE_float("draft_temperature", None, "Of the proposals alone; changes no law."),
    flags.DEFINE_string("order", None, '"random", "left_to_right", "dilated", "spread", "confidence" or "entropy".'),
    flags.DEFINE_bool("tie_first", None, "The first target of each pass is the draft's."),
    flags.DEFINE_bool("shared_noise", None, "Rounds draw with the noise of the drafts; unset: with the best windows."),
    flags.DEFINE_string("prompt", None, "Text that starts every sample."),
    flags.DEFINE_string("infill", None, "Text whose gap symbols are filled in, one token each."),
    flags.DEFINE_string("gap", "_", "The gap symbol of --infill."),
)


def given() -> dict[str, Any]:
    """Their values by name, as `ssmd_jax.evaluation.generate.draw` takes them; None where left open."""
    return {flag.name: flag.value for flag in _FLAGS}
