"""Checks what a user passes, and lays out rows: prompts padded on their left, so that what follows them is aligned."""

from collections.abc import Sequence

import flax
import jax
import numpy as np

from ssmd_jax.sampling import keys


@flax.struct.dataclass
class Rows:
    """What each row is given.

    Attributes:
        keys_B: the rows' keys.
        prompt_BxP: int32, padded on the left with a token that is not the mask.
        is_prompt_BxP: bool, False at padding; None where no row has any.
    """

    keys_B: jax.Array
    prompt_BxP: jax.Array
    is_prompt_BxP: jax.Array | None


def rows_of(model, key: jax.Array, prompts: Sequence, gen_length: int, prompt_length: int | None) -> Rows:
    """The rows of a batch.

    Args:
        model: satisfies `MaskedModel`.
        key: one key, or one for each row.
        prompts: token ids, a sequence for each row, of any lengths.
        gen_length: tokens to generate.
        prompt_length: what prompts are padded to; None for the longest. Another one compiles the loop anew.

    Raises:
        ValueError: one sentence that names the argument.
    """
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise ValueError("prompts must hold at least one prompt")
    for index, row in enumerate(rows):
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(f"prompt {index} must be a sequence of token ids, got {row.dtype} of shape {row.shape}")
        if model.shifts and not row.size:
            raise ValueError(f"prompt {index} is empty: the first token of this network is predicted by the one before")
        bad = row[(row < 0) | (row >= model.vocab_size)]
        if bad.size:
            raise ValueError(f"prompt {index} has token {bad[0]}, outside the vocabulary 0..{model.vocab_size - 1}")
        if (row == model.mask_id).any():
            raise ValueError(f"prompt {index} has the mask token {model.mask_id}: prompts must be known text")
    longest = max(row.size for row in rows)
    length = longest if prompt_length is None else prompt_length
    if isinstance(length, bool) or not isinstance(length, int | np.integer):
        raise ValueError(f"prompt_length must be a whole number, got {length!r}")
    if longest > length:
        raise ValueError(f"a prompt has {longest} tokens, more than prompt_length {length}")
    if length + gen_length > model.max_length:
        raise ValueError(
            f"prompts of {length} tokens and gen_length {gen_length} make {length + gen_length}, more than the "
            f"{model.max_length} that the model can hold"
        )
    filler = 0 if model.mask_id else 1
    prompt_BxP = np.full((len(rows), length), filler, np.int32)
    for padded_P, row in zip(prompt_BxP, rows, strict=True):
        padded_P[length - row.size :] = row
    is_prompt_BxP = np.arange(length)[None] >= length - np.array([row.size for row in rows])[:, None]
    row_keys = keys.row_keys(key, len(rows), "prompts")
    return Rows(row_keys, prompt_BxP, None if is_prompt_BxP.all() else is_prompt_BxP)
