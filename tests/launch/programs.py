"""Runs the programs as their users do, on a tiny trained run; one process for many command lines."""

import atexit
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from ssmd_jax.training import loop
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Starting Python and jax takes seconds: every command line is run in the same process, its flags reset.
DRIVER = """
import contextlib, importlib, io, json, sys, types
name, lines = sys.argv[1], json.loads(sys.argv[2])
module = importlib.import_module(name)
from absl import flags
from launch import program
import jax
jax.config.config_with_absl()  # defines jax's flags, which can be done only once
program.jax = types.SimpleNamespace(config=types.SimpleNamespace(config_with_absl=lambda: None))
outcomes = []
for line in lines:
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    sys.argv = [name, *line]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program.run(module.main)
        except SystemExit as leaving:
            status = leaving.code or 0
    outcomes.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(outcomes))
"""


@functools.cache
def folder() -> pathlib.Path:
    """A folder with a text of forty documents; removed when the tests end."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="ssmd_jax_"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    document = "the cat sat on the mat and the dog ran to the old oak tree\n" * 8
    (made / "corpus.txt").write_text("\f\n".join([document] * 40))
    return made


@functools.cache
def workdir() -> str:
    """A finished run of two steps on that text."""
    loop.train(config(), folder() / "run")
    return str(folder() / "run")


def config():
    """Its experiment."""
    source, cache = str(folder() / "corpus.txt"), str(folder() / "cache")
    return tiny.config_dict(training__num_steps=2, data__source=source, data__cache_dir=cache)


def environment() -> dict[str, str]:
    """The tests' own, on one CPU device; programs so small are compiled for longer than they run."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "XLA_FLAGS": flags}


def run(name: str, lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each command line of `launch/<name>.py`."""
    command = [sys.executable, "-c", DRIVER, f"launch.{name}", json.dumps(lines)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(outcome) for outcome in json.loads(done.stdout.splitlines()[-1])]


def check_refused(outcome: tuple[int, str, str], named: str) -> None:
    """One sentence that names the culprit, status 1, nothing on standard output, no traceback."""
    status, out, err = outcome
    assert status == 1 and not out, outcome
    assert err.startswith("error: ") and err.count("\n") == 1, outcome
    assert named in err and "Traceback" not in err, outcome


def last_json(out: str) -> dict:
    """The last line of standard output."""
    return json.loads(out.splitlines()[-1], parse_constant=_refuse_constant)


def _refuse_constant(name: str):
    """JSON has no NaN and no infinity."""
    raise AssertionError(f"{name} is not JSON")
