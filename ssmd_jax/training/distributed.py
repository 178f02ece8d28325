"""Several processes as one job: joining it, saying who is there, and leaving it so that nobody waits for the dead.

JAX's own runtime does the work; here are its settings, and sentences for what goes wrong. Nothing is joined unless the
user asks for it. Source: https://docs.jax.dev/en/latest/multi_process.html.
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from ssmd_jax.training import sharding

# The runtime's own timeout ends in a fatal log; ours comes this many seconds before it.
_MARGIN_S = 60
# Where all processes refuse the same bad input, this lets the others say so before their coordinator is gone.
_LAST_OUT_S = 2.0
# Shorter, a machine that is busy for a moment would be taken for dead.
_LEAST_HEARTBEAT_S = 10

RESUME = "the same command on every process goes on from the last checkpoint"


@dataclasses.dataclass(frozen=True)
class Job:
    """How a process finds the others; all three of the first fields, or none for Cloud TPU, Slurm and Kubernetes.

    Attributes:
        coordinator: "HOST:PORT" where process 0 listens, the same for all.
        num_processes: processes of the job.
        process_id: this one, from 0.
        initialization_timeout: seconds to wait until all are there.
        heartbeat_timeout: seconds of silence after which a process counts as dead, and the job ends.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 30

    def __post_init__(self):
        given = self.explicit
        missing = [f"--{name}" for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(
                f"--coordinator, --num_processes and --process_id belong together: give {' and '.join(missing)} too, "
                "or none of them on Cloud TPU, Slurm and Kubernetes"
            )
        if not missing:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"--coordinator must be HOST:PORT, for example 10.0.0.1:1234, got {self.coordinator}")
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"--process_id {self.process_id} does not exist among --num_processes {self.num_processes}: "
                    "count processes from 0"
                )
        if self.initialization_timeout < 1:
            raise ValueError(f"--initialization_timeout must be at least 1 second, got {self.initialization_timeout}")
        if self.heartbeat_timeout < _LEAST_HEARTBEAT_S:
            raise ValueError(
                f"--heartbeat_timeout must be at least {_LEAST_HEARTBEAT_S} seconds, got {self.heartbeat_timeout}"
            )

    @property
    def explicit(self) -> dict[str, str | int | None]:
        """The fields that tell a process its place."""
        return {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}

    @property
    def name(self) -> str:
        """This process, as far as it is known before it has joined."""
        if self.coordinator is None:
            return "this process"
        return f"process {self.process_id} of {self.num_processes}"


@contextlib.contextmanager
def joined(job: Job | None) -> Iterator[None]:
    """This process as one of a job; enter it before any device is touched, and do everything inside.

    Where the body raises, the process ends here, with the status of a `SystemExit` or with 1: one that stayed for an
    orderly farewell would keep the others waiting for it in a collective. Where the runtime aborts this process
    (another one has died, and it says so in its own words), or somebody kills it, one sentence of ours follows on
    standard error. Where the job cannot be joined, the process ends with a sentence and status 1.

    Args:
        job: None for a process on its own: nothing is done.
    """
    if job is None:
        yield
        return
    _reserve_stdout()
    with _LastWords() as words:
        words.set(
            f"error: {job.name} could not join the job: the runtime's message above says why; --coordinator and "
            "--num_processes must be the same on all processes, --process_id different on each"
        )
        _initialize(job, words)
        words.set(
            f"error: process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()} has ended "
            "without finishing: it was killed, or the runtime ended it because another process died (the lines above "
            f"and the logs of the others tell which); {RESUME}"
        )
        try:
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            words.set("")
            if is_first():
                time.sleep(_LAST_OUT_S)
            _exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        jax.distributed.shutdown()


def _initialize(job: Job, words: "_LastWords") -> None:
    """Joins, and ends the process with a sentence where that fails or the others do not come in time."""
    where = "the job" if job.coordinator is None else f"the job at {job.coordinator}"
    if job.process_id == 0:
        reason = "not all of the others came; start them, and give all of them the same --num_processes"
    else:
        reason = "process 0 cannot be reached, or not all processes were started; check --coordinator and the others"
    if job.process_id == 0:
        _check_port(job.coordinator, words)
    # The runtime waits where no Python exception can reach it, and its own end of patience is a fatal log.
    late = f"{job.name} waited {job.initialization_timeout} s for {where}: {reason}"
    timer = threading.Timer(job.initialization_timeout, _refuse, (late, words))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.num_processes,
            job.process_id,
            # What the user spells out is not mixed with what a scheduler says.
            cluster_detection_method=None if job.coordinator is None else "deactivate",
            initialization_timeout=job.initialization_timeout + _MARGIN_S,
            heartbeat_timeout_seconds=job.heartbeat_timeout,
        )
        num_processes = jax.process_count()  # the first look at the devices: all processes tell each other of theirs
    except (ValueError, RuntimeError) as error:
        if job.coordinator is None and not jax.distributed.is_initialized():
            advice = "outside of Cloud TPU, Slurm and Kubernetes give --coordinator, --num_processes and --process_id"
        else:
            advice = "check --coordinator and the devices"
        _refuse(f"{job.name} cannot join {where} ({_first_line(error)}): {advice}", words)
    finally:
        timer.cancel()
    if job.num_processes not in (None, num_processes):
        _refuse(
            f"--num_processes is {job.num_processes}, but the {jax.default_backend()} devices belong to "
            f"{num_processes} processes: give all processes the same number, one for each host of the devices",
            words,
        )


def _check_port(coordinator: str, words: "_LastWords") -> None:
    # Where its port is taken, the runtime of jaxlib 0.10.2 at times crashes instead of saying so.
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        _refuse(
            f"process 0 cannot listen on port {port} of --coordinator {coordinator}: {os.strerror(error.errno)}", words
        )


def _reserve_stdout() -> None:
    """Standard output is for results: what libraries write there behind Python's back (Gloo does) goes elsewhere."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(2, 1)


class _LastWords:
    """A child process that says a sentence on standard error if this one ends without taking it back.

    The runtime aborts from a thread of its own, where no Python runs any more: somebody else must speak then.
    """

    def __enter__(self) -> "_LastWords":
        script = 'while read -r line; do last=$line; done; [ -z "$last" ] || printf "%s\\n" "$last" >&2'
        # In a session of its own, it outlives the Ctrl-C that ends this process.
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self

    def set(self, sentence: str) -> None:
        """What is to be said; "" for nothing."""
        with contextlib.suppress(BrokenPipeError):
            print(sentence, file=self._child.stdin, flush=True)

    def __exit__(self, *_) -> None:
        self.set("")
        self._child.communicate()


def _refuse(sentence: str, words: _LastWords) -> NoReturn:
    """Ends this process with a sentence, from any thread."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    words.set("")
    _exit(1)


def _exit(status: int) -> NoReturn:
    # Not `sys.exit`: at the end of Python the runtime would wait for all processes to come to a farewell.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_first() -> bool:
    """Whether this process prints and writes for all; true of one on its own. Touches no device in that case."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_shared() -> bool:
    """Whether there are other processes. Touches no device in a process on its own."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lost_sentence(error: BaseException) -> str:
    """What to say where the runtime raises in a job of several processes: most likely one of the others is gone."""
    return (
        f"process {jax.process_index()} of {jax.process_count()} stops because the runtime failed, as it does when "
        f"another process has died: {_first_line(error)}; the other logs tell which, and {RESUME}"
    )


def hello(mesh: jax.sharding.Mesh, batch_size: int) -> str:
    """One line about this process: its place, host, devices and share of the data.

    Args:
        mesh: of all devices.
        batch_size: rows of a global batch.
    """
    index, count = sharding.data_share(mesh)
    share = batch_size // count
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = ", ".join(str(device) for device in mesh.local_devices)
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{len(mesh.local_devices)} x {jax.local_devices()[0].device_kind} ({devices}), "
        f"rows {index * share} to {(index + 1) * share - 1} of each batch of {batch_size}, mesh {shape}"
    )


def say_hello(mesh: jax.sharding.Mesh, batch_size: int) -> None:
    """Prints `hello` on standard error, in a job alone."""
    if jax.distributed.is_initialized():
        print(hello(mesh, batch_size), file=sys.stderr, flush=True)
