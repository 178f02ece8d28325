"""In what two experiments differ, and what of it may differ when a run is resumed."""

from collections.abc import Mapping
from typing import Any

from ssmd_jax.training.config import ExperimentConfig

# What may differ when a run is resumed: nothing here changes what is learned, beyond rounding. Of the data only the
# places are free: that they hold the same tokens is checked by `workdir.check_data`. What a run started from is in its
# checkpoints, a teacher too.
FREE_FIELDS = (
    "training.stop_step",
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.eval_batch_size",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_every",
    "training.keep_best",
    "training.sample_every",
    # What is done where a run would end otherwise.
    "training.nonfinite",
    "training.max_skips",
    "training.spike_factor",
    "training.spike_rollbacks",
    "training.init_from",
    "mesh.*",
    "sampling.*",
    "data.source",
    "data.train",
    "data.valid",
    "data.test",
    "data.tokenizer_path",
    "data.cache_dir",
    "model.attention",
    "model.mlp",
    "model.remat",
    "model.unroll",
)


def differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """Fields in which two experiments differ, those of `FREE_FIELDS` apart, each as "name: old -> new"."""
    old_fields, new_fields = _flatten(old.to_dict()), _flatten(new.to_dict())
    free = lambda name: name in FREE_FIELDS or f"{name.split('.')[0]}.*" in FREE_FIELDS
    return [
        f"{name}: {old_fields[name]!r} -> {value!r}"
        for name, value in new_fields.items()
        if value != old_fields[name] and not free(name)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    # JSON knows no tuples: a config that has been saved must equal itself.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}
