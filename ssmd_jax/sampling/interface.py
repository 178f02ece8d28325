"""What a sampler sees of a network: a few functions in order space (METHOD.md section 2)."""

from typing import Any, Protocol

import jax


class SpeculativeModel(Protocol):
    """A network bound to its parameters. It is a pytree: its arrays are leaves, the rest is static.

    Two classes whose static fields are equal need a static field that tells them apart: JAX compares tree structures
    without their classes.

    A sequence is permuted once: `tokens[b, k]` is the token at position `positions[b, k]`, and the revealed tokens are
    the prefix `[0, num_revealed)`. Tracks `[0, lengths[b])` are the sequence, the rest is padding: never attended,
    drafted or counted; there `tokens` hold the mask id.

    Attributes:
        num_tokens: number of real tokens `V`; the mask id is `V`.
        trunk_cost: NFE of one trunk pass.
        verify_cost: NFE of one verify round; 1 together on a hybrid network, 1 and 0 on a plain one.
    """

    num_tokens: int
    trunk_cost: float
    verify_cost: float

    def trunk(self, tokens_BxD: jax.Array, positions_BxD: jax.Array, num_revealed_B: jax.Array, lengths_B: Any) -> Any:
        """One pass. Masks `tokens[num_revealed:]` itself. Returns any pytree of arrays, the context.

        Axis B comes first in every leaf, and entry `b` belongs to row `b`: verify rounds take the rows that still need
        them out of the context into a smaller batch (`compaction.while_active`). What no row owns belongs in the model.

        `lengths_B` may be a NumPy array: the caller then knows while tracing that all rows are full.
        """
        ...

    def draft_logits(self, context: Any, start_B: jax.Array, size: int) -> jax.Array:
        """Draft logits `[B, size, V]` of tracks `start .. start+size-1`; rows past the end arbitrary but finite."""
        ...

    def target_logits(
        self, context: Any, tokens_BxD: jax.Array, positions_BxD: jax.Array, start_B: jax.Array, size: int
    ) -> jax.Array:
        """Target logits `[B, size, V]`; row `s` depends on `tokens[: start + s]` only.

        `start` is the `num_revealed` of the trunk pass that made the context, in every verify round, and
        `tokens[:num_revealed]` and `positions` are those of that pass. B may be fewer rows than that pass had, all of
        them with what is theirs.
        """
        ...

    def reorder(self, context: Any, permutation_BxD: jax.Array) -> Any:
        """The context with track `s` taken from old track `permutation[b, s]`; identity on the revealed prefix."""
        ...


def prepared(model: SpeculativeModel) -> SpeculativeModel:
    """The model as a loop should use it: `model.prepared()` where the model has such a method, for work to do once.

    A network converts its kernels there to the dtype that it computes in, which would else be done at every pass.
    """
    # Of the type: a wrapper that passes unknown names on must not be replaced by what it wraps.
    return model.prepared() if hasattr(type(model), "prepared") else model
