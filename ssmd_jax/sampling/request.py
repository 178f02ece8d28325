"""What a user asks of a sampler, checked and as arrays: what each row is given, and the rules that all rows share."""

import flax
import jax
import numpy as np

from ssmd_jax.sampling import budget, canvas, keys, sharded
from ssmd_jax.sampling.budget import Purse, Windows
from ssmd_jax.sampling.config import Laws, SpeculativeConfig
from ssmd_jax.sampling.sizes import static_sizes


@flax.struct.dataclass
class Rows:
    """What each row is given and keeps while it is sampled; leading axis B everywhere.

    Attributes:
        keys_B: the row's key.
        prompt_BxD: int32 in sequence order, the mask id where not given.
        given_BxD: bool.
        lengths_B: int32; None where all rows are full.
        windows: the row's tables.
    """

    keys_B: jax.Array
    prompt_BxD: jax.Array
    given_BxD: jax.Array
    lengths_B: jax.Array | None
    windows: Windows

    def known_lengths(self) -> jax.Array | np.ndarray:
        """Lengths, `[B]`; see `canvas.known_lengths`."""
        return canvas.known_lengths(self.lengths_B, *self.prompt_BxD.shape)

    def at(self, index_B: jax.Array) -> "Rows":
        """The rows `index[b]`."""
        return jax.tree.map(lambda x: x[index_B], self)

    def start(self, mask_id: int, laws: Laws) -> canvas.Canvas:
        """The rows before their first pass."""
        return canvas.start(
            self.keys_B,
            self.prompt_BxD,
            self.given_BxD,
            self.known_lengths(),
            mask_id,
            laws.order,
        )


@flax.struct.dataclass
class Rules:
    """What all rows share. Numbers are leaves: a sweep over them compiles nothing anew.

    Attributes:
        laws: from logits to distributions.
        purse: what a row may spend.
        verify_rounds: int32 scalar, rounds a pass at most; plays no part in the plain sampler.
        sizes: static, the window sizes that are compiled; the last holds every window.
    """

    laws: Laws
    purse: Purse
    verify_rounds: jax.Array
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)


def prepare(
    model,
    key: jax.Array,
    config: SpeculativeConfig,
    num_rows: int,
    length: int,
    prompt,
    prompt_mask,
    lengths,
    *,
    verify_cost: float,
    mesh: jax.sharding.Mesh | None,
    name: str = "batch_size",
) -> tuple[Rows, Rules]:
    """Checks the arguments of a sampler.

    Args:
        model, key, config, length, prompt, prompt_mask, lengths, mesh: as in `speculative.sample`.
        num_rows: how many rows.
        verify_cost: NFE of a round; 0 for the plain sampler.
        name: what the user knows `num_rows` by.

    Raises:
        ValueError: one sentence that names the argument.
    """
    prompt_BxD, given_BxD, lengths_B = canvas.check_rows(model, num_rows, length, prompt, prompt_mask, lengths, name)
    sharded.check_divisible(mesh, num_rows, name)
    purse, max_passes = budget.purse(config.budget_nfe, model.trunk_cost, verify_cost)
    windows, size = budget.windows(config.window, lengths_B, length, max_passes)
    rows = Rows(
        keys.row_keys(key, num_rows, name), prompt_BxD, given_BxD, canvas.unless_full(lengths_B, length), windows
    )
    return rows, Rules(config.laws, purse, np.int32(config.verify_rounds), static_sizes(size))
