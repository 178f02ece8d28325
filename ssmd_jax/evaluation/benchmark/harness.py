"""Runs the suites and gathers what they find."""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from ssmd_jax.evaluation.benchmark import cost, likelihood, sampling, training
from ssmd_jax.evaluation.benchmark.bench import Bench, ceilings_of
from ssmd_jax.evaluation.benchmark.models import random_model, trained_settings
from ssmd_jax.evaluation.benchmark.program import peak_bytes
from ssmd_jax.evaluation.benchmark.rows import table
from ssmd_jax.evaluation.benchmark.settings import PRESETS, SUITES, Settings, make_settings, parse_suites
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.training.terminal import say

_SUITES = {suite.SUITE: suite for suite in (sampling, training, likelihood, cost)}


def benchmark(
    *,
    suites: str = ",".join(SUITES),
    preset: str = "tiny",
    workdir: str | os.PathLike | None = None,
    parts: str = "",
    profile: str | None = None,
    say: Callable[[str], None] = say,
    **overrides,
) -> dict[str, Any]:
    """Measures the ceilings and the suites on the first device; progress and the table go to `say`.

    Args:
        suites: names separated by commas.
        preset: shapes, see `settings.PRESETS`.
        workdir: a trained run to take network, length, window and rounds from; None for random weights.
        parts: only parts whose name holds one of these words, separated by commas; "" for all.
        profile: folder for a trace of one call of each part.
        say: told of progress.
        **overrides: as `settings.make_settings`; None for the preset's.

    Returns:
        What JSON knows: `device`, `jax`, `settings`, `ceilings`, `rows`, `ratios`, `peak_bytes` of the process
        (by the device where it says, or else the largest program's), `seconds` of all.

    Raises:
        ValueError: for bad settings, before anything runs.
        RecompilationError: where a timed region compiled.
    """
    began = time.perf_counter()
    wanted = parse_suites(suites)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    words = tuple(word.strip() for word in parts.split(",") if word.strip())
    names = [part for suite in wanted for part in _SUITES[suite].PARTS]
    for word in words:
        if not any(word in name for name in names):
            raise ValueError(f"parts: no part is called {word!r}; there are {', '.join(names)}")
    trained, base = (None, None) if workdir is None else trained_settings(workdir, preset)
    settings = make_settings(preset, base=base, **overrides)
    device = jax.local_devices()[0]
    say(f"{device.device_kind}, jax {jax.__version__}, {preset}: {describe(settings)}")

    ceilings, ceilings_error = ceilings_of(device, settings, say)
    if trained is None:
        model = random_model(settings.model, settings.seed, settings.perturbation)
    else:
        model = trained.replace(config=settings.model)
    bench = Bench(settings, model, device, ceilings, say, profile, words)
    rows = [row for suite in wanted for row in _SUITES[suite].run(bench)]

    ratios = sampling.ratios(rows)
    say(table(rows, ceilings))
    for name, value in ratios.items():
        say(f"{name}: {value:.3f}")
    programs = [row.program.program_bytes for row in rows if row.program and row.program.program_bytes]
    return to_json(
        {
            "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
            "jax": jax.__version__,
            "suites": list(wanted),
            "settings": dataclasses.asdict(settings) | {"weights": "trained" if workdir else "random"},
            "ceilings": None if ceilings is None else ceilings._asdict(),
            "ceilings_error": ceilings_error,
            "rows": [row.to_json(ceilings) for row in rows],
            "ratios": ratios,
            "peak_bytes": peak_bytes(device) or max(programs, default=math.nan),
            "seconds": time.perf_counter() - began,
        }
    )


def describe(settings: Settings) -> str:
    """The shapes in one line."""
    model = settings.model
    return (
        f"batch {settings.batch_size}, D {settings.length}, {model.n_noncausal}+{model.n_causal} x {model.width}, "
        f"V {model.num_tokens}, {model.dtype}, attention {model.attention}, MLP {model.mlp}, "
        f"unroll {model.unroll}, window {settings.window_size} (dtau {settings.delta_tau:g}), "
        f"{settings.verify_rounds} rounds"
    )
