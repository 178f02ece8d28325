"""Where metrics go: a JSONL file and TensorBoard in the workdir, and the user's terminal.

Only process 0 writes. The terminal is standard error: a progress bar there, plain lines anywhere else.
"""

import contextlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Mapping, Sequence

import rich.console
import rich.progress

try:
    import tensorboardX
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
except ImportError:
    tensorboardX = None

FILE = "metrics.jsonl"
SAMPLES = "samples.txt"
_HEADING = "===== step "


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
        self._workdir = pathlib.Path(workdir)
        if not is_writer:
            return
        if tensorboardX is None:
            self.say("TensorBoard files are not written: tensorboardX is not installed")
        self._open(start_step)
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

    def _open(self, step: int) -> None:
        self._written = _drop_after(self._workdir / FILE, step)
        _drop_samples_after(self._workdir / SAMPLES, step)
        self._file = (self._workdir / FILE).open("a", encoding="utf-8")
        if tensorboardX is not None:
            self._board = _Board(self._workdir / "tensorboard", step + 1)

    def rewind(self, step: int) -> None:
        """Drops what the files hold beyond a step, from which the run goes on once more."""
        if self._is_writer:
            self._close_files()
            self._open(step)

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
            kind: "train", "valid", or "rollback" (the run went back from this step).
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
                numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
                self._board.write(step, [summary.scalar(f"{kind}/{name}", value) for name, value in numbers.items()])
        self.say(f"step {step}: {note}")

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        """Writes sample texts to samples.txt and TensorBoard, and shows the first."""
        if not self._is_writer or (step, "sample") in self._written:
            return
        self._written.add((step, "sample"))
        with (self._workdir / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"{_HEADING}{step}\n" + "".join(text + "\n\n" for text in texts))
        if self._board is not None:
            self._board.write(step, [summary.text("samples", "\n\n".join(texts))])
        self.say(f"step {step}: a sample: {' '.join(texts[0].split())[:160]}")

    def close(self) -> None:
        """Flushes and closes the files, and leaves the terminal in order."""
        if self._progress is not None:
            self._progress.stop()
        self._close_files()

    def _close_files(self) -> None:
        for sink in (self._file, self._board):
            # Every line was flushed when it was written: what fails here has failed, and been said, before.
            with contextlib.suppress(OSError):
                if sink is not None:
                    sink.close()


class _Board:
    """TensorBoard's event file, written line by line as the other files are.

    tensorboardX's own `SummaryWriter` writes in a thread, which on a full disk ends in a traceback, or in one at exit.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Opens a new file; events of `first_step` and later in older files of the folder are purged."""
        folder.mkdir(exist_ok=True)
        # Files opened within one second would have one name.
        suffix = f".{os.getpid()}.{len(list(folder.iterdir()))}"
        self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        self._add(step=first_step, file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields) -> None:
        self._file.write_event(Event(wall_time=time.time(), **fields))

    def write(self, step: int, summaries: Sequence) -> None:
        for each in summaries:
            self._add(step=step, summary=each)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_samples_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept, is_kept = [], True
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if heading := re.fullmatch(_HEADING + r"(\d+)\n?", line):
            is_kept = int(heading[1]) <= step
        if is_kept:
            kept.append(line)
    _replace(path, "".join(kept))


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
    _replace(path, "".join(kept))
    return written


def _replace(path: pathlib.Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
