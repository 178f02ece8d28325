"""What a run has been through, beside its arrays: saved with every checkpoint, so that a resumed run decides alike."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

# A line of metrics is judged by up to so many lines before it, and not by fewer than the second number.
SPIKE_LINES = 20
SPIKE_LEAST_LINES = 5


@dataclasses.dataclass(frozen=True)
class Progress:
    """Counts of what was dropped, and what a loss spike is judged by.

    The batch of a step is a function of this and of the step alone: step number `s`, counted from 0, reads batch
    `s + data_offset` of the stream.

    Attributes:
        data_offset: batches left out so far by going back.
        rollbacks: how often the run went back to a checkpoint because of its loss.
        skipped: steps whose update was dropped.
        skipped_in_a_row: of these, the last ones without a good step between them.
        good_step: step of the last line of metrics whose loss was no spike; 0 where there is none.
        is_owed: whether a signal came before the validation and samples that were due at the last step.
        recent: losses of up to `SPIKE_LINES` lines before, nats per token.
    """

    data_offset: int = 0
    rollbacks: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    good_step: int = 0
    is_owed: bool = False
    recent: tuple[float, ...] = ()

    def after_step(self, is_skipped: bool) -> "Progress":
        """One step on."""
        if not is_skipped:
            return dataclasses.replace(self, skipped_in_a_row=0)
        return dataclasses.replace(self, skipped=self.skipped + 1, skipped_in_a_row=self.skipped_in_a_row + 1)

    def after_line(self, step: int, loss: float) -> "Progress":
        """One line of metrics on, whose loss is no spike."""
        return dataclasses.replace(self, good_step=step, recent=(*self.recent, loss)[-SPIKE_LINES:])

    def is_spike(self, loss: float, factor: float) -> bool:
        """Whether a line's loss exceeds `factor` times the median of those before it; never where `factor` is 0."""
        if not factor or len(self.recent) < SPIKE_LEAST_LINES:
            return False
        return loss > factor * statistics.median(self.recent)

    def gone_back(self, to: "Progress", from_step: int, to_step: int) -> "Progress":
        """After going back to a checkpoint: the batches between the two steps are left out.

        Args:
            to: what was saved with the checkpoint.
            from_step: the step of the spike.
            to_step: the checkpoint's.
        """
        offset = self.data_offset + from_step - to_step
        return dataclasses.replace(to, data_offset=offset, rollbacks=self.rollbacks + 1, skipped=self.skipped)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, the inverse of `from_dict`."""
        return dataclasses.asdict(self) | {"recent": list(self.recent)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Progress":
        """Reads what `as_dict` gave; checkpoints of earlier versions have none of it."""
        return cls(**{**values, "recent": tuple(values.get("recent", ()))})
