"""What a cached decoder is asked to do."""

import dataclasses
import math

from ssmd_jax.sampling.dual.commit import Commit, Fixed
from ssmd_jax.sampling.dual.feeding import Feeding
from ssmd_jax.sampling.dual.proposal import Proposal


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """A decoder of one network; the public ones are in `presets.py`. Hashable: it is compiled into the loop.

    Attributes:
        gen_length: tokens to generate, `G`.
        block_length: tokens of a block; blocks are generated from left to right. None for one block. Divides `G`.
        steps: draft passes that the schedule gives to all blocks; None for one a token. The number of blocks divides
            it. Thresholds play no part in it.
        feeding: which positions a pass feeds, that is, which cache there is.
        commit: which proposals a pass commits.
        proposal: tokens and scores from logits.
        guidance: scale of classifier-free guidance; 0 for none. Each pass then counts as two forwards.
        eos_id: with it a row ends at its first end of text before which nothing is masked, and is padded with it; None
            generates all tokens.
        budget: hard bound on the forwards of each row, those of the verifier included; at least one a block. The last
            pass that a block can pay commits all of it. None for no bound.
        paper: spend a cached pass in each block even where its first pass finished it, as the public Fast-dLLM does.
    """

    gen_length: int
    block_length: int | None = None
    steps: int | None = None
    feeding: Feeding = Feeding()  # noqa: RUF009, frozen
    commit: Commit = Fixed()  # noqa: RUF009, frozen
    proposal: Proposal = Proposal()  # noqa: RUF009, frozen
    guidance: float = 0.0
    eos_id: int | None = None
    budget: int | None = None
    paper: bool = False

    def __post_init__(self):
        _require_count("gen_length", self.gen_length)
        for name in ("block_length", "steps", "budget"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        if self.gen_length % self.block:
            raise ValueError(f"gen_length {self.gen_length} is not divisible by block_length {self.block}")
        steps = self.gen_length if self.steps is None else self.steps
        if steps % self.num_blocks or not self.num_blocks <= steps <= self.gen_length:
            raise ValueError(
                f"steps {steps} must be a multiple of the {self.num_blocks} blocks, and no more than gen_length "
                f"{self.gen_length}"
            )
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 and finite, got {self.guidance!r}")
        if self.feeding.plans_order and (self.proposal.score != "random" or not isinstance(self.commit, Fixed)):
            raise ValueError(
                f"{type(self.feeding).__name__} draws the order of a block beforehand: it needs the score 'random' and "
                "the commit rule Fixed"
            )
        if self.budget is not None and self.budget < self.num_blocks * self.cost:
            raise ValueError(
                f"budget {self.budget} pays no pass for each of the {self.num_blocks} blocks, which need "
                f"{self.num_blocks * self.cost} forwards"
            )

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.gen_length if self.block_length is None else self.block_length

    @property
    def num_blocks(self) -> int:
        return self.gen_length // self.block

    @property
    def steps_per_block(self) -> int:
        """Draft passes that the schedule gives to a block."""
        return (self.gen_length if self.steps is None else self.steps) // self.num_blocks

    @property
    def cost(self) -> int:
        """Forwards of a pass."""
        return 2 if self.guidance else 1


def _require_count(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
