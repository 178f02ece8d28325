"""Printable ASCII as tokens, one a character, for small models of our own in the layout of LLaDA."""

import json
import os
import pathlib
from collections.abc import Iterable

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
EOS_ID, MASK_ID = len(ALPHABET), len(ALPHABET) + 1
# A multiple of 8, as fast matrix products want it; the last ids are never used.
VOCAB_SIZE = 104
EOS_SYMBOL, MASK_SYMBOL = "<|endoftext|>", "<|mask|>"
_IDS = {symbol: n for n, symbol in enumerate(ALPHABET)}


def encode(text: str) -> list[int]:
    """Ids of a text.

    Raises:
        ValueError: naming the first character that is not of the alphabet.
    """
    try:
        return [_IDS[symbol] for symbol in text]
    except KeyError as error:
        raise ValueError(f"character {error.args[0]!r} is neither printable ASCII nor a line feed") from None


def decode(ids: Iterable[int]) -> str:
    """The text before the first end; masks and unused ids are left out."""
    kept = []
    for n in map(int, ids):
        if n == EOS_ID:
            break
        if n < EOS_ID:
            kept.append(ALPHABET[n])
    return "".join(kept)


def write_tokenizer(folder: os.PathLike | str) -> None:
    """Writes the same mapping as `transformers` reads it, so that a saved model is decoded like a published one.

    Args:
        folder: must be there.
    """
    specials = {EOS_SYMBOL: EOS_ID, MASK_SYMBOL: MASK_ID}
    added = [
        {"id": n, "content": symbol, "special": True, "normalized": False, "single_word": False}
        | {"lstrip": False, "rstrip": False}
        for symbol, n in specials.items()
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # What is outside the alphabet is read as a question mark: this model type needs an id for it.
        "model": {"type": "WordLevel", "vocab": _IDS | specials, "unk_token": "?"},
    }
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS_SYMBOL, "mask_token": MASK_SYMBOL}
    folder = pathlib.Path(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2), encoding="utf-8")
    fields |= {"pad_token": EOS_SYMBOL, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
