"""Tokenizers of published models, through `transformers`, from a folder on disk."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ssmd_jax.evaluation.reasoning import prompts

# Symbols that end a turn in the chat formats of LLaDA and of Dream.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer of `transformers`.

    Attributes:
        inner: the tokenizer itself.
        eos_id: the network's end of text.
    """

    inner: Any
    eos_id: int

    @property
    def has_chat_template(self) -> bool:
        return bool(self.inner.chat_template)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens behind which nothing belongs to an answer."""
        known = self.inner.get_vocab()
        found = {self.eos_id, self.inner.eos_token_id, *(known.get(symbol) for symbol in TURN_ENDS)}
        return tuple(sorted(found - {None}))

    @property
    def start_id(self) -> int:
        """What an empty context is made of."""
        return self.eos_id if self.inner.bos_token_id is None else self.inner.bos_token_id

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokens of a text.

        Args:
            text: any.
            special: add what the tokenizer puts before a text, unless it is there; what it puts behind is left out.
        """
        start = self.inner.bos_token
        special = special and not (start and text.startswith(start))
        ids = list(self.inner(text, add_special_tokens=special)["input_ids"])
        if special and ids and ids[-1] == self.inner.eos_token_id and not text.endswith(str(self.inner.eos_token)):
            ids.pop()
        return ids

    def chat(self, said: Sequence[prompts.Turn]) -> str:
        """A conversation in the model's format, up to where its answer begins.

        Raises:
            ValueError: without a chat template.
        """
        if not self.has_chat_template:
            raise ValueError("the tokenizer has no chat template: give --nochat for plain text")
        history = [turn._asdict() for turn in said]
        return self.inner.apply_chat_template(history, tokenize=False, add_generation_prompt=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text before the first end, without special symbols; ids that the tokenizer does not have are left out."""
        ends, kept = set(self.ends), []
        for token in map(int, ids):
            if token in ends:
                break
            if token < len(self.inner):
                kept.append(token)
        return self.inner.decode(kept, skip_special_tokens=True)

    def fingerprint(self) -> str:
        """A hash of the vocabulary, the chat template and an encoding: differs where prompts would."""
        parts = [
            sorted(self.inner.get_vocab().items()),
            self.inner.chat_template,
            self.encode("Answer: 1,234 \n\u00e9"),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load(folder: os.PathLike | str, eos_id: int, vocab_size: int, *, trust_remote_code: bool = False) -> ChatTokenizer:
    """The tokenizer of a folder; nothing is fetched.

    Args:
        folder: with the tokenizer's files.
        eos_id: the network's end of text.
        vocab_size: the network's.
        trust_remote_code: run Python code that lies in the folder, which some tokenizers (Dream's) consist of.

    Raises:
        ImportError: without `transformers`.
        ValueError: no tokenizer there, or one with more tokens than the network.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError("tokenizers of published models need transformers: pip install ssmd_jax[reasoning]") from None
    folder = pathlib.Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to read a tokenizer from")
    try:
        inner = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Its loaders raise what they meet, KeyError, TypeError and AttributeError among it.
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"{folder} holds no tokenizer that transformers can read ({first}): give its folder by --tokenizer, "
            "or --trust_remote_code if it brings code of its own"
        ) from error
    if max(inner.get_vocab().values(), default=0) >= vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has tokens up to {max(inner.get_vocab().values())}, the network only "
            f"{vocab_size}: give the tokenizer that it was trained with by --tokenizer"
        )
    return ChatTokenizer(inner, eos_id)


def check_same(drafter: ChatTokenizer, verifier: ChatTokenizer) -> None:
    """Raises `ValueError` unless both give the same tokens to every text."""
    one, other = drafter.inner.get_vocab(), verifier.inner.get_vocab()
    for token in sorted(one.keys() | other.keys()):
        if one.get(token) != other.get(token):
            raise ValueError(
                f"drafter and verifier must have one tokenizer: {token!r} is token {one.get(token)} of the drafter and "
                f"{other.get(token)} of the verifier"
            )
    if drafter.fingerprint() != dataclasses.replace(verifier, eos_id=drafter.eos_id).fingerprint():
        raise ValueError(
            "drafter and verifier must have one tokenizer: theirs have the same tokens, but other chat templates or "
            "ways to cut a text"
        )
