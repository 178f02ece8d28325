"""Shapes on which the decoders of masked language models are measured."""

import dataclasses
import math

import jax

from ssmd_jax.model.bidirectional import BidirectionalConfig
from ssmd_jax.model.llada import LLADA_8B


@dataclasses.dataclass(frozen=True)
class DualSettings:
    """Shapes and options.

    Attributes:
        preset: its name.
        model: the network.
        prompt_length: tokens of every prompt.
        gen_length: tokens to generate.
        block_length: tokens of a block.
        tokens_a_step: that a pass commits; divides the block.
        batches: rows decoded at a time, one measurement each.
        refresh: of dKV-Cache, a full pass every so many.
        buckets: numbers of fed positions that the prefix cache and dKV-Cache compile: fewer compile faster.
        loop_steps: cached passes in one call where they are measured alone.
        runs: timed runs of each part.
        max_seconds: of timed runs for each part; a part whose first call takes longer is timed by that call.
        seed: of weights and prompts.
        compilers: programs that are compiled at a time.
        quick_compile: on a CPU, without the costly passes of its compiler.
    """

    preset: str
    model: BidirectionalConfig
    prompt_length: int
    gen_length: int
    block_length: int
    tokens_a_step: int
    batches: tuple[int, ...]
    refresh: int = 8
    buckets: int = 2
    loop_steps: int = 16
    runs: int = 5
    max_seconds: float = 15.0
    seed: int = 0
    compilers: int = 8
    quick_compile: bool = False

    def __post_init__(self):
        counts = ("prompt_length", "gen_length", "block_length", "tokens_a_step", "loop_steps", "runs", "compilers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be whole numbers of at least 1, got {self.batches}")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds must be positive and finite, got {self.max_seconds!r}")
        if self.block_length % self.tokens_a_step:
            raise ValueError(
                f"block_length {self.block_length} is not divisible by tokens_a_step {self.tokens_a_step}: no fixed "
                "number of passes would do"
            )
        if self.length > self.model.max_length:
            raise ValueError(
                f"prompt_length {self.prompt_length} and gen_length {self.gen_length} are more than the "
                f"{self.model.max_length} that the network can hold"
            )

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.prompt_length + self.gen_length

    @property
    def steps(self) -> int:
        """Draft passes of a whole text."""
        return self.gen_length // self.tokens_a_step


_TINY = BidirectionalConfig(
    vocab_size=64,
    mask_id=62,
    eos_id=61,
    width=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=48,
    rope_theta=10_000.0,
    rms_eps=1e-5,
    max_length=64,
    dtype="float32",
)

PRESETS = {
    "tiny": DualSettings("tiny", _TINY, 16, 16, 8, 2, (2,), loop_steps=2, runs=2, compilers=2, quick_compile=True),
    # 16 GB of weights; a batch of 16 has 6.4 GB of keys and values.
    "llada8b": DualSettings("llada8b", LLADA_8B, 512, 256, 32, 8, (1, 16)),
}


def make_settings(preset: str, *, attention: str | None = None, num_layers: int | None = None, **overrides):
    """A preset, and what goes before it; None leaves the preset's.

    Args:
        preset: a name in `PRESETS`.
        attention: "xla" or "cudnn"; by default cuDNN where there is a GPU and bfloat16.
        num_layers: blocks of the network, for a smaller machine.
        **overrides: other fields of `DualSettings`.

    Raises:
        ValueError: for an unknown preset or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    settings = PRESETS[preset]
    if attention is None:
        attention = "cudnn" if jax.default_backend() == "gpu" and settings.model.dtype == "bfloat16" else "xla"
    layers = settings.model.num_layers if num_layers is None else num_layers
    model = dataclasses.replace(settings.model, attention=attention, num_layers=layers)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    return dataclasses.replace(settings, model=model, **overrides)
