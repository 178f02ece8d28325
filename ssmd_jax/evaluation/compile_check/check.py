"""Compiles a run's programs for a topology, and says whether they fit: what `launch/compile_check.py` does."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ssmd_jax.data import tokenizers
from ssmd_jax.data.pipeline import DataConfig
from ssmd_jax.evaluation.compile_check import figures, lowering, report, topology
from ssmd_jax.evaluation.compile_check.chips import Chip, chip_of
from ssmd_jax.evaluation.compile_check.figures import Figures, bytes_per_device
from ssmd_jax.training import sharding
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.loading import for_device
from ssmd_jax.training.state import count_params
from ssmd_jax.training.terminal import say

# Sequences that the sampler draws at a time on each device, where nobody says.
SAMPLES_A_DEVICE = 32


def check(
    config: ExperimentConfig | Mapping[str, Any],
    topology_name: str,
    *,
    num_tokens: int | None = None,
    batch_size: int | None = None,
    sample_batch: int | None = None,
    programs: tuple[str, ...] = lowering.PROGRAMS,
    effort: float = -1.0,
    largest_batch: bool = False,
) -> dict[str, Any]:
    """Compiles for devices that need not be there; a table goes to standard error.

    Args:
        config: an `ExperimentConfig`, or what a config file's `get_config()` returns.
        topology_name: as `topology.devices_of`.
        num_tokens: of the tokenizer; None where the config says.
        batch_size: sequences of a train step; None for the config's.
        sample_batch: sequences that the sampler draws at a time; None for `SAMPLES_A_DEVICE` on each.
        programs: of `lowering.PROGRAMS`.
        effort: of the TPU's compiler, -1 to 1. At 0, its default, it takes many times longer.
        largest_batch: search the largest batch of training that fits, and report that.

    Returns:
        JSON values: "topology", "device", "devices", "mesh", "capacity" (bytes of a device, None where not known),
        "num_params", "state" (bytes on a device of "params", "ema_params", "opt_state" and, where the loss keeps one,
        "teacher_params"), "programs" (by name, see `figures.Figures`), "fits" (None where the capacity is not known),
        "reason" (None where it fits).

    Raises:
        ValueError: for bad input, and where not even the smallest batch fits.
        ImportError: where the TPU's compiler is missing.
    """
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig.from_config_dict(config)
    unknown = [name for name in programs if name not in lowering.PROGRAMS]
    if unknown or not programs:
        raise ValueError(f"programs must be among {', '.join(lowering.PROGRAMS)}, got {', '.join(unknown) or 'none'}")
    num_tokens = tokens_of(config.data) if num_tokens is None else num_tokens
    devices = topology.devices_of(topology_name)
    model, notes = for_device(config.model, devices[0])
    config = dataclasses.replace(config, model=model)
    mesh = sharding.make_mesh(config.mesh, devices)
    if topology_name != topology.LOCAL and mesh.size != len(devices):
        raise ValueError(
            f"mesh: {mesh.size} of the {len(devices)} devices of {topology_name}; set one of its axes to -1"
        )
    sample_batch = SAMPLES_A_DEVICE * mesh.size if sample_batch is None else sample_batch
    chip = chip_of(devices[0])
    capacity = _capacity(devices[0], chip, is_here=topology_name == topology.LOCAL)
    options = {"exec_time_optimization_effort": effort} if devices[0].platform == "tpu" else {}
    for note in notes:
        say(note)

    @functools.cache
    def train(size: int) -> Figures:
        at_size = lowering.with_batch(config, size)
        built, lowered = lowering.lower_train(at_size, mesh, num_tokens)
        flops = figures.train_flops(at_size, built.network.config) / mesh.size
        result = figures.compile_program(lowered, batch_size=size, flops=flops, chip=chip, options=options)
        say(f"train, batch {size}: {report.verdict(result, capacity)} (compiled in {result.compile_seconds:.0f} s)")
        return result

    batch_size = config.training.batch_size if batch_size is None else batch_size
    if largest_batch:
        if capacity is None:
            raise ValueError(f"largest_batch needs the memory of {devices[0].device_kind}, which is not known")
        unit = sharding.batch_ways(mesh) * config.training.accumulation

        def fits(size: int) -> bool:
            found = train(size).fits(capacity)
            if found is None:
                raise ValueError("largest_batch needs the compiler's count of memory, which this backend does not give")
            return found

        found = largest(fits, max(1, batch_size // unit), unit)
        if found is None:
            raise ValueError(f"not even a batch of {unit} fits {topology_name}: {report.ADVICE}")
        batch_size = found
    config = lowering.with_batch(config, batch_size)

    results = {}
    built = lowering.make_programs(config, mesh, num_tokens)
    parts = ("params", "ema_params", "opt_state", *(("teacher_params",) if config.loss.keeps_teacher else ()))
    state = {name: bytes_per_device(getattr(built.abstract, name)) for name in parts}
    if lowering.TRAIN in programs:
        results[lowering.TRAIN] = train(batch_size)
    if lowering.VALIDATION in programs:
        results[lowering.VALIDATION] = figures.compile_program(
            lowering.lower_validation(config, mesh, built),
            batch_size=config.training.validation_batch_size,
            flops=figures.validation_flops(config, built.network.config) / mesh.size,
            chip=chip,
            options=options,
            resident=bytes_per_device(built.abstract) - bytes_per_device(built.abstract.eval_params),
        )
        say(f"validation: compiled in {results[lowering.VALIDATION].compile_seconds:.0f} s")
    if lowering.SAMPLER in programs:
        results[lowering.SAMPLER] = figures.compile_program(
            lowering.lower_sampler(config, mesh, num_tokens, sample_batch),
            batch_size=sample_batch,
            flops=figures.sampler_flops(config, built.network.config, sample_batch) / mesh.size,
            chip=chip,
            options=options,
            steps=False,
        )
        say(f"sampler: compiled in {results[lowering.SAMPLER].compile_seconds:.0f} s")
    fitting = {name: result.fits(capacity) for name, result in results.items()}
    num_params = count_params(built.abstract.params)
    say(report.table(topology_name, devices[0], mesh, num_params, state, results, capacity))
    is_too_large = [name for name, does_fit in fitting.items() if does_fit is False]
    return {
        "topology": topology_name,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "capacity": capacity,
        "num_params": num_params,
        "state": state,
        "programs": {name: result.to_json() for name, result in results.items()},
        "fits": False if is_too_large else None if None in fitting.values() else True,
        "reason": report.reason(topology_name, is_too_large, results, capacity) if is_too_large else None,
    }


def tokens_of(data: DataConfig) -> int:
    """Tokens of the tokenizer that a config names, without its data.

    Raises:
        ValueError: where only a file that is not here would tell.
    """
    if data.vocab_size is not None:
        return data.vocab_size
    try:
        return tokenizers.make_tokenizer(data.tokenizer, data.tokenizer_path).num_tokens
    except FileNotFoundError:
        raise ValueError(
            f"data.tokenizer_path {data.tokenizer_path} is not here: give --num_tokens (50257 for GPT-2's tokenizer)"
        ) from None


def largest(fits: Callable[[int], bool], start: int, unit: int) -> int | None:
    """The largest multiple of `unit` that fits: doubling or halving from `start * unit`, then bisection.

    From 32 units on it is found to within a sixteenth: a size more is a compilation more.

    Args:
        fits: whether a size fits; true up to some size, false behind it.
        start: at least 1.
        unit: sizes are its multiples.

    Returns:
        A size that fits; None where not even `unit` does.
    """
    if fits(start * unit):
        fitting, failing = start, 2 * start
        while fits(failing * unit):
            fitting, failing = failing, 2 * failing
    else:
        fitting, failing = start // 2, start
        while fitting and not fits(fitting * unit):
            fitting, failing = fitting // 2, fitting
        if not fitting:
            return None
    while failing - fitting > max(1, fitting // 16):
        middle = (fitting + failing) // 2
        if fits(middle * unit):
            fitting = middle
        else:
            failing = middle
    return fitting * unit


def _capacity(device: jax.Device, chip: Chip | None, is_here: bool) -> float | None:
    """Bytes that programs can have on a device; None where nobody says."""
    # A device that is here knows what jax may take of it.
    stats = device.memory_stats() if is_here else None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return None if chip is None else float(chip.memory)
