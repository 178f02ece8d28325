"""The study's rows for a terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from ssmd_jax.evaluation.scaling.settings import CHECKPOINT, LOSSES, SAMPLING, TRAINING
from ssmd_jax.evaluation.tables import align


def _number(name: str, scale: float, form: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return "-" if value is None else format(value * scale, form)

    return cell


def _list(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: " ".join(f"{value:.5f}" for value in row[name])


_EFFICIENCY = ("efficiency %", _number("efficiency", 100, ".1f"))
_BATCH = ("batch", _number("batch_size", 1, "d"))
_MEMORY = ("GiB a device", _number("program_bytes", 2**-30, ".2f"))
_PEAK = ("peak so far", _number("device_peak_bytes", 2**-30, ".2f"))
_TOKENS = ("tokens/s", _number("tokens_per_second", 1, ",.0f"))
# Columns of each part, behind model, mesh and devices.
COLUMNS = {
    TRAINING: (
        _BATCH,
        ("ms a step", _number("seconds", 1e3, ".2f")),
        _TOKENS,
        ("TFLOP/s a device", _number("device_flops_per_second", 1e-12, ".2f")),
        ("% ceiling", _number("share_of_ceiling", 100, ".1f")),
        _EFFICIENCY,
        _MEMORY,
        _PEAK,
        ("first loss", _number("loss", 1, ".4f")),
    ),
    LOSSES: (
        _BATCH,
        ("largest difference", _number("largest_difference", 1, ".2e")),
        ("of the gradient's norm", _number("largest_gradient_difference", 1, ".2e")),
        ("losses", _list("losses")),
    ),
    SAMPLING: (
        _BATCH,
        ("s a batch", _number("seconds", 1, ".3f")),
        ("samples/s", _number("samples_per_second", 1, ".2f")),
        _TOKENS,
        _EFFICIENCY,
        ("NFE", _number("nfe", 1, ".1f")),
        ("most passes", _number("most_passes", 1, "d")),
        ("most rounds", _number("most_rounds", 1, "d")),
        ("equal rows %", _number("equal_rows", 100, ".0f")),
        _MEMORY,
    ),
    CHECKPOINT: (
        ("save s", _number("seconds", 1, ".2f")),
        ("training waits s", _number("seconds_until_training_goes_on", 1, ".2f")),
        ("GB", _number("state_bytes", 1e-9, ".3f")),
        ("on disk", _number("disk_bytes", 1e-9, ".3f")),
        ("restore s", _number("restore_seconds", 1, ".2f")),
        ("on half s", _number("restore_half_seconds", 1, ".2f")),
        ("digests equal", lambda row: str(row["restore_digests_equal"] and row["restore_half_digests_equal"])),
    ),
}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each part, one line a case, and below it the sentences of those that failed."""
    texts = []
    for part, columns in COLUMNS.items():
        of_part = [row for row in rows if row["part"] == part]
        if not of_part:
            continue
        lines, sentences = [("model", "mesh", "devices", *(name for name, _ in columns))], []
        for row in of_part:
            head = (row["model"], row["layout"], str(row["devices"]))
            if row["error"] is None:
                lines.append((*head, *(cell(row) for _, cell in columns)))
            else:
                lines.append((*head, "failed", *[""] * (len(columns) - 1)))
                sentences.append(f"{row['model']}, {row['layout']}: {row['error']}")
        texts.append("\n".join([part, align(lines, num_left=2), *sentences]))
    return "\n\n".join(texts)
