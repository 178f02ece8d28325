"""What is measured: shapes by preset, and what overrides them."""

import dataclasses
import math

import jax

from ssmd_jax.diffusion.window import CosineWindow, checked_table
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling.config import SpeculativeConfig

SUITES = ("sampling", "training", "likelihood", "cost")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Shapes and options of a benchmark.

    Attributes:
        preset: its name.
        model: the network.
        batch_size: sequences in a batch of sampling and training.
        length: tokens in a sequence, `D`.
        delta_tau: step of the cosine window.
        verify_rounds: at most so many verify rounds a pass.
        likelihood_batch: sequences whose likelihood is taken at a time.
        perturbation: random weights: size of the causal part's output beside vectors of size 1. At 0 the target is
            the draft and nothing is ever rejected.
        runs: timed runs of each part.
        max_seconds: of timed runs for each part.
        seed: of weights and samples.
        quick_compile: on a CPU, without the costly passes of its compiler: for checking that all parts run, where
            compiling takes far longer than what is measured.
        cost_lengths: lengths of the cost suite, at as many tokens a batch as here.
        cost_batches: batches of the cost suite, at this length.
    """

    preset: str
    model: HybridConfig
    batch_size: int
    length: int
    delta_tau: float
    verify_rounds: int
    likelihood_batch: int
    perturbation: float = 0.2
    runs: int = 10
    max_seconds: float = 10.0
    seed: int = 0
    quick_compile: bool = False
    cost_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    cost_batches: tuple[int, ...] = (1, 4, 16, 64, 256, 512)

    def __post_init__(self):
        for name in ("batch_size", "length", "verify_rounds", "likelihood_batch", "runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)}")
        for name in ("delta_tau", "max_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        if not 0 <= self.perturbation < math.inf:
            raise ValueError(f"perturbation must be at least 0 and finite, got {self.perturbation!r}")

    @property
    def sampler(self) -> SpeculativeConfig:
        """What the samplers and the likelihood are given."""
        return SpeculativeConfig(CosineWindow(self.delta_tau), self.verify_rounds)

    @property
    def window_size(self) -> int:
        """The static window: the largest that occurs."""
        return int(checked_table(CosineWindow(self.delta_tau), self.length).max())


def _hybrid(num_tokens: int, width: int, head_dim: int, n_noncausal: int, dtype: str) -> HybridConfig:
    # Unrolled, nothing is copied into stacked buffers; that is how the experiments run on a GPU.
    return HybridConfig(
        num_tokens=num_tokens, width=width, num_heads=width // head_dim, n_noncausal=n_noncausal, dtype=dtype,
        unroll=n_noncausal,
    )  # fmt: skip


# Of the experiments in configs/, with the windows and rounds that they draw with.
PRESETS = {
    "tiny": Settings(
        "tiny",
        _hybrid(27, 64, 32, 1, "float32"),
        8,
        32,
        0.1,
        3,
        4,
        runs=5,
        quick_compile=True,
        cost_lengths=(64,),
        cost_batches=(1,),
    ),
    "books": Settings("books", _hybrid(27, 384, 64, 11, "bfloat16"), 256, 256, 0.04, 8, 64),
    "text8": Settings("text8", _hybrid(27, 768, 64, 11, "bfloat16"), 256, 256, 0.01, 3, 64),
    "openwebtext": Settings("openwebtext", _hybrid(50_257, 768, 64, 11, "bfloat16"), 32, 1024, 0.02, 4, 4),
}


def make_settings(
    preset: str,
    *,
    base: Settings | None = None,
    width: int | None = None,
    attention: str | None = None,
    mlp: str | None = None,
    unroll: int | None = None,
    dtype: str | None = None,
    dropout: float | None = None,
    remat: bool | None = None,
    **overrides,
) -> Settings:
    """A preset, and what goes before it; None leaves the preset's.

    Args:
        preset: a name in `PRESETS`.
        base: settings to start from in place of the preset's: those of a trained model, whose width is given.
        width: residual width; heads keep their channels.
        attention: "xla" or "cudnn"; by default cuDNN where there is a GPU and bfloat16.
        mlp: "xla" or "hopper", in sampling and likelihood; by default the preset's.
        unroll: trunk blocks a step of the scan.
        dtype: of computation.
        dropout: in training.
        remat: in training.
        **overrides: other fields of `Settings`.

    Raises:
        ValueError: for an unknown preset or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    settings = PRESETS[preset] if base is None else base
    model = settings.model
    if width is not None:
        if base is not None:
            raise ValueError("width is that of the trained model: give either workdir or width")
        if width < 1 or width % model.head_dim:
            raise ValueError(f"width must be a positive multiple of {model.head_dim}, a head's channels, got {width}")
        model = dataclasses.replace(model, width=width, num_heads=width // model.head_dim)
    fields = {"unroll": unroll, "dtype": dtype, "dropout": dropout, "remat": remat}
    # A network that is asked for float32 must not fail for the kernels of its preset.
    model = dataclasses.replace(
        model, attention="xla", mlp="xla", **{name: value for name, value in fields.items() if value is not None}
    )
    if attention is None:
        attention = "cudnn" if jax.default_backend() == "gpu" and model.dtype == "bfloat16" else "xla"
    if mlp is None:
        mlp = settings.model.mlp if model.dtype == "bfloat16" else "xla"
    model = dataclasses.replace(model, attention=attention, mlp=mlp)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    return dataclasses.replace(settings, model=model, **overrides)


def parse_suites(text: str) -> tuple[str, ...]:
    """Reads `sampling,training`.

    Raises:
        ValueError: for a suite that there is not.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite must be some of {', '.join(SUITES)}, got {name!r}")
    return names
