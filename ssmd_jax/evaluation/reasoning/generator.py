"""Answers to many prompts: batches of like lengths, each row as if it were alone."""

import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssmd_jax.evaluation.reasoning import decoders, tokenizer
from ssmd_jax.evaluation.reasoning.tokenizer import ChatTokenizer
from ssmd_jax.model import pretrained
from ssmd_jax.sampling.dual import decode, dualdiffusion, state
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig

# Of a file of weights, so many pieces of so many bytes enter its fingerprint.
PIECES, PIECE_BYTES = 16, 2**16


@dataclasses.dataclass(frozen=True)
class Generator:
    """Networks, their tokenizer and a decoder.

    Attributes:
        model: what decodes; under `DualConfig` the verifier. Satisfies `sampling.dual.interface.MaskedModel`.
        drafter: another network that drafts under `DualConfig`; None for `model` itself.
        tokenizer: see `ChatTokenizer`; None where prompts and answers are tokens.
        config: of the decoder.
        batch_size: rows computed at a time.
        pad_to: prompts are padded to multiples of so many tokens, each of which is compiled once.
    """

    model: Any
    drafter: Any | None
    tokenizer: ChatTokenizer | None
    config: DecodeConfig | DualConfig
    batch_size: int = 8
    pad_to: int = 64

    def __post_init__(self):
        for name in ("batch_size", "pad_to"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that can be answered."""
        models = [self.model] if self.drafter is None else [self.model, self.drafter]
        return min(model.max_length for model in models) - decoders.drafting_of(self.config).gen_length


class Generated(NamedTuple):
    """What became of a prompt.

    Attributes:
        tokens: int32 `[G]`.
        counts: the counts of `sampling.dual.state.Result` for this row, by name, `num_tokens` among them.
        seconds: its share of the time of its batch, compilation apart.
    """

    tokens: np.ndarray
    counts: dict[str, int]
    seconds: float


def load(
    model: str,
    verifier: str | None = None,
    *,
    sampler: str,
    sampler_args: Mapping[str, Any],
    tokenizer_folder: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    pad_to: int = 64,
) -> Generator:
    """A generator from folders of published weights.

    Args:
        model: the network that decodes, and the one that drafts where there is a verifier.
        verifier: another network for "dualdiffusion"; None to verify by `model` itself.
        sampler, sampler_args: see `decoders.make`.
        tokenizer_folder: None for `model`'s own; where given, it is the verifier's, too.
        trust_remote_code: see `tokenizer.load`.
        dtype: of parameters and computation.
        batch_size, pad_to: see `Generator`.

    Raises:
        ImportError: without `transformers`.
        ValueError: one sentence, before weights are read where it can be.
    """
    if verifier is not None and sampler != decoders.DUAL:
        raise ValueError(f"sampler {sampler} has no verifier: give --sampler={decoders.DUAL}, or no --verifier")
    last = model if verifier is None else verifier
    configs = {folder: pretrained.read_config(folder, dtype) for folder in dict.fromkeys((model, last))}
    read = [
        tokenizer.load(
            tokenizer_folder or folder, config.eos_id, config.vocab_size, trust_remote_code=trust_remote_code
        )
        for folder, config in configs.items()
    ]
    tokenizer.check_same(read[0], read[-1])
    made = decoders.make(sampler, sampler_args, configs[last].eos_id, read[-1].ends)
    networks = [pretrained.load(folder, config=config) for folder, config in configs.items()]
    drafter = networks[0] if len(networks) > 1 else None
    return Generator(networks[-1], drafter, read[-1], made, batch_size, pad_to)


def fingerprint(folder: os.PathLike | str) -> str:
    """A hash of a model's configuration and of samples of its weights; differs for another checkpoint of one shape."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(folder).glob("*")):
        if path.name != "config.json" and path.suffix != ".safetensors":
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in np.linspace(0, max(size - PIECE_BYTES, 0), PIECES).astype(np.int64):
                file.seek(int(start))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def check_length(generator: Generator, prompt: Sequence[int], name: str) -> None:
    """Raises `ValueError` where prompt and answer are more than the network can hold."""
    if len(prompt) > generator.longest_prompt:
        gen_length = decoders.drafting_of(generator.config).gen_length
        raise ValueError(
            f"the prompt of {name} has {len(prompt)} tokens, and with gen_length {gen_length} that is more than the "
            f"{generator.longest_prompt + gen_length} that the network can hold: give fewer examples or a smaller "
            "gen_length"
        )


def key_of(seed: int, name: str) -> jax.Array:
    """The key of a prompt, whatever is asked beside it."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return jax.random.fold_in(jax.random.key(seed), np.uint32(number))


def plan(lengths: Sequence[int], batch_size: int, pad_to: int, longest: int) -> list[tuple[int, list[int]]]:
    """Batches: what their prompts are padded to, and their places in `lengths`; the longest come first.

    What does not fit into memory then fails at once, few lengths are compiled, and the last batch alone may be partial.
    """
    padded = [min(-(-max(length, 1) // pad_to) * pad_to, longest) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda n: -padded[n])
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [(padded[places[0]], places) for places in batches]


def generate(
    generator: Generator, prompts: Sequence[Sequence[int]], keys: Sequence[jax.Array]
) -> Iterator[list[tuple[int, Generated]]]:
    """Answers prompts, batch by batch.

    Args:
        generator: networks, tokenizer, decoder.
        prompts: token ids, each no longer than `generator.longest_prompt`.
        keys: one for each prompt. With it and its prompt alone an answer is determined.

    Yields:
        For each batch the places of its prompts and what became of them.
    """
    compiled = set()
    for length, places in plan(
        list(map(len, prompts)), generator.batch_size, generator.pad_to, generator.longest_prompt
    ):
        # Every batch has the same number of rows, so that one program does for all.
        filled = places + places[-1:] * (generator.batch_size - len(places))
        rows, row_keys = [prompts[n] for n in filled], jax.numpy.stack([keys[n] for n in filled])
        # Without any padding there is no mask, which is another program.
        program = (length, all(len(row) == length for row in rows))
        if program not in compiled:
            # The budget is an argument of the program: a run on the least budget compiles it.
            drafting = decoders.drafting_of(generator.config)
            least = decoders.with_drafting(generator.config, budget=drafting.num_blocks * drafting.cost)
            _sample(generator, least, rows, row_keys, length)
            compiled.add(program)
        start = time.perf_counter()
        result = _sample(generator, generator.config, rows, row_keys, length)
        seconds = (time.perf_counter() - start) / len(places)
        names = ("num_tokens", *state.COUNTS)
        yield [
            (n, Generated(result.tokens[row], {name: int(getattr(result, name)[row]) for name in names}, seconds))
            for row, n in enumerate(places)
        ]


def _sample(generator: Generator, config, rows, row_keys, length: int) -> state.Result:
    if isinstance(config, DualConfig):
        result = dualdiffusion.sample(
            generator.model, row_keys, config, rows, drafter=generator.drafter, prompt_length=length
        )
    else:
        result = decode.sample(generator.model, row_keys, config, rows, prompt_length=length)
    return jax.device_get(result)
