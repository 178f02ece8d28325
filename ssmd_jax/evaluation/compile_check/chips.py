"""Published figures of accelerators: what a predicted time is a bound by."""

from typing import NamedTuple

import jax

from ssmd_jax.training.flops import peak_flops


class Chip(NamedTuple):
    """One device.

    Attributes:
        name: as users know it.
        matrix: dense bfloat16 peak, FLOP/s.
        memory: of the device, as much of it as a program can have, bytes.
        memory_bandwidth: of that memory, bytes/s.
        link_bandwidth: to the other devices, bytes/s one way, over all links together.
    """

    name: str
    matrix: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float


GIBI = 2**30

# Looked for in `device_kind`, the first match counts: (name, memory, its bandwidth, links one way). Matrix peaks are
# those of `training/flops.py`. Where a page gives both directions of the links together, half of it stands here. Of a
# TPU's memory programs have a little less than is published: what its compiler (libtpu 0.0.42) names when it refuses.
CHIPS = {
    # docs.cloud.google.com/tpu/docs/v6e: 32 GB at 1600 GB/s, 3200 Gbit/s.
    "TPU v6": ("v6e", 31.25 * GIBI, 1600e9, 400e9),
    # docs.cloud.google.com/tpu/docs/v5e: 16 GB at 819 GB/s, 400 GB/s both ways.
    "TPU v5 lite": ("v5e", 15.75 * GIBI, 819e9, 200e9),
    "TPU v5e": ("v5e", 15.75 * GIBI, 819e9, 200e9),
    # docs.cloud.google.com/tpu/docs/v5p: 95 GB at 2765 GB/s, 1200 GB/s both ways.
    "TPU v5": ("v5p", 95 * GIBI, 2765e9, 600e9),
    # docs.cloud.google.com/tpu/docs/v4: 32 GiB at 1200 GB/s, 2400 Gbit/s.
    "TPU v4": ("v4", 30.75 * GIBI, 1200e9, 300e9),
    # nvidia.com/en-us/data-center/h200: 141 GB at 4.8 TB/s, NVLink 900 GB/s both ways.
    "H200": ("H200", 141e9, 4800e9, 450e9),
    # nvidia.com/en-us/data-center/h100, SXM: 80 GB at 3.35 TB/s, NVLink 900 GB/s both ways. (The PCIe card has less.)
    "H100 80GB": ("H100", 80e9, 3350e9, 450e9),
}


def chip_of(device: jax.Device) -> Chip | None:
    """The published figures of a device; None where they are not in the table."""
    for kind, (name, *figures) in CHIPS.items():
        if kind.lower() in device.device_kind.lower():
            return Chip(name, peak_flops(device), *figures)
    return None
