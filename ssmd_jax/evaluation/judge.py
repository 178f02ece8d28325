"""A language model as judge of sampled text: bits per byte, and nats per token of its own (METHOD.md section 7)."""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssmd_jax.evaluation.statistics import Estimate, ratio

DTYPES = ("float32", "bfloat16", "float16")


class Judgement(NamedTuple):
    """What a causal language model thinks of texts.

    Attributes:
        num_texts: judged; empty ones are left out.
        bits_per_byte: of the texts in UTF-8, with its standard error over texts.
        nats_per_token: of the judge's tokens, the "NLL" of the literature.
        tokens_per_text: the judge's, mean.
        truncated: texts of which only the first tokens that the judge can see were judged, bytes and all.
    """

    num_texts: int
    bits_per_byte: Estimate
    nats_per_token: Estimate
    tokens_per_text: float
    truncated: int


class Judge(NamedTuple):
    """A causal language model of `transformers` with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def context(self) -> int:
        """Tokens that it can see at once, the first one for the start apart."""
        return int(getattr(self.model.config, "max_position_embeddings", 1024)) - 1


def load_judge(path: os.PathLike | str, dtype: str = "float32") -> Judge:
    """Loads a judge from disk; nothing is fetched.

    Args:
        path: a folder as `transformers` saves it, or a .gguf file.
        dtype: of its weights and arithmetic, one of `DTYPES`.

    Raises:
        ImportError: without `torch` and `transformers`, which are of the extra `judge`.
        ValueError: where there is no such model, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    path = pathlib.Path(os.path.expanduser(path))
    if not path.exists():
        raise ValueError(f"there is no language model at {path}; give a folder of transformers or a .gguf file")
    try:
        import torch
        import transformers
    except ImportError:
        raise ImportError(
            "a language model as judge needs torch and transformers: pip install ssmd_jax[judge]"
        ) from None
    folder, options = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=getattr(torch, dtype), **options
        )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no causal language model of transformers: {error}") from error
    return Judge(model.eval(), tokenizer)


def judge_texts(
    judge: Judge, texts: Sequence[str], *, batch_size: int = 16, max_tokens: int | None = None
) -> Judgement:
    """Scores every token of every text, the first one from the judge's start token.

    Args:
        judge: from `load_judge`.
        texts: what to judge.
        batch_size: texts computed at a time.
        max_tokens: of a text, at most; None for as many as the judge can see.

    Raises:
        ValueError: where there is no text, or a judge without a start or end token.
    """
    start = judge.tokenizer.bos_token_id
    start = judge.tokenizer.eos_token_id if start is None else start
    if start is None:
        raise ValueError("the judge's tokenizer has neither a start nor an end token to begin a text with")
    most = min(max_tokens or judge.context, judge.context)
    encoded, num_bytes, truncated = [], [], 0
    for text in texts:
        tokens = judge.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) > most:
            tokens, truncated = tokens[:most], truncated + 1
            text = judge.tokenizer.decode(tokens)
        if tokens:
            encoded.append([start, *tokens])
            num_bytes.append(len(text.encode()))
    if not encoded:
        raise ValueError("there is no text to judge")
    # Long texts first: what does not fit into memory fails at once, and batches hold little padding.
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n]))
    nats = np.zeros(len(encoded))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        nats[rows] = _nats(judge.model, [encoded[n] for n in rows])
    num_tokens = np.array([len(tokens) - 1 for tokens in encoded])
    return Judgement(
        num_texts=len(encoded),
        bits_per_byte=ratio(nats / math.log(2), num_bytes),
        nats_per_token=ratio(nats, num_tokens),
        tokens_per_text=float(num_tokens.mean()),
        truncated=truncated,
    )


def _nats(model, rows: list[list[int]]) -> np.ndarray:
    """`-log` probability of each row behind its first token. Padding stands behind, where no token looks."""
    import torch

    longest = max(map(len, rows))
    tokens_BxT = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows])
    mask_BxT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        logits_BxTxV = model(input_ids=tokens_BxT, attention_mask=mask_BxT).logits[:, :-1].float()
        log_prob_BxT = torch.log_softmax(logits_BxTxV, -1).gather(-1, tokens_BxT[:, 1:, None])[..., 0]
        return -(log_prob_BxT * mask_BxT[:, 1:]).sum(-1).double().numpy()


def read_texts(path: os.PathLike | str) -> list[str]:
    """Texts from a file: the "samples" or "texts" of a JSON object, a JSON list, or plain text, one a line.

    Raises:
        ValueError: where there is no such file, or no texts in it.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the texts {path}: {error.strerror}") from None
    try:
        # A program's standard output ends with its JSON.
        found = json.loads(content.strip().splitlines()[-1]) if content.strip() else []
    except ValueError:
        found = [line for line in content.splitlines() if line.strip()]
    if isinstance(found, dict):
        found = next((found[name] for name in ("samples", "texts") if name in found), [])
    texts = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
    if not texts:
        raise ValueError(f"there are no texts in {path}: give JSON with samples, a JSON list, or one text a line")
    return texts


def judge_files(
    path: os.PathLike | str,
    files: Sequence[str],
    *,
    dtype: str,
    batch_size: int,
    max_tokens: int | None,
    count: int | None,
) -> dict[str, Any]:
    """Judges the texts of several files with one judge: what `launch/judge.py` does.

    Args:
        path: of the judge.
        files: each a file that `read_texts` reads.
        dtype: as `load_judge`.
        batch_size: as `judge_texts`.
        max_tokens: as `judge_texts`.
        count: texts of each file, at most; None for all.

    Returns:
        "judge", "dtype", "max_tokens", and "files": path to `Judgement`.

    Raises:
        ValueError, ImportError: as the parts do, before anything is judged.
    """
    texts = {file: read_texts(file)[:count] for file in files}
    judge = load_judge(path, dtype)
    judged = {
        file: judge_texts(judge, found, batch_size=batch_size, max_tokens=max_tokens) for file, found in texts.items()
    }
    return {
        "judge": pathlib.Path(path).name,
        "dtype": dtype,
        "max_tokens": max_tokens or judge.context,
        "files": judged,
    }
