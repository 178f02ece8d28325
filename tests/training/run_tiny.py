"""Trains the tiny experiment in a process of its own: `run_tiny.py '{"workdir": ..., "fields": {...}}' ...`."""

import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

from ssmd_jax.training import loop  # noqa: E402, the devices must be set first
from tests.training import tiny  # noqa: E402

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run = json.loads(argument)
        print(json.dumps(loop.train(tiny.config_dict(**run["fields"]), run["workdir"], tiny.data())), flush=True)
