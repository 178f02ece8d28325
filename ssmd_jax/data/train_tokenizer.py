"""Trains a sentencepiece tokenizer on a corpus."""

import io
import random
from collections.abc import Iterable

import sentencepiece

from ssmd_jax.data import tokenizers

# The model learns from at most this many characters: a uniform sample of blocks of the training documents. BPE merges
# are settled long before, and the time to train grows with the sample.
SAMPLE_CHARACTERS = 10_000_000
SAMPLE_BLOCK = 4096


def train_sentencepiece(documents: Iterable[str], vocab_size: int) -> tokenizers.SentencePieceTokenizer:
    """Trains a BPE model with byte fallback; the same documents give the same model.

    Args:
      documents: Training documents, read once; the model learns from a uniform sample of `SAMPLE_CHARACTERS` of them.
      vocab_size: V, with the 256 bytes and the unknown symbol among them.

    Returns:
      The tokenizer.

    Raises:
      ValueError: If the documents are empty, or hold too little text, or too many symbols, for `vocab_size`.
    """
    # Lines, because sentencepiece learns from sentences; a line feed is then always its own byte.
    lines = [line for block in sample_blocks(documents) for line in block.split("\n") if line]
    if not lines:
        raise ValueError("there is no text to train the sentencepiece tokenizer on; check the training data")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * SAMPLE_BLOCK,  # in bytes; a symbol takes up to 4
            minloglevel=2,
        )
    except RuntimeError as error:
        # Its messages read "INTERNAL: file(line) [condition] Sentence. Sentence."
        reason = str(error).rpartition("] ")[2].replace(". ", "; ").strip(" .")
        raise ValueError(f"cannot train a sentencepiece tokenizer with vocab_size={vocab_size}: {reason}") from None
    return tokenizers.SentencePieceTokenizer(model.getvalue())


def sample_blocks(documents: Iterable[str], characters: int = SAMPLE_CHARACTERS) -> list[str]:
    """A uniform sample of blocks of text by a reservoir: one pass, bounded memory, the same at every call."""
    rng = random.Random(0)
    reservoir: list[str] = []
    seen = 0
    for document in documents:
        for start in range(0, len(document), SAMPLE_BLOCK):
            block = tokenizers.without_surrogates(document[start : start + SAMPLE_BLOCK])
            if seen < characters // SAMPLE_BLOCK:
                reservoir.append(block)
            elif (slot := rng.randrange(seen + 1)) < len(reservoir):
                reservoir[slot] = block
            seen += 1
    return reservoir
