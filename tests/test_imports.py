"""The arrows between the packages are those of the design, and importing costs no device."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_import_rules():
    """import-linter's contracts in pyproject.toml."""
    program = pathlib.Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_touches_no_backend():
    """A library must leave it to the program to say which devices it uses."""
    code = (
        "import ssmd_jax, ssmd_jax.training.loop, ssmd_jax.evaluation.report\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
