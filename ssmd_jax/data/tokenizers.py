"""Tokenizers: text to ids in [0, V) and back.

The mask id is V = `num_tokens`: it belongs to the model, not to the tokenizer. `decode` shows it as "_", so that a
partly revealed sequence can be printed.

Kinds: "text8" (27 symbols), "bytes" (256), "esm2" (amino acids, with the ids of ESM-2), "sentencepiece" (BPE with byte
fallback, trained on the corpus) and "huggingface" (any `tokenizer.json`, for example GPT-2's).
"""

import abc
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import sentencepiece

MASK_SYMBOL = "_"
KINDS = ("text8", "bytes", "esm2", "sentencepiece", "huggingface")
DESCRIPTION_FILE = "tokenizer.json"


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, num_tokens) and back.

    Attributes:
      kind: The name that `make_tokenizer` knows it by.
      num_tokens: V; the mask id is V.
      separator: Ids that end each document when documents are concatenated, int32 [S].
    """

    kind: ClassVar[str]
    num_tokens: int
    separator: np.ndarray

    @abc.abstractmethod
    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        """Encodes text.

        Args:
          text: Any text.
          strict: Refuse what `decode` would not give back, rather than normalise it: for prompts.

        Returns:
          Ids, int32 [number of tokens].

        Raises:
          ValueError: If `strict` and the text holds symbols outside the vocabulary (the first few are named).
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes several texts, not strictly; int32 arrays in the same order."""
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        """Decodes ids, int [number of tokens]; the mask id V becomes "_".

        Raises:
          ValueError: If an id lies outside [0, V].
        """
        # Of the dtype they have: a whole split may come here at one byte an id.
        ids = np.asarray(ids).reshape(-1)
        ids = ids if ids.dtype.kind in "iu" else ids.astype(np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= self.num_tokens:
            outside = ids[(ids < 0) | (ids > self.num_tokens)]
            raise ValueError(
                f"id {outside[0]} is not of this {self.kind} tokenizer, whose ids are 0 to {self.num_tokens - 1} and "
                f"the mask id {self.num_tokens}; use the tokenizer that the model was trained with"
            )
        # Masks cut the sequence into runs, since the libraries know nothing of the mask id.
        runs = np.split(ids, np.flatnonzero(ids == self.num_tokens))
        return self._decode_run(runs[0]) + "".join(MASK_SYMBOL + self._decode_run(run[1:]) for run in runs[1:])

    def normalize(self, document: str) -> str:
        """The form in which a whole document enters the token stream; the identity unless the kind says otherwise."""
        return document

    def fingerprint(self) -> str:
        """A hash that differs wherever `encode` may differ; caches and checkpoints carry it."""
        digest = hashlib.sha256(self.kind.encode())
        for name, content in sorted(self._files().items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def save(self, directory) -> None:
        """Writes `tokenizer.json` (kind, V, fingerprint) and the model file, where the kind has one."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            _write(directory / name, content)
        description = {"kind": self.kind, "num_tokens": self.num_tokens, "fingerprint": self.fingerprint()}
        # Last, so that a description is never there without its model.
        _write(directory / DESCRIPTION_FILE, json.dumps(description, indent=2).encode())

    @abc.abstractmethod
    def _decode_run(self, ids: np.ndarray) -> str:
        """Decodes ids that all lie in [0, V)."""

    def _files(self) -> dict[str, bytes]:
        """Model files by name: what `save` writes and `fingerprint` hashes."""
        return {}


class Text8Tokenizer(Tokenizer):
    """Space and a to z: ids 0 and 1 to 26.

    The normalisation: lower-case, then every run of anything else (digits, accented letters, line ends) becomes one
    space. Digits are not spelled out, unlike in the script that made text8 itself; text8 is unchanged by either.
    """

    kind = "text8"
    num_tokens = 27
    separator = np.zeros(1, np.int32)

    _ALPHABET = b" abcdefghijklmnopqrstuvwxyz"
    _TO_ID = bytes(max(0, b" abcdefghijklmnopqrstuvwxyz".find(bytes([byte]).lower())) for byte in range(256))
    _TO_BYTE = _ALPHABET.ljust(256)

    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        if strict:
            _refuse(sorted(set(text) - set(self._ALPHABET.decode()), key=text.index), "text8 (a to z and space)")
            return np.frombuffer(text.encode().translate(self._TO_ID), np.uint8).astype(np.int32)
        return self._ids(text).astype(np.int32)

    def normalize(self, document: str) -> str:
        # Stripped, so that the separator between two documents is the only space there.
        return self._decode_run(self._ids(document)).strip(" ")

    def _ids(self, text: str) -> np.ndarray:
        # The table lowers ASCII by itself; str.lower is for the few symbols outside ASCII that lower to a letter.
        data = text.encode() if text.isascii() else text.lower().encode("ascii", "replace")
        ids = np.frombuffer(data.translate(self._TO_ID), np.uint8)
        keep = ids > 0
        keep[1:] |= keep[:-1].copy()  # a space stays where it follows a letter
        keep[:1] = True
        return ids[keep]

    def _decode_run(self, ids: np.ndarray) -> str:
        # Not by indexing, which would widen the ids to eight bytes each.
        return ids.astype(np.uint8, copy=False).tobytes().translate(self._TO_BYTE).decode("ascii")


class ByteTokenizer(Tokenizer):
    """The bytes of the text in UTF-8; documents end with a line feed. Invalid UTF-8 decodes to U+FFFD."""

    kind = "bytes"
    num_tokens = 256
    separator = np.array([10], np.int32)

    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        if strict:
            _refuse([symbol for symbol in text if "\ud800" <= symbol <= "\udfff"], "bytes (UTF-8)")
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)

    def _decode_run(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8, copy=False).tobytes().decode("utf-8", "replace")


class AminoAcidTokenizer(Tokenizer):
    """Amino acids with the ids of ESM-2; sequences end with `<eos>`, and the mask id is ESM-2's, 32.

    Ids 4 to 23 are the 20 standard amino acids, 24 to 30 are X, B, U, Z, O and two gaps. Special tokens are written as
    in `<cls>MKV<eos>`; lower-case letters are made upper-case, and what is no symbol becomes `<unk>`.
    """

    kind = "esm2"
    SYMBOLS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>")
    UNKNOWN = SYMBOLS.index("<unk>")
    num_tokens = len(SYMBOLS)
    separator = np.array([SYMBOLS.index("<eos>")], np.int32)

    _IDS: ClassVar[dict[str, int]] = {symbol: n for n, symbol in enumerate(SYMBOLS)}
    _SPLIT = re.compile("|".join(map(re.escape, (s for s in SYMBOLS if len(s) > 1))) + "|.", re.DOTALL)

    _OF_BYTE = np.full(256, UNKNOWN, np.int32)
    for _id, _symbol in enumerate(SYMBOLS):
        if len(_symbol) == 1:
            _OF_BYTE[[ord(_symbol), ord(_symbol.lower())]] = _id

    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        if not strict and "<" not in text:
            # Whole corpora come this way: a look-up by byte.
            return self._OF_BYTE[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        symbols = self._SPLIT.findall(text) if "<" in text else list(text)
        if strict:
            _refuse([s for s in symbols if s not in self._IDS], "esm2 (amino acids, upper-case)")
        # Not the whole text, which holds the special tokens' names.
        ids = [self._IDS.get(s, self._IDS.get(s.upper(), self.UNKNOWN)) for s in symbols]
        return np.array(ids, np.int32)

    def normalize(self, document: str) -> str:
        return "".join(document.split())

    def _decode_run(self, ids: np.ndarray) -> str:
        return "".join(self.SYMBOLS[n] for n in ids.tolist())


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model; documents end with a line feed.

    White space survives, line feeds being bytes of their own; only U+2581, which sentencepiece uses for the space,
    comes back as a space.
    """

    kind = "sentencepiece"
    MODEL_FILE = "sentencepiece.model"

    def __init__(self, model: bytes):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(
                "the file is no sentencepiece model; give the .model file that its trainer wrote"
            ) from None
        self._model = model
        self.num_tokens = self._processor.vocab_size()
        self.separator = self.encode("\n")

    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        ids = np.array(self._processor.encode(without_surrogates(text)), np.int32)
        if strict and self._decode_run(ids) != text:
            symbols = [
                s for s in dict.fromkeys(text) if self._decode_run(self._processor.encode(without_surrogates(s))) != s
            ]
            _refuse(symbols, f"this sentencepiece model ({self.num_tokens} pieces)")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        pieces = self._processor.encode([without_surrogates(text) for text in texts], num_threads=os.cpu_count())
        return [np.array(ids, np.int32) for ids in pieces]

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._processor.decode(np.asarray(ids).tolist())

    def _files(self) -> dict[str, bytes]:
        return {self.MODEL_FILE: self._model}


class HuggingFaceTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`; documents end with its end-of-text token, or a line feed where it has none."""

    kind = "huggingface"
    MODEL_FILE = "huggingface.json"
    _END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

    def __init__(self, model: bytes):
        try:
            import tokenizers
        except ImportError:
            raise ValueError(
                'the "huggingface" tokenizer needs the package tokenizers: pip install "ssmd_jax[formats]"'
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception:  # the package raises bare Exception
            raise ValueError("the file is no Hugging Face tokenizer.json; give the one from the model's page") from None
        # A file may ask for both; a corpus wants neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._model = model
        vocabulary = self._tokenizer.get_vocab()
        # Not the number of entries: ids may have holes.
        self.num_tokens = max(vocabulary.values()) + 1
        ends = [vocabulary[token] for token in self._END_OF_TEXT if token in vocabulary]
        self.separator = np.array(ends[:1], np.int32) if ends else self.encode("\n")

    def encode(self, text: str, strict: bool = False) -> np.ndarray:
        encoding = self._tokenizer.encode(without_surrogates(text), add_special_tokens=False)
        if strict:
            unknown = getattr(self._tokenizer.model, "unk_token", None)
            symbols = [text[a:b] for (a, b), t in zip(encoding.offsets, encoding.tokens, strict=True) if t == unknown]
            symbols += [s for s in text if s != without_surrogates(s)]
            _refuse(symbols, f"this tokenizer.json ({self.num_tokens} tokens)")
        return np.array(encoding.ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = [without_surrogates(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def _files(self) -> dict[str, bytes]:
        return {self.MODEL_FILE: self._model}


_CLASSES = {
    c.kind: c for c in (Text8Tokenizer, ByteTokenizer, AminoAcidTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}


def make_tokenizer(name: str, path=None) -> Tokenizer:
    """Makes a tokenizer by name.

    Args:
      name: One of `KINDS`.
      path: The model file of "sentencepiece" or "huggingface"; the others take none.

    Raises:
      ValueError: If the name is unknown, or the path is missing, not wanted, or no such model.
      FileNotFoundError: If there is no file at the path.
    """
    if name not in _CLASSES:
        raise ValueError(f'unknown tokenizer "{name}"; choose one of {", ".join(KINDS)}')
    has_model = hasattr(_CLASSES[name], "MODEL_FILE")
    if has_model != (path is not None):
        raise ValueError(f'the tokenizer "{name}" {"needs the path of its model" if has_model else "takes no path"}')
    if not has_model:
        return _CLASSES[name]()
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no {name} tokenizer at {path}; give the path of its model file")
    try:
        return _CLASSES[name](pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"cannot read the tokenizer {path}: {error}") from None


def load_tokenizer(directory) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
      FileNotFoundError: If the directory holds no tokenizer.
      ValueError: If the files were damaged, or exchanged, since.
    """
    directory = pathlib.Path(directory)
    if not (directory / DESCRIPTION_FILE).is_file():
        raise FileNotFoundError(f"there is no tokenizer in {directory}: {DESCRIPTION_FILE} is missing")
    damaged = f"the tokenizer in {directory} is damaged; copy the folder again from where it was trained"
    try:
        description = json.loads((directory / DESCRIPTION_FILE).read_text())
        kind, fingerprint = description["kind"], description["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(damaged) from None
    model_file = getattr(_CLASSES.get(kind), "MODEL_FILE", None)
    tokenizer = make_tokenizer(kind, directory / model_file if model_file else None)
    if tokenizer.fingerprint() != fingerprint:
        raise ValueError(damaged)
    return tokenizer


def _refuse(symbols: Sequence[str], vocabulary: str) -> None:
    if symbols:
        named = ", ".join(map(repr, list(dict.fromkeys(symbols))[:5]))
        raise ValueError(f"the text holds {named}, outside the vocabulary of {vocabulary}; remove or replace them")


def without_surrogates(text: str) -> str:
    """Lone surrogates, which no UTF-8 library takes, become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _write(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
