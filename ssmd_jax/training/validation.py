"""Validation during training: both losses, and the distance table (METHOD.md sections 4 and 8).

The draft loss bounds the negative log likelihood. The target loss bounds nothing: compare it with the draft's at equal
distance, which is what the table is for.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion import loss
from ssmd_jax.diffusion.loss import DISTANCE_LABELS, LossConfig
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.training import keys
from ssmd_jax.training.step import row_lengths, token_losses


class Validation(NamedTuple):
    """Averages over the validation batches; nats and bits are per token (per character for characters).

    Attributes:
        draft_loss: nats, a bound.
        target_loss: nats, no bound.
        draft_by_distance: bits by distance `k - i` in the buckets `DISTANCE_LABELS`; NaN where a bucket is empty.
        target_by_distance: the same of the target, never tied to the draft.
    """

    draft_loss: float
    target_loss: float
    draft_by_distance: list[float]
    target_by_distance: list[float]

    @property
    def draft_bits(self) -> float:
        """The draft loss in bits."""
        return self.draft_loss / math.log(2)

    @property
    def target_bits(self) -> float:
        """The target loss in bits."""
        return self.target_loss / math.log(2)

    def as_dict(self) -> dict[str, float | list[float | None]]:
        """What the metrics file holds; None stands for an empty bucket."""
        plain = lambda cells: [None if math.isnan(cell) else cell for cell in cells]
        return {
            "draft_loss": self.draft_loss,
            "target_loss": self.target_loss,
            "draft_bits": self.draft_bits,
            "target_bits": self.target_bits,
            "draft_bits_by_distance": plain(self.draft_by_distance),
            "target_bits_by_distance": plain(self.target_by_distance),
        }

    @classmethod
    def names(cls) -> list[str]:
        """The keys of `as_dict`."""
        return list(cls(0.0, 0.0, [], []).as_dict())

    def table(self) -> str:
        """The distance table as text."""
        row = lambda name, cells: f"  {name:<14}" + "".join(f"{cell:>8}" for cell in cells)
        number = lambda cells: ["-" if math.isnan(cell) else f"{cell:.3f}" for cell in cells]
        return "\n".join(
            [
                row("distance k-i", DISTANCE_LABELS),
                row("draft, bits", number(self.draft_by_distance)),
                row("target, bits", number(self.target_by_distance)),
            ]
        )


def make_eval_step(network: SpeculativeNetwork, loss_config: LossConfig, padded: bool = False) -> Callable:
    """The step `(params, tokens [B, D], key) -> sums`, to be jitted by the caller; `padded` as in the train step.

    Whatever windows the loss is trained on, all masked tracks are judged, so that the draft's loss is a bound, at
    `temperature` 1; draft and target are judged at the temperature that they are trained at, on the tokens, whoever
    teaches.
    """
    loss_config = dataclasses.replace(loss_config, window_step=0.0)

    def eval_step(params, tokens_BxD: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        lengths_B = row_lengths(tokens_BxD, network.config.num_tokens) if padded else None
        losses = token_losses(params, network, tokens_BxD, lengths_B, key, loss_config, deterministic=True)
        _, draft, target, num_revealed_B, lengths_B = losses
        _, terms = loss.two_term_loss(draft, target, num_revealed_B, lengths_B, loss_config)
        draft_sums, counts = loss.distance_sums(draft, num_revealed_B, lengths_B)
        target_sums, _ = loss.distance_sums(target, num_revealed_B, lengths_B)
        sums = {"draft_sums": draft_sums, "target_sums": target_sums, "counts": counts}
        return {**terms, **sums, "tokens": jnp.sum(lengths_B)}

    return eval_step


def validate(eval_step: Callable, params, batches: Iterable[jax.Array], key: jax.Array) -> Validation:
    """Averages `eval_step` over batches; a batch weighs as many tokens as it holds.

    Args:
        eval_step: the jitted step.
        params: the parameters to judge.
        batches: tokens `[B, D]` on the devices.
        key: root key; batch `n` has the same orders and masks at every validation.
    """
    key = keys.stream(key, "valid")
    sums = [eval_step(params, batch, jax.random.fold_in(key, jnp.int32(n))) for n, batch in enumerate(batches)]
    if not sums:
        raise ValueError("validation has no whole batch; lower training.eval_batch_size or give more data")
    sums = jax.device_get(sums)
    total = jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *sums)
    # 0 / 0 marks an empty bucket.
    with np.errstate(invalid="ignore"):
        cells = [total[name] / total["counts"] / math.log(2) for name in ("draft_sums", "target_sums")]
    weights = [batch["tokens"] for batch in sums]
    mean = lambda name: float(np.average([batch[name] for batch in sums], weights=weights))
    return Validation(mean("draft_loss"), mean("target_loss"), cells[0].tolist(), cells[1].tolist())
