"""Checkpoints of the training state: the only file that knows Orbax.

A checkpoint is `<directory>/<step>` with the parts "params", "ema_params" and "opt_state"; the first two can be read
without the last. The configuration and the tokenizer stand in the workdir, beside the checkpoints.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ssmd_jax.training.state import TrainState

DIRECTORY = "checkpoints"
DAMAGED = "checkpoints_damaged"

# How one process fared with a checkpoint; the worst of all processes counts.
_READ, _UNREADABLE, _FAILED = range(3)
# What file systems and devices say where the machine is at fault and not the checkpoint.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")


class Checkpoints:
    """The checkpoints of one workdir. Close it, or use it as a context manager: saving goes on in the background."""

    def __init__(self, workdir: os.PathLike | str, *, keep_last: int = 1, keep_every: int = 0, read_only: bool = False):
        """Opens `<workdir>/checkpoints`, creating it where it is not there.

        Args:
            workdir: the run's folder.
            keep_last: this many of the latest checkpoints stay.
            keep_every: those at multiples of this stay too; 0 for none.
            read_only: leaves what a run may be saving at this moment alone; otherwise what a killed run left half
                saved is removed.
        """
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep_last)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self.directory = pathlib.Path(os.path.abspath(workdir)) / DIRECTORY
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
        """Waits until what is being saved is saved."""
        self._checkpointer.close()

    def wait(self) -> None:
        """Waits until what is being saved is saved."""
        self._checkpointer.wait()

    @property
    def steps(self) -> list[int]:
        """Steps saved, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState) -> int:
        """Starts to save the state; its buffers may be donated as soon as this returns. Returns the step."""
        step = int(state.step)
        parts = {"params": state.params, "opt_state": state.opt_state}
        if state.ema_params is not None:
            parts["ema_params"] = state.ema_params
        self._checkpointer.save_checkpointables_async(step, parts, force=True, overwrite=step in self.steps)
        return step

    def restore(self, abstract: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """The newest checkpoint that can be read, on the shardings of `abstract`.

        Newer ones that cannot be read are moved to `<workdir>/checkpoints_damaged`.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            warn: told in one sentence of every checkpoint that could not be read.

        Returns:
            The state, or None where there is no checkpoint.

        Raises:
            ValueError: where there are checkpoints and none can be read, or the newest is sound and does not fit.
            Exception: whatever says that memory or permission is missing; nothing is moved then.
        """
        parts = {"params": abstract.params, "opt_state": abstract.opt_state}
        if abstract.ema_params is not None:
            parts["ema_params"] = abstract.ema_params
        found = self._restore_newest(parts, warn)
        if found is None:
            return None
        step, parts, damaged = found
        for bad in damaged:
            self._set_aside(bad)
        number = jax.device_put(np.int32(step), abstract.step.sharding)
        return TrainState(number, parts["params"], parts.get("ema_params"), parts["opt_state"])

    def restore_params(self, part: str, abstract_params: Any, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """Parameters alone of the newest checkpoint that can be read; changes no file.

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

    def _restore_newest(self, parts, warn) -> tuple[int, dict, list[int]] | None:
        damaged = []
        for step in reversed(self.steps):
            path, error = self.directory / str(step), None
            try:
                loaded = self._checkpointer.load_checkpointables(step, parts)
            except Exception as caught:  # whatever a damaged file makes of Orbax or TensorStore
                error = caught
            own = _READ if error is None else _UNREADABLE if _may_be_damage(error) else _FAILED
            outcome = _worst_of_all_processes(own)
            if outcome == _READ:
                return step, loaded, damaged
            if outcome == _FAILED:
                raise error if own == _FAILED else OSError(f"another process has failed to read checkpoint {path}")
            if misfit := self._misfit(step, parts):
                raise ValueError(f"checkpoint {path} does not fit this model and optimizer: {misfit}") from error
            damaged.append(step)
            reason = " ".join(str(error or "by another process").split())[:200]
            warn(f"checkpoint {path} cannot be read, trying the one before it ({reason})")
        if damaged:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be read (steps {', '.join(map(str, damaged))}); "
                "restore one from a copy, or train in a new workdir"
            )
        return None

    def _misfit(self, step: int, parts) -> str | None:
        """The first array whose shape in a checkpoint is another than in `parts`; None where nobody can tell."""
        try:
            saved_parts = self._checkpointer.checkpointables_metadata(step).metadata
        except Exception:  # damaged too
            return None
        for part, abstract in parts.items():
            if abstract is None or saved_parts.get(part) is None:
                continue
            saved, wanted = _shapes(saved_parts[part]), _shapes(abstract)
            for name in sorted(saved | wanted):
                if saved.get(name) != wanted.get(name):
                    have, want = saved.get(name, "absent"), wanted.get(name, "absent")
                    return f"{part}/{name} is {have} there and {want} here"
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self.directory.parent / DAMAGED
            target.mkdir(exist_ok=True)
            number = sum(1 for _ in target.glob(f"{step}*"))
            os.replace(self.directory / str(step), target / (f"{step}.{number}" if number else f"{step}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self._checkpointer.reload()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(tree)}


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
