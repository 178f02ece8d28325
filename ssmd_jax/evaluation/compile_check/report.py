"""The figures as a table, and as the sentence that says what to do."""

import jax

from ssmd_jax.evaluation.compile_check.figures import Figures, gibi
from ssmd_jax.evaluation.tables import align

ADVICE = (
    "set --config.model.remat=True, lower training.batch_size or raise training.accumulation, "
    "or split the state with --config.mesh.fsdp"
)


def verdict(result: Figures, capacity: float | None) -> str:
    """What one device needs, and of how much."""
    if result.refusal is not None:
        return f"does not fit: {result.refusal}"
    if result.memory is None:
        return "the compiler does not say"
    of = "" if capacity is None else f" of {gibi(capacity)} GiB"
    return ("" if result.fits(capacity) is not False else "does not fit: ") + gibi(result.memory.total) + of


def reason(topology: str, too_large: list[str], results: dict[str, Figures], capacity: float | None) -> str:
    """One sentence on the programs that do not fit."""
    said = "; ".join(
        f"{name} at batch {results[name].batch_size} {verdict(results[name], capacity)}" for name in too_large
    )
    advice = ADVICE if set(too_large) - {"sampler"} else "lower --sample_batch"
    return f"{topology}: {said}; {advice}"


def table(
    topology: str,
    device: jax.Device,
    mesh: jax.sharding.Mesh,
    num_params: int,
    state: dict[str, int],
    results: dict[str, Figures],
    capacity: float | None,
) -> str:
    """All figures, a column a program."""
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    cell = lambda value, scale=1.0, form=".2f": "-" if value is None else format(value / scale, form)
    rows = [("one device", *results)]

    def row(name: str, value) -> None:
        rows.append((name, *(value(result) for result in results.values())))

    memory = lambda field: lambda result: "-" if result.memory is None else gibi(getattr(result.memory, field))
    row("batch, over all devices", lambda result: str(result.batch_size))
    row("GiB arguments", memory("arguments"))
    row("GiB outputs", memory("outputs"))
    row("GiB activations and scratch", memory("temporaries"))
    row("GiB program", memory("code"))
    row("GiB there meanwhile", memory("resident"))
    row("GiB in all", lambda result: result.refusal or memory("total")(result))
    row("TFLOP, our formula", lambda result: cell(result.flops, 1e12))
    row("TFLOP, compiler (loop bodies once)", lambda result: cell(result.compiler_flops, 1e12))
    row("GB moved, compiler (loop bodies once)", lambda result: cell(result.compiler_bytes, 1e9))
    row("GB moved, with turns that are known", lambda result: cell(result.moved_bytes, 1e9))
    kinds = [one.kind for result in results.values() for one in result.collectives]
    for kind in dict.fromkeys(kinds):

        def sent(result, kind=kind):
            found = [one for one in result.collectives if one.kind == kind]
            return f"{found[0].count} x, {found[0].num_bytes / 1e6:.1f}" if found else "-"

        row(f"MB {kind}", sent)
    row("ms at least: compute", lambda result: cell(result.seconds.compute, 1e-3))
    row("ms at least: memory", lambda result: cell(result.seconds.memory, 1e-3))
    row("ms at least: collectives", lambda result: cell(result.seconds.collectives, 1e-3))
    row("ms at least (a bound, nothing else counted)", lambda result: cell(result.seconds.bound, 1e-3))
    unknown = sum(result.unknown_loops for result in results.values())
    parts = ", ".join(
        f"{name} {gibi(state[field])}"
        for name, field in (
            ("parameters", "params"),
            ("moving average", "ema_params"),
            ("optimiser", "opt_state"),
            ("teacher", "teacher_params"),
        )
        if field in state
    )
    return "\n".join(
        [
            f"{topology}: {mesh.size} x {device.device_kind}, mesh {shape}, {num_params:,} parameters",
            f"a device has {'an unknown number of' if capacity is None else gibi(capacity)} GiB; state, GiB: {parts}",
            align(rows),
            *([f"{unknown} loops with collectives whose turns are not known count once"] if unknown else []),
        ]
    )
