"""`launch/pods/`: what each script would run, and what it refuses."""

import os
import pathlib
import shlex
import subprocess

import pytest

PODS = pathlib.Path(__file__).parents[2] / "launch" / "pods"
NEEDED = {
    "cloud_tpu_queued": {"PROJECT": "p", "REPOSITORY": "https://example.org/r.git"},
    "gke_xpk": {"PROJECT": "p", "CLUSTER": "c", "IMAGE": "i"},
    "slurm_gpu": {"PARTITION": "gpu"},
    "two_hosts": {"HOSTS": "one two"},
}
EXTRA = ["--config.mesh.fsdp=2", "--config.data.source=/a folder/it's/*.parquet"]
TRAIN = ["-m", "launch.train", "--config=configs/openwebtext.py"]


def call(name, *arguments, **variables):
    # No cluster's tools: a dry run needs none, and finds none to call by mistake.
    environment = {"PATH": os.environ["PATH"], **variables}
    command = [str(PODS / f"{name}.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def dry_run(name, **variables):
    """The commands as lists of words."""
    done = call(name, "--dry_run", *EXTRA, **NEEDED[name], **variables)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def check_train(words, *flags):
    """A command line that trains, distributed, with what the user added."""
    at = words.index("-m")
    assert words[at : at + 3] == TRAIN
    assert "--distributed" in words and words[-2:] == EXTRA
    assert all(flag in words for flag in flags), words


def option(words, name):
    return next(word.partition("=")[2] for word in words if word.startswith(f"--{name}="))


def test_cloud_tpu():
    create, install, train, delete = dry_run("cloud_tpu_queued", ACCELERATOR_TYPE="v6e-64", SPOT="true")
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert option(create, "accelerator-type") == "v6e-64" and "--spot" in create
    assert "--worker=all" in install and "https://example.org/r.git" in option(install, "command")
    check_train(shlex.split(option(train, "command")))
    assert delete[4] == "delete" and "--force" in delete
    assert len(dry_run("cloud_tpu_queued", KEEP="true")) == 3


def test_gke():
    (create,) = dry_run("gke_xpk", NUM_SLICES="2")
    assert create[:4] == ["xpk", "workload", "create", "--workload=ssmd"] and option(create, "num-slices") == "2"
    # What a preemption ends is to be started anew.
    check_train(shlex.split(option(create, "command")), "--preempted_status=143")


def test_slurm():
    (submit,) = dry_run("slurm_gpu", NODES="4")
    assert submit[0] == "sbatch" and option(submit, "nodes") == "4" and option(submit, "partition") == "gpu"
    assert option(submit, "signal") == "TERM@120"
    step = shlex.split(option(submit, "wrap"))
    assert step[0] == "srun" and option(step, "cpus-per-task") == "8"
    check_train(step)


def test_two_hosts():
    for n, line in enumerate(dry_run("two_hosts", PORT="99")):
        assert line[:3] == ["ssh", "-tt", ["one", "two"][n]]
        words = shlex.split(line[3])
        assert words[:2] == ["cd", str(PODS.parents[1])]
        check_train(words, "--coordinator=one:99", "--num_processes=2", f"--process_id={n}")
    assert n == 1


def test_a_host_that_fails_stops_the_others(tmp_path):
    """In place of ssh a script that fails for one host and would never end for the other."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        '#!/bin/bash\n[[ "$2" == one ]] && { until [[ -s "$0.pid" ]]; do sleep 0.1; done; exit 3; }\n'
        'echo $$ > "$0.pid"\nexec sleep 600\n'
    )
    ssh.chmod(0o755)
    done = call("two_hosts", **NEEDED["two_hosts"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 3
    started = tmp_path / "ssh.pid"
    assert not pathlib.Path("/proc", started.read_text().strip()).exists()


@pytest.mark.parametrize("name", NEEDED)
def test_help_and_bad_input(name):
    done = call(name, "--help")
    assert done.returncode == 0 and "--dry_run" in done.stdout
    stray = call(name, "stray", **NEEDED[name])
    assert stray.returncode == 1 and "stray" in stray.stderr and not stray.stdout
    for missing in set(NEEDED[name]) - {"PARTITION"}:
        given = {key: value for key, value in NEEDED[name].items() if key != missing}
        done = call(name, **given)
        assert done.returncode == 1 and missing in done.stderr and not done.stdout
