"""What the study measures: models, meshes, and how much of each."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.training import sharding
from ssmd_jax.training.config import ExperimentConfig, MeshConfig

TRAINING, LOSSES, SAMPLING, CHECKPOINT = PARTS = ("training", "losses", "sampling", "checkpoint")

# Fields of the experiment's network that differ, and sequences that a device gets in training and in sampling.
SIZES = {
    "150m": ({}, 32, 32),
    "1b": ({"width": 2048, "num_heads": 16, "n_noncausal": 14}, 8, 8),
}
# The same names at shapes that are compiled in seconds; the vocabulary is large enough to be taken in chunks.
_TINY_NETWORK = {"n_noncausal": 1, "n_causal": 1, "mlp_width": 64, "num_heads": 2}
TINY_SIZES = {
    "150m": ({**_TINY_NETWORK, "width": 32}, 4, 2),
    "1b": ({**_TINY_NETWORK, "width": 64}, 2, 2),
}
TINY_TOKENS = 4096
TINY_LENGTH = 16
# In every layout from four devices on that has both axes: so many copies of the parameters.
MIXED_COPIES = 2


class Layout(NamedTuple):
    """A mesh.

    Attributes:
        data: copies of the model.
        fsdp: ways in which the state is split.
    """

    data: int
    fsdp: int

    @property
    def devices(self) -> int:
        """How many."""
        return self.data * self.fsdp

    @property
    def name(self) -> str:
        """For people."""
        sizes = (("data", self.data), ("fsdp", self.fsdp))
        return " x ".join(f"{axis} {size}" for axis, size in sizes if size > 1) or "alone"

    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of this process's first devices."""
        return sharding.make_mesh(MeshConfig(data=self.data, fsdp=self.fsdp), jax.local_devices()[: self.devices])


def layouts(devices: int) -> tuple[Layout, ...]:
    """Layouts of training on so many devices: data, fsdp, and from four devices on both."""
    if devices == 1:
        return (Layout(1, 1),)
    mixed = (Layout(MIXED_COPIES, devices // MIXED_COPIES),) if devices >= 4 else ()
    return (Layout(devices, 1), Layout(1, devices), *mixed)


class Model(NamedTuple):
    """A network of the study.

    Attributes:
        name: of `SIZES`.
        config: its shape and kernels.
        batch_size: sequences a device in training.
        sample_size: sequences a device in sampling.
    """

    name: str
    config: HybridConfig
    batch_size: int
    sample_size: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of a study.

    Attributes:
        config: the experiment; its network, mesh and batch are replaced.
        num_tokens: of the tokenizer.
        models: the networks.
        devices: numbers of devices, ascending.
        parts: some of `PARTS`.
        loss_batch: sequences of a step over all devices where losses are compared.
        loss_steps: steps of that comparison.
        checkpoint_model: name of the model whose state is saved.
        runs: timed runs of each case.
        max_seconds: of timed runs for each case.
        budget_seconds: no case starts later than this after the study's start.
        compile_threads: programs compiled at a time.
        perturbation: in sampling, as in `benchmark.settings.Settings`.
        tiny: whether these are `TINY_SIZES`.
    """

    config: ExperimentConfig
    num_tokens: int
    models: tuple[Model, ...]
    devices: tuple[int, ...]
    parts: tuple[str, ...]
    loss_batch: int
    loss_steps: int
    checkpoint_model: str
    runs: int
    max_seconds: float
    budget_seconds: float
    compile_threads: int
    perturbation: float = 0.2
    tiny: bool = False

    def __post_init__(self):
        for name in ("num_tokens", "loss_batch", "loss_steps", "runs", "compile_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)}")
        for name in ("max_seconds", "budget_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if LOSSES in self.parts and self.loss_batch % self.devices[-1]:
            raise ValueError(f"loss_batch {self.loss_batch} is not divisible by {self.devices[-1]} devices")

    def layouts(self) -> tuple[Layout, ...]:
        """Of all numbers of devices."""
        return tuple(layout for devices in self.devices for layout in layouts(devices))

    def experiment(self, model: Model, layout: Layout, batch_size: int) -> ExperimentConfig:
        """What is trained: without warm-up, so that a few steps change the parameters and wrong gradients show.

        Args:
            model: the network.
            layout: the mesh.
            batch_size: sequences a step, over all devices.
        """
        config = self.config
        return dataclasses.replace(
            config,
            model=model.config,
            mesh=MeshConfig(data=layout.data, fsdp=layout.fsdp),
            training=dataclasses.replace(config.training, batch_size=batch_size, accumulation=1),
            optimizer=dataclasses.replace(config.optimizer, warmup_steps=0),
        )

    def network(self, model: Model) -> HybridConfig:
        """A model's network for the study's tokenizer."""
        return dataclasses.replace(model.config, num_tokens=self.num_tokens)

    def key(self, layout: Layout) -> jax.Array:
        """The root of all random numbers, on every device of a mesh."""
        return sharding.root_key(layout.mesh(), self.config.seed)

    def smallest(self) -> Model:
        """The model whose losses are compared."""
        return min(self.models, key=lambda model: (model.config.width, model.config.n_noncausal))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        models = [model._asdict() | {"config": dataclasses.asdict(model.config)} for model in self.models]
        return values | {"config": self.config.to_dict(), "models": models}


def make_settings(
    config: ExperimentConfig,
    *,
    num_tokens: int,
    models: Sequence[str] = tuple(SIZES),
    devices: Sequence[str | int] = (),
    parts: Sequence[str] = PARTS,
    batch_sizes: Sequence[str | int] = (),
    sample_sizes: Sequence[str | int] = (),
    attention: str | None = None,
    mlp: str | None = None,
    unroll: int | None = None,
    checkpoint_model: str | None = None,
    budget_seconds: float | None = None,
    compile_threads: int | None = None,
    tiny: bool = False,
    **fields,
) -> Settings:
    """Checks what the user asks for; None and empty sequences stand for the defaults.

    Args:
        config: the experiment whose network is "150m".
        num_tokens: of the tokenizer.
        models: names of `SIZES`.
        devices: numbers of devices, powers of two; all up to the number of local devices.
        parts: some of `PARTS`.
        batch_sizes: sequences a device in training, one number a model.
        sample_sizes: the same in sampling.
        attention: "xla" or "cudnn"; by default cuDNN where there is a GPU and bfloat16.
        mlp: "xla" or "hopper", in sampling.
        unroll: trunk blocks a step of the scan; all of them on a GPU, the experiment's elsewhere.
        checkpoint_model: name of the model whose state is saved; the first.
        budget_seconds: no case starts later; no bound.
        compile_threads: programs compiled at a time; as many as there are cores, 16 at most.
        tiny: shapes that any device runs in no time, to see that all works.
        **fields: others of `Settings`.

    Raises:
        ValueError: one sentence that names the argument.
    """
    sizes = TINY_SIZES if tiny else SIZES
    for what, names, allowed in (("models", models, sizes), ("parts", parts, PARTS)):
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise ValueError(f"{what} must be among {', '.join(allowed)}, got {', '.join(unknown) or 'none'}")
    if checkpoint_model is not None and checkpoint_model not in models:
        raise ValueError(f"checkpoint_model must be among {', '.join(models)}, got {checkpoint_model!r}")
    if tiny:
        sampling = dataclasses.replace(config.sampling, window="cosine", delta_tau=0.3, verify_rounds=2)
        config, num_tokens = dataclasses.replace(config, length=TINY_LENGTH, sampling=sampling), TINY_TOKENS
    batches = _one_each("batch_sizes", batch_sizes, [sizes[name][1] for name in models])
    samples = _one_each("sample_sizes", sample_sizes, [sizes[name][2] for name in models])
    on_gpu = jax.default_backend() == "gpu"
    made = []
    for name, batch_size, sample_size in zip(models, batches, samples, strict=True):
        network = dataclasses.replace(config.model, attention="xla", mlp="xla", **sizes[name][0])
        if tiny and not on_gpu:  # a GPU tries the kernels and the dtype of the real shapes
            network = dataclasses.replace(network, dtype="float32")
        fused = "cudnn" if on_gpu and network.dtype == "bfloat16" else "xla"
        network = dataclasses.replace(
            network,
            attention=attention or fused,
            mlp=mlp or "xla",
            unroll=unroll or (network.n_noncausal if on_gpu else network.unroll),
        )
        made.append(Model(name, network, batch_size, sample_size))
    return Settings(
        config=config,
        num_tokens=num_tokens,
        models=tuple(made),
        devices=_device_counts(devices),
        parts=tuple(part for part in PARTS if part in parts),
        checkpoint_model=checkpoint_model or models[0],
        budget_seconds=math.inf if budget_seconds is None else budget_seconds,
        compile_threads=min(16, os.cpu_count() or 1) if compile_threads is None else compile_threads,
        tiny=tiny,
        **fields,
    )


def _whole(what: str, values: Sequence[str | int]) -> list[int]:
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        raise ValueError(f"{what} must be whole numbers, got {', '.join(map(str, values))}") from None
    if any(number < 1 for number in numbers):
        raise ValueError(f"{what} must be at least 1, got {', '.join(map(str, values))}")
    return numbers


def _one_each(what: str, values: Sequence[str | int], default: list[int]) -> list[int]:
    numbers = _whole(what, values) or default
    if len(numbers) != len(default):
        raise ValueError(f"{what} must be one number for each of the {len(default)} models, got {len(numbers)}")
    return numbers


def _device_counts(values: Sequence[str | int]) -> tuple[int, ...]:
    here = jax.local_device_count()
    counts = _whole("devices", values) or [2**n for n in range(here.bit_length())]
    for count in counts:
        if count & (count - 1) or count > here:
            raise ValueError(f"devices must be powers of two up to the {here} that are here, got {count}")
    return tuple(sorted(set(counts)))
