"""All programs of a study, compiled before anything runs, many at a time."""

import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax

from ssmd_jax.evaluation.benchmark.bench import sentence
from ssmd_jax.evaluation.benchmark.models import random_params
from ssmd_jax.evaluation.compile_check import lowering
from ssmd_jax.evaluation.scaling.settings import CHECKPOINT, LOSSES, SAMPLING, TRAINING, Layout, Model, Settings
from ssmd_jax.training import sharding

# Kinds of programs, the first entry of their names; the others are the model, the layout and the batch.
INIT, STEP, WEIGHTS, DRAW = "init", "train step", "weights", "sampler"


class Job(NamedTuple):
    """A program to compile.

    Attributes:
        lower: traces and lowers it.
        around: makes the context in which it is compiled: rules for sharding custom calls ask for the mesh then.
    """

    lower: Callable[[], jax.stages.Lowered]
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


class Compiled(NamedTuple):
    """A compiled program, or the reason why there is none.

    Attributes:
        call: takes the arguments that it was compiled for; None where it failed.
        lower_seconds: tracing and lowering.
        compile_seconds: compiling, beside others.
        program_bytes: on a device: arguments, outputs and scratch, what is donated once; None where nobody says.
        error: one sentence where it failed.
    """

    call: Callable | None = None
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    program_bytes: int | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = self._asdict()
        del values["call"]
        return values


def compile_all(
    jobs: Mapping[Hashable, Job], threads: int, options: dict[str, Any] | None, say: Callable[[str], None]
) -> dict[Hashable, Compiled]:
    """Lowers the programs one after the other, as tracing is Python, and compiles those that are ready meanwhile.

    Args:
        jobs: by name.
        threads: programs compiled at a time.
        options: of the compiler.
        say: told of every program when it is done.
    """
    results, running = {}, {}
    with futures.ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
        for name, job in jobs.items():
            began = time.perf_counter()
            try:
                lowered = job.lower()
            except Exception as error:  # the other programs are paid for too
                results[name] = Compiled(error=sentence(error))
                say(f"{label(name)}: {results[name].error}")
                continue
            seconds = time.perf_counter() - began
            running[pool.submit(_compile, lowered, job.around, options)] = name, seconds
        for done in futures.as_completed(running):
            name, seconds = running[done]
            results[name] = done.result()._replace(lower_seconds=seconds)
            took, error = results[name].compile_seconds, results[name].error
            say(f"{label(name)}: " + (error or f"lowered in {seconds:.1f} s, compiled in {took:.1f} s"))
    return {name: results[name] for name in jobs}


def _compile(lowered: jax.stages.Lowered, around, options) -> Compiled:
    began = time.perf_counter()
    try:
        with around():
            compiled = lowered.compile(compiler_options=options)
        seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    except Exception as error:  # the other programs are paid for too
        return Compiled(compile_seconds=time.perf_counter() - began, error=sentence(error))
    if memory is None:
        return Compiled(compiled, compile_seconds=seconds)
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    num_bytes = int(total - memory.alias_size_in_bytes)
    return Compiled(compiled, compile_seconds=seconds, program_bytes=num_bytes)


def label(name: tuple) -> str:
    """A program's name in words."""
    kind, model, layout, *batch = name
    return ", ".join([f"{kind} {model}", layout.name, *(f"batch {size}" for size in batch)])


def plan(settings: Settings) -> dict[tuple, Job]:
    """What the study's parts need, by name, each once; those that take longest to compile come first.

    Names are `(INIT, model, layout)`, `(STEP, model, layout, batch)`, `(WEIGHTS, model, layout)` and
    `(DRAW, model, layout, batch)`.
    """
    jobs = {}
    for model in sorted(settings.models, key=lambda model: -model.config.width):
        for layout in settings.layouts():
            batches = []
            if TRAINING in settings.parts or _is_saved(settings, model, layout):
                batches.append(model.batch_size * layout.devices)
            if LOSSES in settings.parts and model == settings.smallest():
                batches.append(settings.loss_batch)
            for batch in batches:
                jobs[STEP, model.name, layout, batch] = _on_mesh(_lower_step, settings, model, layout, batch)
            if batches:
                jobs[INIT, model.name, layout] = _on_mesh(_lower_init, settings, model, layout, batches[0])
        for devices in settings.devices if SAMPLING in settings.parts else ():
            layout = Layout(devices, 1)
            batch = model.sample_size * devices
            jobs[DRAW, model.name, layout, batch] = Job(
                functools.partial(_lower_sampler, settings, model, layout, batch)
            )
            jobs[WEIGHTS, model.name, layout] = Job(functools.partial(_lower_weights, settings, model, layout))
    return {name: jobs[name] for kind in (STEP, DRAW, INIT, WEIGHTS) for name in jobs if name[0] == kind}


def saved_layout(settings: Settings) -> Layout:
    """Where the state that is saved lies: split over all devices."""
    return Layout(1, settings.devices[-1])


def _is_saved(settings: Settings, model: Model, layout: Layout) -> bool:
    return CHECKPOINT in settings.parts and model.name == settings.checkpoint_model and layout == saved_layout(settings)


def _on_mesh(lower: Callable, settings: Settings, model: Model, layout: Layout, batch: int) -> Job:
    return Job(functools.partial(lower, settings, model, layout, batch), lambda: sharding.activate(layout.mesh()))


def _lower_step(settings: Settings, model: Model, layout: Layout, batch: int) -> jax.stages.Lowered:
    experiment = settings.experiment(model, layout, batch)
    return lowering.lower_train(experiment, layout.mesh(), settings.num_tokens)[1]


def _lower_init(settings: Settings, model: Model, layout: Layout, batch: int) -> jax.stages.Lowered:
    mesh = layout.mesh()
    built = lowering.make_programs(settings.experiment(model, layout, batch), mesh, settings.num_tokens)
    with sharding.activate(mesh, built.rules):
        return built.init.lower(settings.key(layout))


def _lower_sampler(settings: Settings, model: Model, layout: Layout, batch: int) -> jax.stages.Lowered:
    experiment = settings.experiment(model, layout, batch)
    return lowering.lower_sampler(experiment, layout.mesh(), settings.num_tokens, batch)


def _lower_weights(settings: Settings, model: Model, layout: Layout) -> jax.stages.Lowered:
    mesh = layout.mesh()
    init = functools.partial(random_params, settings.network(model), settings.perturbation)
    where = sharding.replicated(mesh)
    return jax.jit(init, out_shardings=where).lower(settings.key(layout))
