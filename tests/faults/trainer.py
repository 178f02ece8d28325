"""A tiny training by the program that users start, in a process that can be killed; and what it leaves behind."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
# Reproducible to the bit in every process, and compiled once.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
_MODEL = {
    "length": 16,
    "model.width": 16,
    "model.num_heads": 2,
    "model.n_noncausal": 1,
    "model.unroll": 1,
    "model.mlp_width": 32,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 4,
    "training.batch_size": 8,
    "training.log_every": 1,
    "training.eval_batches": 2,
}


@dataclasses.dataclass
class Trainer:
    """A run of `launch/train.py` that can be started again and again.

    Attributes:
        folder: of data and compiled programs, shared by runs that are compared.
        workdir: of the run.
        fields: of the config, beside those that make it tiny.
    """

    folder: pathlib.Path
    workdir: pathlib.Path
    fields: dict

    def start(self, before: Callable[[], None] | None = None, **fields) -> subprocess.Popen:
        """Starts the process; its standard error goes to `self.log`.

        Args:
            before: called in the new process, before the program.
            **fields: of the config, as `training__log_every=1`.
        """
        text = self.folder / "text.txt"
        if not text.exists():
            rng = np.random.default_rng(0)
            words = rng.choice(["the", "cat", "sat", "on", "dog"], (40, 200))
            self.folder.mkdir(parents=True, exist_ok=True)
            text.write_text("\n\f\n".join(" ".join(row) for row in words))
        changed = {name.replace("__", "."): value for name, value in fields.items()}
        config = _MODEL | {"data.source": str(text), "data.cache_dir": str(self.folder / "tokens")}
        flags = [f"--config.{name}={value}" for name, value in (config | self.fields | changed).items()]
        command = [sys.executable, "-m", "launch.train", "--config=configs/quickstart.py", f"--workdir={self.workdir}"]
        environment = os.environ | _ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla")}
        with self.log.open("w") as log:
            return subprocess.Popen(
                command + flags,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=before,
            )

    def finish(self, **fields) -> dict:
        """Runs to the end; the summary. Raises `RuntimeError` where the program fails."""
        process = self.start(**fields)
        out, _ = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"training ended with status {process.returncode}: {self.said()[-2000:]}")
        return json.loads(out.splitlines()[-1])

    def kill_after(self, process: subprocess.Popen, seconds: float, number: int = signal.SIGKILL) -> bool:
        """Sends a signal after so many seconds and waits; False where the process had ended by itself."""
        try:
            process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(60)
            return True
        finally:
            process.stdout.close()

    def wait_for_steps(self, process: subprocess.Popen, seconds: float = 120) -> None:
        """Waits until the process has made its first steps, or has ended."""
        deadline = time.monotonic() + seconds
        while process.poll() is None and "tokens/s" not in self.said():
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"no step within {seconds:.0f} s: {self.said()[-2000:]}")
            time.sleep(0.02)

    @property
    def log(self) -> pathlib.Path:
        """Standard error of the newest process."""
        return self.folder / f"{self.workdir.name}.log"

    def said(self) -> str:
        """What the newest process said on standard error."""
        return self.log.read_text() if self.log.exists() else ""

    def resumed_from(self) -> int | None:
        """The step that the newest process has resumed from; None where it did not come so far."""
        found = re.search(r"resumed from step (\d+)|, from the start", self.said())
        return int(found[1] or 0) if found else None

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self.workdir / "checkpoints"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit())

    def is_writing(self) -> bool:
        """Whether a checkpoint lies there half written."""
        return any(not path.name.isdigit() for path in self.checkpoints.glob("*"))

    def curve(self) -> list[dict]:
        """The lines of metrics without what depends on the clock."""
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        timed = lambda name: name == "tokens_per_second" or name.endswith("_seconds")
        return [{name: value for name, value in line.items() if not timed(name)} for line in lines]

    def digests(self, step: int) -> dict:
        """The digests of all arrays of a checkpoint."""
        return json.loads((self.checkpoints / str(step) / "_CHECKPOINT_METADATA").read_text())["custom_metadata"][
            "digests"
        ]


def differs(one: Trainer, two: Trainer) -> str:
    """How the end of a run differs from another's, in words; "" where curve and last checkpoint are the same bits."""
    ours, theirs = one.curve(), two.curve()
    if ours != theirs:
        index = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        where = f"line {index + 1}" if index is not None else f"{len(ours)} lines and not {len(theirs)}"
        return f"the curves differ: {where}"
    if one.steps()[-1] != two.steps()[-1]:
        return f"the last checkpoints are {one.steps()[-1]} and {two.steps()[-1]}"
    return "" if one.digests(one.steps()[-1]) == two.digests(two.steps()[-1]) else "the last checkpoints differ"
