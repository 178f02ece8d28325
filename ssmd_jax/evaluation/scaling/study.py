"""Runs the study: what `launch/scaling.py` does."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from ssmd_jax.evaluation import report
from ssmd_jax.evaluation.benchmark.bench import sentence
from ssmd_jax.evaluation.benchmark.ceilings import Ceilings, measure_ceilings
from ssmd_jax.evaluation.scaling import cases, programs, tables
from ssmd_jax.evaluation.scaling.lab import Lab
from ssmd_jax.evaluation.scaling.settings import CHECKPOINT, LOSSES, SAMPLING, TRAINING, Settings, make_settings
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.state import abstract_params, count_params
from ssmd_jax.training.terminal import say


def study(
    config: ExperimentConfig | Mapping[str, Any],
    *,
    output: str | os.PathLike | None = None,
    workdir: str | None = None,
    say: Callable[[str], None] = say,
    **fields,
) -> dict[str, Any]:
    """Compiles all programs, then measures case after case; progress and the tables go to `say`.

    Args:
        config: an `ExperimentConfig`, or what a config file's `get_config()` returns.
        output: file for the results, written anew after every case; None for none.
        workdir: folder in which the checkpoints' own temporary folder is made; None for the system's.
        say: told of progress.
        **fields: as `settings.make_settings`.

    Returns:
        What JSON knows: `device`, `jax`, `settings`, `num_params` by model, `ceilings`, `compile` (`seconds` of all,
        and `programs`), `rows` (a case each, `error` a sentence where it failed), `largest_loss_difference` (nats,
        over steps and meshes, from the first mesh) and `seconds` of all.

    Raises:
        ValueError: for bad input, before anything runs.
    """
    began = time.perf_counter()
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig.from_config_dict(config)
    settings = make_settings(config, **fields)
    if output is not None:
        report.check_output(output)
    if workdir is not None and not os.path.isdir(workdir):
        raise ValueError(f"workdir {workdir} is no folder: create it first")
    device = jax.local_devices()[0]
    num_params = {
        model.name: count_params(abstract_params(HybridTransformer(settings.network(model))))
        for model in settings.models
    }
    say(f"{jax.local_device_count()} x {device.device_kind}, jax {jax.__version__}")
    for model in settings.models:
        say(f"{model.name}: {num_params[model.name]:,} parameters, {settings.network(model)}")
    ceilings, ceilings_error = _ceilings(device, settings)
    results = {
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.local_device_count()},
        "jax": jax.__version__,
        "settings": settings.to_json(),
        "num_params": num_params,
        "ceilings": ceilings,
        "ceilings_error": ceilings_error,
        "compile": None,
        "rows": [],
        "largest_loss_difference": None,
        "seconds": None,
    }

    def write() -> dict[str, Any]:
        results["seconds"] = time.perf_counter() - began
        values = to_json(results)
        if output is not None:
            # Renamed, which is done or not: killed while it writes, a study keeps what it had.
            path = os.path.expanduser(output)
            report.write_output(values, f"{path}.new")
            os.replace(f"{path}.new", path)
        return values

    jobs = programs.plan(settings)
    say(f"{len(jobs)} programs, {settings.compile_threads} compiled at a time")
    compiling = time.perf_counter()
    # On a CPU compiling well takes far longer than what is measured.
    options = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    compiled = programs.compile_all(jobs, settings.compile_threads, options, say)
    results["compile"] = {
        "seconds": time.perf_counter() - compiling,
        "programs": {programs.label(name): program.to_json() for name, program in compiled.items()},
    }
    say(f"compiled in {results['compile']['seconds']:.1f} s")
    write()
    for row in _rows(Lab(settings, compiled, ceilings, began, say), workdir):
        results["rows"].append(row)
        differences = [row["largest_difference"] for row in results["rows"] if "largest_difference" in row]
        results["largest_loss_difference"] = max(differences, default=None)
        write()
    say(tables.tables(results["rows"]))
    return write()


def _rows(lab: Lab, workdir: str | None) -> Iterator[dict[str, Any]]:
    makers = {
        TRAINING: cases.training,
        LOSSES: cases.losses,
        SAMPLING: cases.sampling,
        CHECKPOINT: lambda lab: cases.checkpoint(lab, workdir),
    }
    for part in lab.settings.parts:
        yield from makers[part](lab)


def _ceilings(device: jax.Device, settings: Settings) -> tuple[Ceilings | None, str | None]:
    dtype = settings.models[0].config.dtype
    try:
        return measure_ceilings(device, dtype, runs=settings.runs, max_seconds=settings.max_seconds), None
    except Exception as error:  # the study goes on without shares
        return None, sentence(error)
