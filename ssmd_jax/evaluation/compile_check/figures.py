"""What the compiler says of one program, beside what we count ourselves."""

import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from ssmd_jax.diffusion.window import checked_table
from ssmd_jax.evaluation.benchmark import flops as sampling_flops
from ssmd_jax.evaluation.compile_check.chips import GIBI, Chip
from ssmd_jax.evaluation.compile_check.collectives import Collective, collectives
from ssmd_jax.evaluation.compile_check.traffic import loop_factor
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.flops import step_flops_per_token, train_flops_per_token


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        arguments: what the program is given: parameters, and in training the rest of the state and the batch.
        outputs: what it returns in buffers of their own; a donated argument's buffer is not counted again.
        temporaries: activations and scratch, at their largest.
        code: the program itself.
        resident: what else lies on the device meanwhile: in validation the state that it does not read.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    resident: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Seconds(NamedTuple):
    """The time of a call by each of a chip's peaks, were there nothing else; None where it is not known.

    Attributes:
        compute: our FLOPs at the matrix peak; what `remat` computes again is not in it.
        memory: `moved_bytes` at the memory's bandwidth; too high where the compiler keeps them on the chip.
        collectives: bytes sent, each collective done as a ring over all links, none of them hidden.
    """

    compute: float | None
    memory: float | None
    collectives: float | None

    @property
    def bound(self) -> float | None:
        """The largest of them."""
        return max((value for value in self if value is not None), default=None)


class Figures(NamedTuple):
    """One program.

    Attributes:
        batch_size: sequences, over all devices.
        memory: None where the compiler refused the program for want of memory, or does not say.
        refusal: what the compiler said when it refused; None where it did not.
        flops: of one device by our formula; of a sampler at least, since rejections add passes.
        compiler_flops: of one device by the compiler, a loop's body counted once.
        compiler_bytes: read and written by one device, counted as the FLOPs.
        moved_bytes: the same with the turns of loops, as far as they are known (see `traffic.loop_factor`).
        collectives: by kind.
        unknown_loops: loops with collectives that were counted as one turn.
        seconds: bounds on the time of a call.
        compile_seconds: lowering not included.
    """

    batch_size: int
    memory: Memory | None
    refusal: str | None
    flops: float
    compiler_flops: float | None
    compiler_bytes: float | None
    moved_bytes: float | None
    collectives: list[Collective]
    unknown_loops: int
    seconds: Seconds
    compile_seconds: float

    def fits(self, capacity: float | None) -> bool | None:
        """Whether a device of so many bytes holds it; None where that is not known."""
        if self.refusal is not None:
            return False
        return None if self.memory is None or capacity is None else self.memory.total <= capacity

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        memory = None if self.memory is None else {**self.memory._asdict(), "total": self.memory.total}
        return {
            **self._asdict(),
            "memory": memory,
            "collectives": [one._asdict() for one in self.collectives],
            "seconds": {**self.seconds._asdict(), "bound": self.seconds.bound},
        }


def bytes_per_device(tree) -> int:
    """Bytes on one device of an abstract tree with shardings."""
    sizes = (np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return int(sum(sizes))


def compile_program(
    lowered: jax.stages.Lowered,
    *,
    batch_size: int,
    flops: float,
    chip: Chip | None,
    options: dict[str, Any],
    resident: int = 0,
    steps: bool = True,
) -> Figures:
    """Compiles a program and reads off its figures.

    Args:
        lowered: the program.
        batch_size: for the record.
        flops: of one device, ours.
        chip: whose peaks bound the time; None where they are not known.
        options: of the compiler.
        resident: bytes that lie on the device meanwhile.
        steps: False for a program whose loops turn a number of times that nobody knows: its bytes bound nothing.

    Raises:
        jax.errors.JaxRuntimeError: where the compiler fails for another reason than want of memory.
    """
    began = time.perf_counter()
    seconds = Seconds(flops / chip.matrix if chip else None, None, None)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.perf_counter() - began
        return Figures(batch_size, None, _refusal(str(error)), flops, None, None, None, [], 0, seconds, took)
    took = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text, counted = compiled.as_text(), cost.get("bytes accessed")
    found, unknown_loops = collectives(text)
    moved = None if counted is None else counted * loop_factor(text)
    if chip and steps:
        seconds = seconds._replace(
            memory=None if moved is None else moved / chip.memory_bandwidth,
            collectives=sum(one.wire_bytes for one in found) / chip.link_bandwidth,
        )
    return Figures(
        batch_size=batch_size,
        memory=memory
        and Memory(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            resident=resident,
        ),
        refusal=None,
        flops=flops,
        compiler_flops=cost.get("flops"),
        compiler_bytes=counted,
        moved_bytes=moved,
        collectives=found,
        unknown_loops=unknown_loops,
        seconds=seconds,
        compile_seconds=took,
    )


def _refusal(text: str) -> str:
    amount = r"([\d.]+)([MGT])"
    needed = re.search(rf"\({amount}\) exceeds available HBM \({amount}\)", text) or re.search(
        rf"Used {amount} of {amount} hbm", text
    )
    return "{} {}iB of {} {}iB".format(*needed.groups()) if needed else " ".join(text.split())[:200]


def train_flops(config: ExperimentConfig, model: HybridConfig) -> float:
    """Of a train step, over all devices."""
    per_token = step_flops_per_token(model, config.length, config.loss)
    return config.training.batch_size * config.length * per_token


def validation_flops(config: ExperimentConfig, model: HybridConfig) -> float:
    """Of a validation step, over all devices: the forward third of training."""
    per_token = train_flops_per_token(model, config.length) / 3
    return config.training.validation_batch_size * config.length * per_token


def sampler_flops(config: ExperimentConfig, model: HybridConfig, batch_size: int) -> float:
    """Of a batch of samples, over all devices, at least: every window is settled by one verify round."""
    table, start, total = checked_table(config.sampling.speculative().window, config.length), 0, 0.0
    while start < config.length:
        size = int(table[start])
        total += sampling_flops.trunk(model, batch_size, config.length) + sampling_flops.head(model, batch_size * size)
        total += sampling_flops.verify_round(model, batch_size, config.length, size)
        start += size
    return total


def gibi(num_bytes: float) -> str:
    """A number of bytes for a table, in GiB."""
    return f"{num_bytes / GIBI:.2f}"
