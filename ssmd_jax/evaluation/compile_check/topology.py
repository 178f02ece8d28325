"""The devices to compile for: those of this machine, or a TPU slice that need not be here."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

LOCAL = "local"
# v4 has two cores a chip, which programs see as one device; compilers must be told.
ONE_DEVICE_A_CHIP = {"v4": {"chip_config_name": "megacore"}}
# libtpu looks for the machine that it is on, and complains where that is no TPU; it also lets one process use it only.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices_of(topology: str) -> list[jax.Device]:
    """Devices of a topology.

    A TPU topology must be asked for before jax has used any device: its own backend is then the CPU.

    Args:
        topology: "local", or a TPU generation and the chips along each axis, for example "v5e:4x4".

    Raises:
        ValueError: for a topology that does not exist.
        ImportError: where the TPU's compiler is not installed.
    """
    if topology == LOCAL:
        return jax.devices()
    parts = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+)+)", topology)
    if parts is None:
        raise ValueError(f'topology must be "local" or like v5e:4x4, v6e:8x8 or v5p:4x4x8, got {topology!r}')
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f'topology {topology} needs the TPU\'s compiler, libtpu; install it with: pip install "jax[tpu]"'
        )
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    jax.config.update("jax_platforms", "cpu")
    options = ONE_DEVICE_A_CHIP.get(parts[1], {})
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"topology {topology} does not exist, the TPU's compiler says: {text}") from None
