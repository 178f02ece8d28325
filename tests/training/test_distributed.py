"""Several real processes on loopback: they train as one does, refuse bad input in one sentence, and die together."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ssmd_jax.training import distributed

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
SMALL = [
    "--config=configs/quickstart.py",
    "--config.length=16",
    "--config.model.width=16",
    "--config.model.num_heads=2",
    "--config.model.n_noncausal=1",
    "--config.training.num_steps=4",
    "--config.training.batch_size=8",
    "--config.training.eval_batches=2",
    "--config.training.log_every=1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Flags of a small text."""
    folder = tmp_path_factory.mktemp("corpus")
    words = ["the cat sat on ", "the mat and ", "the dog ran off again "]
    rng = np.random.default_rng(0)
    documents = ["".join(words[i] for i in rng.integers(0, 3, 60)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\f\n".join(documents))
    return [f"--config.data.source={folder / 'text.txt'}", f"--config.data.cache_dir={folder / 'cache'}"]


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(workdir, corpus, *flags, devices=2):
    """One process of `launch/train.py`."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.train", *SMALL, *corpus, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(workdir, corpus, *flags, devices=2):
    job = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [start(workdir, corpus, *flags, *job, f"--process_id={n}", devices=devices) for n in (0, 1)]


def start_two_and_wait(workdir, corpus):
    """Two processes that have made a few steps and would make many more."""
    processes = start_two(workdir, corpus, "--config.training.num_steps=1000000")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.2)
    return processes


def finish(processes, timeout=300):
    """Standard output and error of each, all of which end well."""
    ends = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0, err
    return ends


def lines(workdir, kind):
    """What the metrics file says of losses and gradients: `[number of lines, number of names]`."""
    names = {"train": ("step", "loss", "grad_norm"), "valid": ("step", "draft_loss", "target_loss")}[kind]
    values = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in names] for line in values if line["kind"] == kind])


OVER_BATCH_AND_PARAMETERS = "--config.mesh.fsdp=2"
HALF = "--config.training.stop_step=2"


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """Workdir of an undisturbed run of one process on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    ((_, err),) = finish([start(workdir, corpus, devices=1)])
    assert "process 0" not in err
    return workdir


def hello(err):
    """The line in which a process says who it is."""
    return next(line for line in err.splitlines() if line.startswith("process "))


def assert_same_curve(workdir, alone):
    np.testing.assert_allclose(lines(workdir, "train"), lines(alone, "train"), rtol=2e-4)
    np.testing.assert_allclose(lines(workdir, "valid")[-1], lines(alone, "valid")[-1], rtol=2e-4)


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(corpus, alone, tmp_path):
    (out_0, err_0), (out_1, err_1) = finish(start_two(tmp_path, corpus, OVER_BATCH_AND_PARAMETERS, HALF))
    assert json.loads(out_0)["step"] == 2 and out_1 == ""
    for n, err in enumerate((err_0, err_1)):
        pattern = rf"process {n} of 2 on \S+: 2 x cpu \(.*\), rows {4 * n} to {4 * n + 3} of each batch of 8, "
        assert re.fullmatch(pattern + "mesh data 2 x fsdp 2 x tensor 1", hello(err)), err
    assert "step 2" in err_0
    # Gloo's threads write over each other, and a line of theirs may begin anywhere.
    assert [line for line in err_1.splitlines() if "[Gloo]" not in line and "peer ranks" not in line] == [hello(err_1)]
    finish([start(tmp_path, corpus, devices=1)])
    assert_same_curve(tmp_path, alone)


@pytest.mark.slow
def test_one_process_trains_and_two_go_on(corpus, alone, tmp_path):
    """The two share heads and vocabulary, and so all rows of the batch."""
    finish([start(tmp_path, corpus, OVER_BATCH_AND_PARAMETERS, HALF, devices=4)])
    over_heads = ["--config.mesh.tensor=2", "--config.mesh.data=1"]
    (out_0, err_0), (_, err_1) = finish(start_two(tmp_path, corpus, *over_heads, devices=1))
    assert json.loads(out_0)["resumed_from"] == 2
    assert "rows 0 to 7 of each batch" in hello(err_0) and "rows 0 to 7 of each batch" in hello(err_1)
    assert_same_curve(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_start_from_the_weights_of_one(corpus, alone, tmp_path):
    from_other = [f"--config.training.init_from={alone}", "--config.training.num_steps=1", OVER_BATCH_AND_PARAMETERS]
    (out, _), _ = finish(start_two(tmp_path, corpus, *from_other))
    # One step away from where that run ended, which is far from any start.
    (first, *_), (*_, last) = lines(alone, "train")[:, 1], lines(alone, "valid")[:, 1]
    assert json.loads(out)["valid_draft_loss"] < (first / 2 + last) / 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_job_within_a_minute(corpus, tmp_path, victim):
    processes = start_two_and_wait(tmp_path, corpus)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    survivor = processes[1 - victim]
    try:
        out, err = survivor.communicate(timeout=60)
    finally:
        survivor.kill()
    print(f"process {victim} dead: noticed after {time.monotonic() - began:.1f} s")
    assert survivor.returncode != 0 and out == ""
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith(f"error: process {1 - victim} of 2") and "another process" in sentence
    assert distributed.RESUME in sentence
    _, err = processes[victim].communicate()
    assert f"error: process {victim} of 2" in err and "it was killed" in err


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(corpus, tmp_path):
    processes = start_two_and_wait(tmp_path, corpus)
    processes[1].send_signal(signal.SIGTERM)
    (out, err), _ = finish(processes, timeout=60)
    assert json.loads(out)["stopped_by"] == "SIGTERM" and "SIGTERM: saved at step" in err


def job(**fields):
    return distributed.Job(**{"coordinator": "host:1234", "num_processes": 2, "process_id": 0} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process_id": None}, "give --process_id too"),
        ({"coordinator": None, "num_processes": None}, "give --coordinator and --num_processes too"),
        ({"coordinator": "host"}, "HOST:PORT"),
        ({"coordinator": "host:port"}, "HOST:PORT"),
        ({"process_id": 2}, "--process_id 2 does not exist"),
        ({"num_processes": 0}, "--process_id 0 does not exist"),
        ({"initialization_timeout": 0}, "--initialization_timeout"),
        ({"heartbeat_timeout": 1}, "--heartbeat_timeout"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        job(**fields)


def test_what_cannot_be_joined_is_one_sentence(corpus, tmp_path):
    """Nobody there, a port in use, no scheduler, and flags of a job without one."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        two = ["--distributed", "--num_processes=2", "--initialization_timeout=3"]
        cases = [
            ([*two, f"--coordinator=127.0.0.1:{free_port()}", "--process_id=1"], "waited 3 s .* cannot be reached"),
            ([*two, f"--coordinator=127.0.0.1:{free_port()}", "--process_id=0"], "waited 3 s .* not all of the others"),
            ([*two, f"--coordinator=127.0.0.1:{port}", "--process_id=0"], f"cannot listen on port {port}"),
            (["--distributed", "--initialization_timeout=3"], "outside of Cloud TPU, Slurm and Kubernetes give"),
            (["--process_id=1"], "--process_id is for several processes: add --distributed"),
        ]
        processes = [start(tmp_path / "run", corpus, *flags) for flags, _ in cases]
        for process, (_, message) in zip(processes, cases, strict=True):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 1 and out == "", err
            assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert not (tmp_path / "run").exists()
