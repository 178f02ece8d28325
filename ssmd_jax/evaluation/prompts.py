"""Prompts and infilling patterns from text."""

import numpy as np

from ssmd_jax.data.tokenizers import Tokenizer

GAP = "_"


def encode_prompt(
    tokenizer: Tokenizer, length: int, *, prompt: str | None = None, infill: str | None = None, gap: str = GAP
) -> tuple[np.ndarray, np.ndarray] | None:
    """The given tokens of one row.

    What lies behind the text is left to the sampler, up to `length`.

    Args:
        tokenizer: of the model.
        length: tokens of the row, `D`.
        prompt: text that starts the row.
        infill: text with gaps anywhere: every gap symbol stands for one token to fill in. The stretches between gaps
            are tokenised one by one.
        gap: the gap symbol.

    Returns:
        int32 `[D]` tokens (0 where not given) and bool `[D]`, True where given; None with neither prompt nor infill.

    Raises:
        ValueError: if both are given, the text is longer than `length` or holds symbols outside the vocabulary, or
            the gap symbol is not one character.
    """
    if prompt is not None and infill is not None:
        raise ValueError("give either a prompt or an infilling pattern, not both")
    if prompt is None and infill is None:
        return None
    if length < 1:
        raise ValueError(f"length must be a whole number of at least 1, got {length}")
    if len(gap) != 1:
        raise ValueError(f"gap must be one character, got {gap!r}")
    name, stretches = ("prompt", [prompt]) if infill is None else ("infill", infill.split(gap))
    tokens, given = [], []
    for number, stretch in enumerate(stretches):
        if number:
            tokens.append(np.zeros(1, np.int32))
            given.append(np.zeros(1, bool))
        if stretch:
            try:
                tokens.append(tokenizer.encode(stretch, strict=True))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            given.append(np.ones(len(tokens[-1]), bool))
    count = sum(map(len, tokens))
    if count > length:
        raise ValueError(f"{name} has {count} tokens, more than length = {length}; raise length or shorten it")
    rest = length - count
    return (
        np.concatenate([*tokens, np.zeros(rest, np.int32)]).astype(np.int32),
        np.concatenate([*given, np.zeros(rest, bool)]),
    )
