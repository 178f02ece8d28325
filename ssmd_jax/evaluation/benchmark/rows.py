"""One part's figures, and the table of all of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ssmd_jax.evaluation.benchmark.ceilings import Ceilings
from ssmd_jax.evaluation.benchmark.program import Program
from ssmd_jax.evaluation.benchmark.timing import Timing
from ssmd_jax.evaluation.tables import align


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured part, or the reason why there is no figure.

    Attributes:
        suite: "sampling", "training", "likelihood", "cost" or "dual".
        part: its name.
        timing: seconds of one call.
        program: the compiled program.
        flops: by formula, of one call.
        compiler_flops: by the compiler, of one call; None where the part has loops.
        figures: what else there is to say: plain numbers by name, units in the name.
        device_peak_bytes: most that the process has held on the device so far; None where the device does not say.
        error: one sentence where the part failed.
    """

    suite: str
    part: str
    timing: Timing | None = None
    program: Program | None = None
    flops: float | None = None
    compiler_flops: float | None = None
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    device_peak_bytes: int | None = None
    error: str | None = None

    @property
    def flops_per_second(self) -> float | None:
        """By formula."""
        return self.flops / self.timing.median if self.flops and self.timing and self.timing.median > 0 else None

    def to_json(self, ceilings: Ceilings | None) -> dict[str, Any]:
        """Flat, with the shares of the ceilings."""
        values = {"suite": self.suite, "part": self.part, "error": self.error}
        if self.timing is None:
            return values
        rate = self.flops_per_second
        values |= {
            "seconds": self.timing.median,
            "seconds_low": self.timing.low,
            "seconds_high": self.timing.high,
            "runs": self.timing.runs,
            "calls_a_run": self.timing.calls,
            "warm": self.timing.warm,
            "flops": self.flops,
            "compiler_flops": self.compiler_flops,
            "flops_per_second": rate,
            "share_of_ceiling": share(rate, ceilings and ceilings.matmul_flops),
            "share_of_published_peak": share(rate, ceilings and ceilings.published_flops),
            "device_peak_bytes": self.device_peak_bytes,
        }
        if self.program is not None:
            values |= {
                "compile_seconds": self.program.compile_seconds,
                "temp_bytes": self.program.temp_bytes,
                "program_bytes": self.program.program_bytes,
            }
        return values | self.figures


def share(value: float | None, of: float | None) -> float | None:
    """Their quotient, None where one is not known."""
    return value / of if value and of else None


def _cell(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)


def table(rows: Sequence[Row], ceilings: Ceilings | None) -> str:
    """One line a row: milliseconds with their range, GFLOP by formula and compiler, TFLOP/s, MB of scratch."""
    header = ("suite", "part", "ms", "low..high", "GFLOP", "compiler", "TFLOP/s", "% ceiling", "temp MB", "all MB")
    lines, sentences = [header], []
    for row in rows:
        if row.timing is None:
            lines.append((row.suite, row.part, "failed", *[""] * (len(header) - 3)))
            sentences.append(f"{row.suite} {row.part}: {row.error}")
            continue
        rate, program = row.flops_per_second, row.program
        lines.append(
            (
                row.suite,
                row.part,
                _cell(row.timing.median, 1e3, ".3f"),
                f"{1e3 * row.timing.low:.3f}..{1e3 * row.timing.high:.3f}",
                _cell(row.flops, 1e-9, ".3f"),
                _cell(row.compiler_flops, 1e-9, ".3f"),
                _cell(rate, 1e-12, ".3f"),
                _cell(share(rate, ceilings and ceilings.matmul_flops), 100, ".1f"),
                _cell(program and program.temp_bytes, 1e-6, ".1f"),
                _cell(program and program.program_bytes, 1e-6, ".1f"),
            )
        )
        if row.figures:
            numbers = ", ".join(f"{name} {_figure(value)}" for name, value in row.figures.items())
            sentences.append(f"{row.suite} {row.part}: {numbers}")
    return "\n".join([align(lines, num_left=2), *sentences])


def _figure(value) -> str:
    return format(value, ".4g") if isinstance(value, float) else str(value)
