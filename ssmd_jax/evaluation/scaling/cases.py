"""The cases of each part: what is run, and what is said of it."""

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.evaluation.benchmark.rows import share
from ssmd_jax.evaluation.scaling.lab import Lab, peak_of, release
from ssmd_jax.evaluation.scaling.programs import DRAW, STEP, WEIGHTS, saved_layout
from ssmd_jax.evaluation.scaling.settings import CHECKPOINT, LOSSES, SAMPLING, TRAINING, Layout, Model
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.training.checkpoint import Checkpoints, parts_of
from ssmd_jax.training.digest import digests
from ssmd_jax.training.flops import train_flops_per_token
from ssmd_jax.training.programs import make_programs
from ssmd_jax.training.state import TrainState

# Steps before a state is saved: its moments are no zeros then, which would be written in no time.
STEPS_SAVED = 2


def training(lab: Lab) -> Iterator[dict[str, Any]]:
    """Weak scaling: each device has the same number of sequences."""
    for model in lab.settings.models:
        alone = None
        for layout in lab.settings.layouts():
            row = lab.row(TRAINING, model, layout, functools.partial(_steps, lab, model, layout))
            alone, row["efficiency"] = _efficiency(row, "tokens_per_second", alone)
            yield row


def _efficiency(row: dict[str, Any], rate: str, alone: float | None) -> tuple[float | None, float | None]:
    """The rate of one device, once it is known, and this row's share of as many times that."""
    if row["error"] is not None:
        return alone, None
    if row["devices"] == 1:
        alone = row[rate]
    return alone, share(row[rate], alone and alone * row["devices"])


def _steps(lab: Lab, model: Model, layout: Layout) -> dict[str, Any]:
    settings, batch = lab.settings, model.batch_size * layout.devices
    trainer = lab.trainer(model, layout, batch)
    try:
        # Of the first step, as the number of those that follow depends on how long they take.
        loss = float(next(trainer)[1]["loss"])
        found = lab.timed(functools.partial(next, trainer), f"training {model.name}, {layout.name}")
    finally:
        trainer.close()
    tokens = batch * settings.config.length
    network = settings.network(model)
    rate = tokens * train_flops_per_token(network, settings.config.length) / layout.devices / found["seconds"]
    return found | {
        "batch_size": batch,
        "tokens_per_second": tokens / found["seconds"],
        "device_flops_per_second": rate,
        "share_of_ceiling": share(rate, lab.ceilings and lab.ceilings.matmul_flops),
        "share_of_published_peak": share(rate, lab.ceilings and lab.ceilings.published_flops),
        "program_bytes": lab.program(STEP, model.name, layout, batch).program_bytes,
        "device_peak_bytes": peak_of(layout),
        "loss": loss,
    }


def losses(lab: Lab) -> Iterator[dict[str, Any]]:
    """The same batch on every mesh, the smallest model: losses and gradient norms, and how far from the first row's."""
    model, first = lab.settings.smallest(), None
    for layout in lab.settings.layouts():
        row = lab.row(LOSSES, model, layout, functools.partial(_losses, lab, model, layout))
        if row["error"] is None:
            first = first or row
            row["compared_with"] = first["layout"]
            row["largest_difference"] = _largest(row["losses"], first["losses"])
            relative = np.divide(row["gradient_norms"], first["gradient_norms"])
            row["largest_gradient_difference"] = _largest(relative, np.ones_like(relative))
        yield row


def _largest(values, others) -> float:
    return float(np.max(np.abs(np.subtract(values, others))))


def _losses(lab: Lab, model: Model, layout: Layout) -> dict[str, Any]:
    settings, began = lab.settings, time.perf_counter()
    trainer = lab.trainer(model, layout, settings.loss_batch)
    try:
        steps = jax.device_get([next(trainer)[1] for _ in range(settings.loss_steps)])
    finally:
        trainer.close()
    return {
        "seconds": time.perf_counter() - began,
        "batch_size": settings.loss_batch,
        "losses": [float(step["loss"]) for step in steps],
        "gradient_norms": [float(step["grad_norm"]) for step in steps],
    }


def sampling(lab: Lab) -> Iterator[dict[str, Any]]:
    """The speculative sampler, a loop a device, each device with the same number of rows."""
    for model in lab.settings.models:
        alone, first_tokens = None, None
        for devices in lab.settings.devices:
            layout, kept = Layout(devices, 1), []
            row = lab.row(SAMPLING, model, layout, functools.partial(_draw, lab, model, layout, kept))
            alone, row["efficiency"] = _efficiency(row, "samples_per_second", alone)
            if row["error"] is None:
                first_tokens = kept[0] if first_tokens is None else first_tokens
                count = len(first_tokens)
                # A row depends on its own key alone, whatever the number of devices.
                row["equal_rows"] = float(np.mean(np.all(kept[0][:count] == first_tokens, axis=1)))
            yield row


def _draw(lab: Lab, model: Model, layout: Layout, kept: list[np.ndarray]) -> dict[str, Any]:
    """Appends the samples to `kept`, beside the figures that it returns."""
    settings, batch = lab.settings, model.sample_size * layout.devices
    draw, weights = lab.program(DRAW, model.name, layout, batch), lab.program(WEIGHTS, model.name, layout)
    lab.check_memory(layout, max(draw.program_bytes or 0, weights.program_bytes or 0))
    key = settings.key(layout)
    bound = HybridModel(weights.call(key), settings.network(model))
    try:
        found = lab.timed(lambda: draw.call(bound, key), f"sampling {model.name}, {layout.name}")
        result = jax.device_get(draw.call(bound, key))
    finally:
        release(bound)
    kept.append(result.tokens)
    settled = result.accepted.sum() + result.rejected.sum()
    return found | {
        "batch_size": batch,
        "samples_per_second": batch / found["seconds"],
        "tokens_per_second": batch * settings.config.length / found["seconds"],
        "nfe": float(result.nfe.mean()),
        # A device's loop turns as often as the slowest of its rows needs.
        "most_passes": int(result.trunk_passes.max()),
        "most_rounds": int(result.verify_rounds.max()),
        "acceptance": float(result.accepted.sum() / settled) if settled else None,
        "program_bytes": draw.program_bytes,
        "device_peak_bytes": peak_of(layout),
    }


def checkpoint(lab: Lab, workdir: str | None) -> Iterator[dict[str, Any]]:
    """The state of one model, split over all devices: saved, restored, restored on half of them.

    What is restored has just been written: it comes from the host's memory where that holds it, not from the disk.
    """
    name, layout = lab.settings.checkpoint_model, saved_layout(lab.settings)
    model = next(model for model in lab.settings.models if model.name == name)
    measure = functools.partial(_in_own_folder, lab, model, layout, workdir)
    yield lab.row(CHECKPOINT, model, layout, measure)


def _in_own_folder(lab: Lab, model: Model, layout: Layout, workdir: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="scaling_", dir=workdir, ignore_cleanup_errors=True) as folder:
        return _checkpoint(lab, model, layout, Path(folder))


def _checkpoint(lab: Lab, model: Model, layout: Layout, folder: Path) -> dict[str, Any]:
    settings, batch = lab.settings, model.batch_size * layout.devices
    warnings = []
    with Checkpoints(folder) as checkpoints:
        trainer = lab.trainer(model, layout, batch)
        try:
            for _ in range(STEPS_SAVED):
                state, _ = next(trainer)
            saved_digests = _digests(state)  # saving takes them too: compiled here, before the clock runs
            num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
            began = time.perf_counter()
            checkpoints.save(state)
            returned = time.perf_counter() - began
            checkpoints.wait()
            saved = time.perf_counter() - began
        finally:
            trainer.close()
        found = {
            "seconds": saved,
            "seconds_until_training_goes_on": returned,
            "state_bytes": num_bytes,
            "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "bytes_per_second": num_bytes / saved,
        }
        half = Layout(1, max(1, layout.devices // 2))
        for prefix, target in (("restore", layout), ("restore_half", half)):
            experiment = settings.experiment(model, target, batch)
            abstract = make_programs(experiment, target.mesh(), settings.num_tokens).abstract
            _compile_digests(abstract)
            began = time.perf_counter()
            restored = checkpoints.restore(abstract, warnings.append)
            state = jax.block_until_ready(restored.state)
            found |= {
                f"{prefix}_seconds": time.perf_counter() - began,
                f"{prefix}_devices": target.devices,
                f"{prefix}_digests_equal": _digests(state) == saved_digests,
            }
            release(state)
    return found | {"warnings": warnings}


def _compile_digests(abstract: TrainState) -> None:
    """Takes the digests of zeros, so that compiling them is not in the seconds of restoring."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract)
    _digests(zeros)
    release(zeros)


def _digests(state: TrainState) -> dict[str, dict[str, str]]:
    return {name: digests(part) for name, part in parts_of(state).items()}
