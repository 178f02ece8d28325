"""Trains a model, or goes on with the run in a workdir: the same command again resumes it.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart --config.model.width=256

Standard output ends with one line of JSON: steps, losses, seconds. SIGTERM and Ctrl-C save before leaving (exit status
0, or --preempted_status, and 130). On several hosts start the same command on each, with a workdir that all of them
see:

    ... --distributed                       (Cloud TPU, Slurm, Kubernetes: who takes part is found out)
    ... --distributed --coordinator=HOST:PORT --num_processes=2 --process_id=0

HOST is that of process 0, which alone writes and prints results. A process that dies ends all of them within a minute.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for `python launch/train.py`

from absl import flags
from ml_collections import config_flags

from launch import program
from ssmd_jax.training import distributed, loop, profiling

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics; created if it is not there.")
_PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status", 0, "Exit status where SIGTERM ended the run; Kubernetes starts anew what does not end with 0."
)
_PROFILE_STEPS = flags.DEFINE_string("profile_steps", None, "FIRST:LAST steps to trace into <workdir>/profile.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes that train together.")
_JOB = {
    "coordinator": flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens."),
    "num_processes": flags.DEFINE_integer("num_processes", None, "Processes that train together."),
    "process_id": flags.DEFINE_integer("process_id", None, "This one, from 0."),
    "initialization_timeout": flags.DEFINE_integer("initialization_timeout", 300, "Seconds to wait for the others."),
    "heartbeat_timeout": flags.DEFINE_integer("heartbeat_timeout", 30, "Seconds of silence that mean death."),
}
flags.mark_flags_as_required(["config", "workdir"])


def join():
    given = [f"--{name}" for name in _JOB if flags.FLAGS[name].present]
    if given and not _DISTRIBUTED.value:
        raise ValueError(f"{given[0]} is for several processes: add --distributed, or leave it out")
    job = distributed.Job(**{name: flag.value for name, flag in _JOB.items()}) if _DISTRIBUTED.value else None
    return distributed.joined(job)


def main():
    steps = None if _PROFILE_STEPS.value is None else profiling.parse_steps(_PROFILE_STEPS.value)
    summary = loop.train(_CONFIG.value, _WORKDIR.value, profile_steps=steps)
    if summary["stopped_by"] is not None and _PREEMPTED_STATUS.value:
        program.finish(summary, _PREEMPTED_STATUS.value)
    return summary


if __name__ == "__main__":
    program.run(main, around=join)
