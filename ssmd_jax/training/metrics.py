"""Where metrics go: a JSONL file and TensorBoard in the workdir, and the user's terminal.

Only process 0 writes. The terminal is standard error: a progress bar there, plain lines anywhere else.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping

import rich.console
import rich.progress

try:
    import tensorboardX
except ImportError:
    tensorboardX = None

FILE = "metrics.jsonl"


class MetricWriter:
    """Writes metrics of one run. Close it, or use it as a context manager.

    A resumed run goes on in the same files: what they hold beyond the step resumed from is dropped, since those steps
    come again.
    """

    def __init__(self, workdir: os.PathLike | str, *, start_step: int, last_step: int, is_writer: bool = True):
        """Opens the files.

        Args:
            workdir: the run's folder, which exists.
            start_step: steps done so far.
            last_step: where this run leaves.
            is_writer: False on all processes but the first, which then write nothing.
        """
        self._file, self._board, self._progress = None, None, None
        self._is_writer = is_writer
        if not is_writer:
            return
        path = pathlib.Path(workdir) / FILE
        self._written = _drop_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboardX is None:
            self.say("TensorBoard files are not written: tensorboardX is not installed")
        else:
            folder = str(pathlib.Path(workdir) / "tensorboard")
            self._board = tensorboardX.SummaryWriter(folder, purge_step=start_step + 1)
        if sys.stderr.isatty():
            self._progress = rich.progress.Progress(
                rich.progress.TextColumn("training"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._progress.add_task("training", total=last_step, completed=start_step)
            self._progress.start()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Prints lines to the terminal, above the bar where there is one."""
        if not self._is_writer:
            return
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def write(self, step: int, kind: str, values: Mapping[str, float], note: str) -> None:
        """Writes the metrics of a step.

        Args:
            step: steps done.
            kind: "train" or "valid".
            values: numbers by name; a list of numbers is allowed, for the JSONL file alone. Nothing goes to the files
                where they hold this kind of this step already: a finished run was run again.
            note: the same in words, a line above the progress bar.
        """
        if not self._is_writer:
            return
        if (step, kind) not in self._written:
            self._written.add((step, kind))
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, int | float):
                        self._board.add_scalar(f"{kind}/{name}", value, step)
        self.say(f"step {step}: {note}")

    def close(self) -> None:
        """Flushes and closes the files, and leaves the terminal in order."""
        if self._progress is not None:
            self._progress.stop()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()


def _drop_after(path: pathlib.Path, step: int) -> set[tuple[int, str]]:
    """Drops the lines of later steps; step and kind of those that are left."""
    if not path.exists():
        return set()
    kept, written = [], set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            if values["step"] <= step:
                kept.append(line + "\n")
                written.add((values["step"], values["kind"]))
        except ValueError:
            continue  # the last line of a run that was killed while writing it
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)
    return written
