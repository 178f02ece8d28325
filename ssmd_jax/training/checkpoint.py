"""Checkpoints of the training state: the only file that knows Orbax.

A checkpoint is `<directory>/<step>` with the parts "params", "ema_params", "opt_state" and, of a run with a teacher,
"teacher_params"; parameters can be read without the rest. Its metadata hold a record (whatever the run wants back as
JSON) and a digest of each array, by which damage is known that Orbax does not notice. The configuration and the
tokenizer stand in the workdir, beside the checkpoints.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ssmd_jax.training.digest import digests
from ssmd_jax.training.state import TrainState

DIRECTORY = "checkpoints"
DAMAGED = "checkpoints_damaged"
METADATA = "_CHECKPOINT_METADATA"
_DROPPED = "checkpoints_dropped"
# The metric of a validation by which the best checkpoints are chosen; lower is better.
BEST = "draft_bits"

# What the system says where nothing more can be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# How one process fared with a checkpoint; the worst of all processes counts.
_READ, _UNREADABLE, _FAILED = range(3)
# What file systems and devices say where the machine is at fault and not the checkpoint.
_NOT_DAMAGE = (
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    *(os.strerror(number) for number in (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)),
)


class SaveError(OSError):
    """A checkpoint could not be written; the message names the last good one."""


class Restored(NamedTuple):
    """What a checkpoint gives."""

    state: TrainState
    record: dict[str, Any]


def _is_ours(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs, tracebacks of its threads included: what fails there is raised too, and said by us."""
    is_wanted = absl_logging.get_verbosity() >= absl_logging.INFO
    return is_wanted or not ("/orbax/" in record.pathname or "/orbax/" in record.getMessage())


for _logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
    _logger.addFilter(_is_ours)


class Checkpoints:
    """The checkpoints of one workdir. Close it, or use it as a context manager: saving goes on in the background."""

    def __init__(
        self,
        workdir: os.PathLike | str,
        *,
        keep_last: int = 1,
        keep_every: int = 0,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        """Opens `<workdir>/checkpoints`, creating it where it is not there.

        Args:
            workdir: the run's folder.
            keep_last: this many of the latest checkpoints stay.
            keep_every: those at multiples of this stay too; 0 for none.
            keep_best: so many of those saved with the lowest metric `BEST` stay too; 0 for none.
            read_only: leaves what a run may be saving at this moment alone; otherwise what a killed run left half
                saved is removed.
        """
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            # Orbax takes the last ones of this order, hence from high to low.
            lowest = policies.BestN(
                get_metric_fn=lambda metrics: metrics.get(BEST, math.inf),
                reverse=True,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(lowest)
        self.directory = pathlib.Path(os.path.abspath(workdir)) / DIRECTORY
        self._saving: int | None = None
        self._has_failed = False
        if jax.process_index() == 0:
            # A reader may not be allowed to.
            with contextlib.suppress(OSError) if read_only else contextlib.nullcontext():
                _mend_metrics(self.directory)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("metrics of checkpoints read")
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what is being saved is saved; raises as `wait` does, unless it was said before."""
        with contextlib.suppress(SaveError) if self._has_failed else contextlib.nullcontext(), self._sentence():
            self._checkpointer.close()

    def wait(self) -> None:
        """Waits until what is being saved is saved.

        Raises:
            SaveError: where it cannot be saved, on a full disk for example.
        """
        with self._sentence():
            self._checkpointer.wait()

    @contextlib.contextmanager
    def _sentence(self) -> Iterator[None]:
        # What fails in the background comes out of whatever call is next.
        try:
            yield
        except JaxRuntimeError:
            raise  # the runtime is at fault, and not the disk
        except Exception as error:
            self._has_failed = True
            raise SaveError(
                f"checkpoint {self._saving} could not be saved in {self.directory} ({_reason(error)}); "
                f"{self.last_good()}: free space or mend the file system, and the same command goes on from there"
            ) from error

    def last_good(self) -> str:
        """Words that name the newest checkpoint that is complete on disk."""
        failed = self._saving if self._has_failed else None
        good = [step for step in self.steps if step != failed and (self.directory / str(step)).is_dir()]
        return f"the last good checkpoint is {self.directory / str(good[-1])}" if good else "there is no checkpoint yet"

    @property
    def steps(self) -> list[int]:
        """Steps saved, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(
        self, state: TrainState, record: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
    ) -> int:
        """Starts to save the state; its buffers may be donated as soon as this returns.

        Args:
            state: of all processes.
            record: JSON values that `restore` gives back.
            metrics: of a validation of this state, by which the best are chosen; None where there was none.

        Returns:
            The step.

        Raises:
            SaveError: where this checkpoint, or the one before, cannot be saved.
        """
        step = int(state.step)
        parts = parts_of(state)
        metrics = None if metrics is None else {BEST: metrics[BEST]}
        content = {
            "record": dict(record or {}),
            "metrics": metrics,
            "digests": {name: digests(part) for name, part in parts.items()},
        }
        self.wait()
        self._saving = step
        with self._sentence():
            self._checkpointer.save_checkpointables_async(
                step,
                parts,
                force=True,
                overwrite=step in self.steps,
                metrics=metrics,
                custom_metadata=content | {"check": _check(content)},
            )
        return step

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, the newest first: killed here, a run goes on from a whole one."""
        self.wait()
        for later in reversed(self.steps):
            if later > step:
                self._move(later, _DROPPED)
        if jax.process_index() == 0:
            shutil.rmtree(self.directory.parent / _DROPPED, ignore_errors=True)

    def restore(self, abstract: TrainState, warn: Callable[[str], None]) -> Restored | None:
        """The newest checkpoint that can be read, on the shardings of `abstract`.

        Newer ones that cannot be read, or hold other numbers than were saved, are moved to
        `<workdir>/checkpoints_damaged`.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            warn: told in one sentence of every checkpoint that could not be read.

        Returns:
            State and record, or None where there is no checkpoint.

        Raises:
            ValueError: where there are checkpoints and none can be read, or the newest is sound and does not fit.
            Exception: whatever says that memory or permission is missing; nothing is moved then.
        """
        found = self._restore_newest(parts_of(abstract), warn)
        if found is None:
            return None
        step, parts, record, damaged = found
        for bad in damaged:
            self._move(bad, DAMAGED)
        number = jax.device_put(np.int32(step), abstract.step.sharding)
        return Restored(abstract.replace(step=number, **parts), record)

    def restore_params(self, part: str, abstract_params: Any, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """Parameters alone of the newest checkpoint that can be read; no file is moved.

        Args:
            part: "params" or "ema_params".
            abstract_params: shapes, dtypes and shardings; None to take them as they were saved.
            warn: as in `restore`.

        Returns:
            Step and parameters, or None where there is no checkpoint.

        Raises:
            ValueError, Exception: as in `restore`.
        """
        found = self._restore_newest({part: abstract_params}, warn)
        return None if found is None else (found[0], found[1][part])

    def _restore_newest(self, parts, warn) -> tuple[int, dict, dict, list[int]] | None:
        damaged = []
        for step in reversed(self.steps):
            path, error = self.directory / str(step), None
            try:
                loaded = self._checkpointer.load_checkpointables(step, parts)
                content = _content(path)
            except Exception as caught:  # whatever a damaged file makes of Orbax or TensorStore
                error = caught
            own = _outcome(error)
            outcome = _worst_of_all_processes(own)
            if outcome == _READ:
                # All processes take part in the digests, so that none may be missing here.
                error = _difference(loaded, content)
                own = outcome = _outcome(error)
                if outcome == _READ:
                    return step, loaded, {} if content is None else content["record"], damaged
            if outcome == _FAILED:
                raise error if own == _FAILED else OSError(f"another process has failed to read checkpoint {path}")
            if misfit := self._misfit(step, parts):
                raise ValueError(f"checkpoint {path} does not fit this model and optimizer: {misfit}") from error
            damaged.append(step)
            reason = _reason(error or "by another process")
            warn(f"checkpoint {path} cannot be read, trying the one before it ({reason})")
        if damaged:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be read (steps {', '.join(map(str, damaged))}); "
                "restore one from a copy, or train in a new workdir"
            )
        return None

    def _misfit(self, step: int, parts) -> str | None:
        """The first of `parts`, or array of them, that a checkpoint lacks or has in another shape; None if unknown."""
        try:
            saved_parts = self._checkpointer.checkpointables_metadata(step).metadata
            content = _content(self.directory / str(step))
        except Exception:  # damaged too
            return None
        for part, abstract in parts.items():
            if content is not None and part not in content["digests"]:
                return f"{part} is absent there"
            if abstract is None or saved_parts.get(part) is None:
                continue
            saved, wanted = _shapes(saved_parts[part]), _shapes(abstract)
            for name in sorted(saved | wanted):
                if saved.get(name) != wanted.get(name):
                    have, want = saved.get(name, "absent"), wanted.get(name, "absent")
                    return f"{part}/{name} is {have} there and {want} here"
        return None

    def _move(self, step: int, folder: str) -> None:
        # Renamed, which is done or not: one deleted in its place could be left by half.
        if jax.process_index() == 0:
            target = self.directory.parent / folder
            target.mkdir(exist_ok=True)
            number = sum(1 for _ in target.glob(f"{step}*"))
            os.replace(self.directory / str(step), target / (f"{step}.{number}" if number else f"{step}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint moved")
        self._checkpointer.reload()


def parts_of(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state, by name; None is left out."""
    names = ("params", "ema_params", "opt_state", "teacher_params")
    return {name: getattr(state, name) for name in names if getattr(state, name) is not None}


def _difference(loaded: Mapping[str, Any], content: Mapping[str, Any] | None) -> ValueError | None:
    """What says that arrays are not those that were saved; None where they are, or nobody knows."""
    for part, tree in loaded.items() if content is not None else ():
        have, want = digests(tree), content["digests"].get(part, {})
        bad = [name for name in sorted(have | want) if have.get(name) != want.get(name)]
        if bad:
            return ValueError(f"{part}/{bad[0]} is not what was saved: {len(bad)} digest(s) differ")
    return None


def _content(path: pathlib.Path) -> dict[str, Any] | None:
    """What `save` wrote beside the arrays of a checkpoint; None where an earlier version saved it.

    Raises:
        ValueError, OSError: where it cannot be read, or is not what was saved.
    """
    raw = (path / METADATA).read_text(encoding="utf-8")
    values = json.loads(raw)
    content = dict(values.get("custom_metadata") or {})
    if not content and "item_handlers" in values and "digests" not in raw:
        return None
    if content.pop("check", None) != _check(content):
        raise ValueError("its metadata are not what was saved")
    return content


def _mend_metrics(directory: pathlib.Path) -> None:
    """Writes anew each file of metrics that is not what was saved: Orbax would open none of the checkpoints."""
    for path in directory.glob("[0-9]*/metrics/metrics"):
        if not path.parents[1].name.isdigit():
            continue  # being saved
        try:
            wanted = (_content(path.parents[1]) or {}).get("metrics")
        except (ValueError, OSError):
            wanted = {}  # nobody knows; noticed when it is to be restored
        with contextlib.suppress(ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found == wanted or (wanted is None and isinstance(found, dict)):
                continue
        part = path.with_suffix(".part")
        part.write_text(json.dumps(wanted or {}), encoding="utf-8")
        os.replace(part, path)


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _reason(error: BaseException | str) -> str:
    text = " ".join(str(error).split())
    # What the user can mend stands at the end of a long message, if at all.
    full = [os.strerror(number) for number in FULL if os.strerror(number) in text]
    return full[0] if full else text[:200] or type(error).__name__


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(tree)}


def _outcome(error: BaseException | None) -> int:
    return _READ if error is None else _UNREADABLE if _may_be_damage(error) else _FAILED


def _may_be_damage(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError | PermissionError) or any(code in str(error) for code in _NOT_DAMAGE):
            return False
        error = error.__cause__ or error.__context__
    return True


def _worst_of_all_processes(outcome: int) -> int:
    # Processes that went on from different checkpoints would train different models, or wait for each other forever.
    if jax.process_count() == 1:
        return outcome
    return int(np.max(multihost_utils.process_allgather(np.int32(outcome))))


def has_checkpoints(workdir: os.PathLike | str) -> bool:
    """Whether a workdir holds a checkpoint, finished or not."""
    directory = pathlib.Path(workdir) / DIRECTORY
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())
