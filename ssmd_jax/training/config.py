"""The configuration of an experiment: frozen dataclasses built once from the locked `ConfigDict`.

Every error is one sentence that names the field, `section.field`.
"""

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Mapping
from typing import Any, get_type_hints

import ml_collections

from ssmd_jax.data.pipeline import DataConfig
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.diffusion.window import window_by_name
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling.config import ORDERS, SpeculativeConfig

OPTIMIZERS = ("adamw", "muon")
NONFINITE = ("stop", "skip")


def _require(condition: bool, name: str, rule: str, value) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and its schedule.

    Attributes:
        name: "adamw" or "muon" (matrices by Muon, the rest by Adam).
        learning_rate: peak of the schedule.
        warmup_steps: linear warm-up; at most half of all steps are spent on it.
        final_fraction: the cosine ends at this fraction of the peak.
        b1: Adam's decay of the first moment.
        b2: Adam's decay of the second moment.
        eps: Adam's epsilon.
        momentum: Muon's momentum.
        trunk_rate: learning rate of all but the causal part, over that of the causal part.
        weight_decay: decoupled, times the learning rate; none on norms, biases, embedding and start vectors.
        clip_norm: gradients are scaled down to this global norm; 0 for no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_fraction: float = 0.0
    trunk_rate: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self):
        _require(self.name in OPTIMIZERS, "optimizer.name", f"one of {', '.join(OPTIMIZERS)}", self.name)
        _require(0 < self.learning_rate < math.inf, "optimizer.learning_rate", "positive", self.learning_rate)
        _require(0 < self.trunk_rate < math.inf, "optimizer.trunk_rate", "positive", self.trunk_rate)
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", "at least 0", self.warmup_steps)
        _require(0 <= self.final_fraction <= 1, "optimizer.final_fraction", "between 0 and 1", self.final_fraction)
        for name in ("b1", "b2", "momentum"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", "in [0, 1)", getattr(self, name))
        _require(0 < self.eps < math.inf, "optimizer.eps", "positive", self.eps)
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"optimizer.{name}", "at least 0 and finite", value)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length of a run, and what is done how often.

    Attributes:
        num_steps: optimiser steps; the learning rate schedule ends there.
        stop_step: leave at this step with the schedule unchanged, to be resumed later; 0 for no early stop.
        batch_size: sequences a step, over all devices and micro-batches.
        accumulation: micro-batches a step; divides `batch_size`.
        ema_decay: decay of the moving average of the weights, warmed up as (1 + t) / (10 + t); 0 for none.
        log_every: steps between lines of metrics.
        eval_every: steps between validations; 0 for one at the end alone.
        eval_batches: batches of a validation.
        eval_batch_size: sequences in each of them; 0 for `batch_size`.
        checkpoint_every: steps between checkpoints; 0 for one at the end alone.
        keep_last: how many of the latest checkpoints stay.
        keep_every: every checkpoint at a multiple of this many steps stays too; 0 for none.
        keep_best: so many of the best checkpoints stay, by the draft bits of a validation at their step; 0 for none.
        nonfinite: "stop" where a loss or gradient is not finite, or "skip" that step: its update is dropped.
        max_skips: stop nevertheless after more steps skipped in a row than this.
        spike_factor: go back to the last good checkpoint where the loss of a line of metrics exceeds this many times
            the median of the lines before it; 0 for never. The batches since then are left out.
        spike_rollbacks: how often in a run, at most; the next spike stops it.
        sample_every: steps between samples of text, in samples.txt and TensorBoard; 0 for none.
        init_from: workdir of another run whose (averaged) weights to start from, or published weights of `model.trunk`;
            "" for a fresh start. Where they have no causal part, ours starts fresh.
    """

    num_steps: int = 4000
    stop_step: int = 0
    batch_size: int = 512
    accumulation: int = 1
    ema_decay: float = 0.999
    log_every: int = 50
    eval_every: int = 500
    eval_batches: int = 8
    eval_batch_size: int = 0
    checkpoint_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    keep_best: int = 0
    nonfinite: str = "stop"
    max_skips: int = 10
    spike_factor: float = 0.0
    spike_rollbacks: int = 3
    sample_every: int = 0
    init_from: str = ""

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "accumulation", "log_every", "eval_batches", "keep_last"):
            _require(getattr(self, name) >= 1, f"training.{name}", "at least 1", getattr(self, name))
        for name in (
            "stop_step",
            "eval_every",
            "eval_batch_size",
            "checkpoint_every",
            "keep_every",
            "keep_best",
            "max_skips",
            "spike_rollbacks",
            "sample_every",
        ):
            _require(getattr(self, name) >= 0, f"training.{name}", "at least 0", getattr(self, name))
        _require(self.nonfinite in NONFINITE, "training.nonfinite", f"one of {', '.join(NONFINITE)}", self.nonfinite)
        factor = self.spike_factor
        _require(factor == 0 or 1 < factor < math.inf, "training.spike_factor", "above 1, or 0 for off", factor)
        _require(0 <= self.ema_decay < 1, "training.ema_decay", "in [0, 1)", self.ema_decay)
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"training.batch_size {self.batch_size} is not divisible by training.accumulation {self.accumulation}"
            )
        if factor and (self.keep_last < 2 or 0 < self.checkpoint_every < self.log_every):
            raise ValueError(
                "training.spike_factor needs a checkpoint from before the spike: set training.keep_last to 2 or more, "
                "and training.checkpoint_every to training.log_every or more"
            )
        often, seldom = sorted((self.eval_every, self.checkpoint_every))
        if self.keep_best and (not often or seldom % often):
            raise ValueError(
                "training.keep_best chooses among checkpoints that were validated: set training.eval_every and "
                "training.checkpoint_every, one a multiple of the other"
            )

    @property
    def last_step(self) -> int:
        """Where this run leaves: `stop_step`, or the end of the schedule."""
        return min(self.stop_step or self.num_steps, self.num_steps)

    @property
    def validation_batch_size(self) -> int:
        """Sequences in a batch of validation."""
        return self.eval_batch_size or self.batch_size


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; at most one of them is -1, which takes all devices that are left.

    Attributes:
        data: copies of the model, each with its share of the batch.
        fsdp: parameters and optimiser state are split this many ways, the batch too.
        tensor: heads, MLP and vocabulary are split this many ways.
        dcn_data: blocks of the data axis that only a slow network joins; -1 for the slices that the devices tell of.
        dcn_fsdp: the same of the fsdp axis; the product of both is the number of slices, or else of processes.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: int = -1
    dcn_fsdp: int = 1

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor", "dcn_data"):
            value = getattr(self, name)
            _require(value >= 1 or value == -1, f"mesh.{name}", "at least 1, or -1 for all that are left", value)
        _require(self.dcn_fsdp >= 1, "mesh.dcn_fsdp", "at least 1", self.dcn_fsdp)
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise ValueError("mesh: only one of data, fsdp and tensor can be -1")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to draw from this model: the sampling programs, and samples during training (METHOD.md section 5).

    Attributes:
        window: "cosine", "full", a whole number of tracks, or "FIRST..LAST" for a linear window.
        delta_tau: step of the cosine window.
        verify_rounds: at most this many verify rounds a trunk pass.
        temperature: of the distribution sampled from.
        top_p: nucleus of that distribution.
        draft_temperature: of the proposals alone; changes no law.
        order: "random", "left_to_right", "dilated", "spread", "confidence" or "entropy".
        tie_first: the first track of each pass takes the draft as its target.
        shared_noise: verify rounds draw with the noise of the drafts, see `SpeculativeConfig`.
    """

    window: str = "cosine"
    delta_tau: float = 0.04
    verify_rounds: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    draft_temperature: float = 1.0
    order: str = "random"
    tie_first: bool = False
    shared_noise: bool = False

    def __post_init__(self):
        _require(0 < self.delta_tau < math.inf, "sampling.delta_tau", "positive", self.delta_tau)
        try:
            window_by_name(self.window, self.delta_tau)
        except ValueError as error:
            raise ValueError(f"sampling.window: {error}") from None
        _require(self.verify_rounds >= 1, "sampling.verify_rounds", "at least 1", self.verify_rounds)
        _require(0 <= self.temperature < math.inf, "sampling.temperature", "at least 0", self.temperature)
        _require(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)
        value = self.draft_temperature
        _require(0 < value < math.inf, "sampling.draft_temperature", "positive", value)
        _require(self.order in ORDERS, "sampling.order", f"one of {', '.join(ORDERS)}", self.order)

    def speculative(self) -> SpeculativeConfig:
        """The same for the samplers."""
        return SpeculativeConfig(
            window=window_by_name(self.window, self.delta_tau),
            verify_rounds=self.verify_rounds,
            temperature=self.temperature,
            top_p=self.top_p,
            draft_temperature=self.draft_temperature,
            order=self.order,
            tie_first=self.tie_first,
            shared_noise=self.shared_noise,
        )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """All of an experiment.

    Attributes:
        data: sources and tokenizer.
        length: tokens in a sequence, `D`.
        model: the network; its `num_tokens` is not known before the tokenizer, see `network_config`.
        loss: weights and options of the loss.
        optimizer: optimiser and schedule.
        training: length of the run and intervals.
        mesh: how devices share the work.
        sampling: how the sampling programs draw.
        seed: root of all random numbers: initial weights, order of the data, orders and masks.
    """

    data: DataConfig
    length: int
    model: HybridConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    mesh: MeshConfig
    sampling: SamplingConfig
    seed: int

    def __post_init__(self):
        _require(self.length >= 1, "length", "at least 1", self.length)
        _require(self.seed >= 0, "seed", "at least 0", self.seed)
        if self.model.trunk == "esm2" and self.data.tokenizer != "esm2":
            raise ValueError("model.trunk 'esm2' needs the ids of data.tokenizer 'esm2'")
        if self.loss.freeze_trunk and not self.model.n_causal:
            raise ValueError("loss.freeze_trunk trains the causal part alone, but model.n_causal is 0")
        if self.loss.teacher_passes and not self.model.n_causal:
            raise ValueError("loss.teacher_passes teaches the causal part, but model.n_causal is 0")
        if self.loss.tie_first and not self.sampling.tie_first:
            raise ValueError(
                "loss.tie_first leaves the target of the first track untrained, and sampling would verify with it: "
                "set sampling.tie_first too"
            )

    @classmethod
    def from_config_dict(cls, config: Mapping[str, Any]) -> "ExperimentConfig":
        """Builds and validates the dataclasses.

        Args:
            config: what a `get_config()` returns, or the same as nested dictionaries.

        Raises:
            ValueError: for an unknown or misspelt field, a wrong type or a value out of range; one sentence.
        """
        values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
        sections = {field.name: field.type for field in dataclasses.fields(cls)}
        _check_names(values, sections, "")
        missing = [name for name in sections if name not in values]
        if missing:
            raise ValueError(f"config: {' and '.join(missing)} missing; start from configs/base.py")
        built = {}
        for name, kind in sections.items():
            if kind is int:
                built[name] = _typed(values[name], int, name)
            elif kind is HybridConfig:
                built[name] = _build(kind, values[name], name, num_tokens=1)
            else:
                built[name] = _build(kind, values[name], name)
        return cls(**built)

    def network_config(self, num_tokens: int) -> HybridConfig:
        """The network for a tokenizer with `num_tokens` tokens."""
        return dataclasses.replace(self.model, num_tokens=num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, the inverse of `from_config_dict`."""
        values = dataclasses.asdict(self)
        del values["model"]["num_tokens"]
        return values

    def to_json(self) -> str:
        """JSON text, the inverse of `from_json`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ExperimentConfig":
        """Reads what `to_json` wrote; raises `ValueError` as `from_config_dict` does."""
        return cls.from_config_dict(json.loads(text))


def _check_names(values: Mapping[str, Any], allowed, prefix: str) -> None:
    for name in values:
        if name not in allowed:
            close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.0)
            raise ValueError(f"config has no field {prefix}{name}; the nearest one is {prefix}{close[0]}")


def _typed(value, kind, name: str):
    optional = isinstance(kind, types.UnionType) and type(None) in kind.__args__
    if optional and value is None:
        return None
    accepted = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool) and int not in accepted:
        return float(value)
    plain = [getattr(item, "__origin__", item) for item in accepted]
    if (isinstance(value, bool) and bool not in plain) or not isinstance(value, tuple(plain)):
        names = " or ".join(item.__name__ for item in plain if item is not type(None))
        raise ValueError(f"{name} must be of type {names}, got {value!r}")
    return value


def _build(cls, values, section: str, **given):
    if not isinstance(values, Mapping):
        raise ValueError(f"config: {section} must be a section with fields, got {values!r}")
    kinds = {name: kind for name, kind in get_type_hints(cls).items() if name not in given}
    allowed = [field.name for field in dataclasses.fields(cls) if field.name not in given]
    _check_names(values, allowed, f"{section}.")
    typed = {name: _typed(value, kinds[name], f"{section}.{name}") for name, value in values.items()}
    return cls(**given, **typed)
