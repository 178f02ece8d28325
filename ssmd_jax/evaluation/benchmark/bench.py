"""What every suite is given: settings, device and clock; and how one part is measured."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from ssmd_jax.evaluation.benchmark import program, timing
from ssmd_jax.evaluation.benchmark.ceilings import Ceilings, measure_ceilings
from ssmd_jax.evaluation.benchmark.dual_settings import DualSettings
from ssmd_jax.evaluation.benchmark.rows import Row
from ssmd_jax.evaluation.benchmark.settings import Settings
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.masked_lm import MaskedLanguageModel

# What a device that lacks memory or a kernel raises: it is reported, and the other parts go on.
PART_FAILURES = (RuntimeError, ValueError, NotImplementedError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What stays the same during a benchmark.

    Attributes:
        settings: shapes and options.
        model: the network with its weights.
        device: where it runs.
        ceilings: of that device; None where they could not be measured.
        say: told of every part when it is done.
        profile: folder for traces, or None.
        parts: words of which a part's name must hold one; empty for all parts.
    """

    settings: Settings | DualSettings
    model: HybridModel | MaskedLanguageModel
    device: jax.Device
    ceilings: Ceilings | None
    say: Callable[[str], None]
    profile: str | None = None
    parts: tuple[str, ...] = ()

    def wants(self, part: str) -> bool:
        """Whether the part is to be measured."""
        return not self.parts or any(word in part for word in self.parts)

    def row(self, suite: str, part: str, make: Callable[[], Row]) -> list[Row]:
        """The part's row, its sentence where it fails, nothing where it is not wanted.

        Raises:
            RecompilationError: a figure that contains a compilation is no figure.
        """
        if not self.wants(part):
            return []
        try:
            row = make()
        except timing.RecompilationError:
            raise
        except PART_FAILURES as error:
            row = Row(suite, part, error=sentence(error))
        seconds = "failed" if row.timing is None else f"{1e3 * row.timing.median:.3f} ms"
        self.say(f"{suite} {part}: {seconds}")
        return [dataclasses.replace(row, device_peak_bytes=program.peak_bytes(self.device))]

    def compile(self, function: Callable, *args, donate: tuple[int, ...] = ()) -> program.Program:
        """`program.compile_ahead` with the settings' options."""
        quick = self.settings.quick_compile and self.device.platform == "cpu"
        options = {"xla_llvm_disable_expensive_passes": True} if quick else None
        return program.compile_ahead(function, *args, donate=donate, options=options)

    def time(self, suite: str, part: str, call: Callable[[], Any], single: bool = False) -> timing.Timing:
        """Times a compiled call, and then traces one more where a profile is wanted."""
        settings, name = self.settings, f"{suite} {part}"
        timed = timing.measure(call, name, runs=settings.runs, max_seconds=settings.max_seconds, single=single)
        if self.profile is not None:
            with jax.profiler.trace(str(pathlib.Path(self.profile) / name.replace(" ", "_"))):
                jax.block_until_ready(call())
        return timed

    def function(
        self,
        suite: str,
        part: str,
        function: Callable,
        *args,
        single: bool = False,
        compiled: program.Program | None = None,
        **known,
    ) -> Row:
        """Compiles a function for its arguments (unless it is `compiled`), times it, adds `known` fields of `Row`."""
        compiled = compiled or self.compile(function, *args)
        timed = self.time(suite, part, lambda: compiled.compiled(*args), single)
        # The executable and its scratch are not kept: only what the compiler said of it.
        return Row(suite, part, timed, compiled._replace(compiled=None), **known)


def sentence(error: BaseException) -> str:
    """The first line of an error's message, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def ceilings_of(
    device: jax.Device, settings: Settings | DualSettings, say: Callable[[str], None]
) -> tuple[Ceilings | None, str | None]:
    """The device's ceilings, which are also said; or None, and the reason."""
    try:
        dtype = settings.model.dtype
        found = measure_ceilings(device, dtype, runs=settings.runs, max_seconds=settings.max_seconds)
    except PART_FAILURES as error:
        return None, sentence(error)
    say(
        f"ceilings: {found.matmul_flops / 1e12:.3f} TFLOP/s ({found.matmul_size}-cube, {found.matmul_dtype}), "
        f"{found.copy_bytes / 1e9:.1f} GB/s (copy, read and written)"
    )
    return found, None
