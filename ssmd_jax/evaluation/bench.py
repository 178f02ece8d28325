"""Samplers side by side: quality, function evaluations and seconds (METHOD.md sections 7 and 8)."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.evaluation import operations, text
from ssmd_jax.evaluation.acceptance import Acceptance, acceptance
from ssmd_jax.evaluation.settings import WINDOWED, Setting
from ssmd_jax.evaluation.statistics import Estimate, mean
from ssmd_jax.sampling import registry
from ssmd_jax.sampling.canvas import SampleResult
from ssmd_jax.sampling.sizes import even_sizes


class Row(NamedTuple):
    """What a table shows of one setting.

    Attributes:
        sampler: its name.
        setting: its label.
        num_samples: samples judged.
        nfe: function evaluations a sample; a pass of the plain sampler or of a policy counts as `trunk_cost`.
        passes: trunk passes a sample.
        rounds: verify rounds a sample, or what the sampler counts as such.
        batch_size: rows of a batch.
        seconds_per_batch: wall clock of one batch, compilation apart.
        seconds_per_sample: the same over `batch_size`.
        spelling: share of correctly spelled words; nan without a word list.
        unigram_entropy: nats.
        bigram_entropy: nats.
        acceptance: share of the verified drafts that were accepted; nan where nothing is verified.
        gflop: operations a sample, in 1e9, as `operations.gflop`; nan where they are not counted.
    """

    sampler: str
    setting: str
    num_samples: int
    nfe: Estimate
    passes: float
    rounds: float
    batch_size: int
    seconds_per_batch: float
    seconds_per_sample: float
    spelling: Estimate
    unigram_entropy: float
    bigram_entropy: float
    acceptance: float
    gflop: float = math.nan


class Drawn(NamedTuple):
    """Samples of one setting, on the host, and the mean seconds that a batch took."""

    result: SampleResult
    seconds_per_batch: float


def draw(
    model,
    setting: Setting,
    key: jax.Array,
    *,
    length: int,
    num_samples: int,
    batch_size: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
    num_widths: int = 1,
) -> Drawn:
    """Draws samples in batches of one shape, or of a few, and times them.

    Before the clock starts one batch runs with all tokens but one given: that compiles the program, and runs each of
    its parts once. Sample `n` has the key `fold_in(key, n)`, whatever the batch size.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        setting: sampler and configuration.
        key: a typed key.
        length: tokens a sample.
        num_samples: how many.
        batch_size: rows of a batch; at most `num_samples` are used. Batches are filled up with rows that are timed, and
            then dropped.
        prompt: int `[length]`, the same for all samples, or `[num_samples, length]`.
        prompt_mask: bool of the same shape, True where `prompt` gives the token.
        lengths: int `[num_samples]`, tokens of each sample; None for `length` everywhere. Then every batch runs once
            before the clock starts: the largest window, which decides what is compiled, is that of its longest row.
        num_widths: with `lengths`, batches hold samples of neighbouring lengths, padded to the next multiple of
            `length / num_widths`: less padding is computed, and more is compiled.

    Returns:
        `Drawn`.

    Raises:
        ValueError: for numbers below 1, or as the samplers do.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size), ("num_widths", num_widths)):
        if value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    batch_size = min(batch_size, num_samples)
    num_batches = -(-num_samples // batch_size)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(np.arange(num_batches * batch_size))
    nothing = (np.zeros(length, np.int32), np.zeros(length, bool))
    tokens_NxD, given_NxD = (
        np.resize(np.broadcast_to(x, (num_samples, length)), (num_batches * batch_size, length))
        for x in (nothing if prompt is None else (prompt, prompt_mask))
    )
    lengths_N = np.resize(length if lengths is None else lengths, num_batches * batch_size)
    by_length_N = np.argsort(lengths_N, kind="stable") if num_widths > 1 else np.arange(len(lengths_N))

    sample = registry.sample_of(setting.sampler)
    extra = {} if setting.critic is None else {"critic": setting.critic}

    def batch(n: int, given_NxD) -> SampleResult:
        rows = by_length_N[n * batch_size : (n + 1) * batch_size]
        longest = lengths_N[rows].max()
        # What is longer than `length` the sampler refuses.
        width = next((width for width in even_sizes(length, num_widths) if width >= longest), length)
        return sample(
            model,
            keys[rows],
            setting.config,
            batch_size=batch_size,
            length=width,
            prompt=tokens_NxD[rows, :width],
            prompt_mask=given_NxD[rows, :width] & (np.arange(width)[None] < lengths_N[rows, None]),
            lengths=lengths_N[rows],
            **extra,
        )

    for n in range(1 if lengths is None else num_batches):
        jax.block_until_ready(batch(n, np.broadcast_to(np.arange(length) > 0, given_NxD.shape)))
    results, began = [], time.perf_counter()
    for n in range(num_batches):
        results.append(jax.block_until_ready(batch(n, given_NxD)))
    seconds = (time.perf_counter() - began) / num_batches
    found = [_widened(result, length, model.num_tokens) for result in jax.device_get(results)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    wanted = np.argsort(by_length_N)[:num_samples]
    one_a_sample = {name: value[wanted] for name, value in vars(joined).items() if name != "rows_computed"}
    return Drawn(joined.replace(**one_a_sample), seconds)


def _widened(result: SampleResult, length: int, mask_id: int) -> SampleResult:
    """The same samples with padding up to `length`."""
    more = ((0, 0), (0, length - result.tokens.shape[1]))
    padding = np.broadcast_to(np.arange(result.tokens.shape[1], length), (len(result.tokens), more[1][1]))
    return result.replace(
        order=np.concatenate([result.order, padding.astype(result.order.dtype)], axis=1),
        **{name: np.pad(getattr(result, name), more) for name in ("status", "revealed_in", "settled_in")},
        **{name: np.pad(getattr(result, name), more, constant_values=mask_id) for name in ("tokens", "rejected_token")},
    )


def measure(
    drawn: Drawn, setting: Setting, tokenizer: Tokenizer, *, batch_size: int, words: frozenset[str] | None = None
) -> Row:
    """The figures of one setting's samples.

    Args:
        drawn: from `draw`.
        setting: that they were drawn with.
        tokenizer: of the model.
        batch_size: as passed to `draw`.
        words: known words; None for no spelling accuracy.

    Returns:
        A `Row`.
    """
    result = drawn.result
    num_samples = len(result.tokens)
    batch_size = min(batch_size, num_samples)
    verified = int(result.accepted.sum() + result.rejected.sum())
    texts = [tokenizer.decode(row) for row in result.tokens] if words is not None else []
    return Row(
        sampler=setting.sampler,
        setting=setting.label,
        num_samples=num_samples,
        nfe=mean(result.nfe),
        passes=float(result.trunk_passes.mean()),
        rounds=float(result.verify_rounds.mean()),
        batch_size=batch_size,
        seconds_per_batch=drawn.seconds_per_batch,
        seconds_per_sample=drawn.seconds_per_batch / batch_size,
        spelling=text.spelling_accuracy(texts, words) if words is not None else Estimate(math.nan, math.nan),
        unigram_entropy=text.unigram_entropy(result.tokens),
        bigram_entropy=text.bigram_entropy(result.tokens),
        acceptance=float(result.accepted.sum()) / verified if verified else math.nan,
    )


class Comparison(NamedTuple):
    """One setting of a comparison.

    Attributes:
        row: its figures.
        along: acceptance and NFE by fraction revealed; None for samplers other than "plain" and "speculative".
        tokens: int `[num_samples, length]`, the samples.
    """

    row: Row
    along: Acceptance | None
    tokens: np.ndarray


def compare(
    model,
    tokenizer: Tokenizer,
    settings: Sequence[Setting],
    key: jax.Array,
    *,
    length: int,
    num_samples: int,
    batch_size: int,
    words: frozenset[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Comparison]:
    """Draws samples with every setting, and judges them.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokenizer: of the model.
        settings: samplers and configurations.
        key: a typed key, the same for every setting.
        length: tokens a sample.
        num_samples: samples a setting.
        batch_size: rows of a batch.
        words: known words; None for no spelling accuracy.
        progress: told of every setting when it is done.

    Returns:
        One `Comparison` a setting.
    """
    comparisons = []
    for setting in settings:
        drawn = draw(model, setting, key, length=length, num_samples=num_samples, batch_size=batch_size)
        row = measure(drawn, setting, tokenizer, batch_size=batch_size, words=words)
        if hasattr(model, "config"):
            row = row._replace(gflop=operations.gflop(model.config, setting, drawn.result))
        verify_cost = model.verify_cost if setting.sampler == "speculative" else 0.0
        known = setting.sampler in WINDOWED
        along = acceptance(drawn.result, model.trunk_cost, verify_cost) if known else None
        comparisons.append(Comparison(row, along, drawn.result.tokens))
        if progress is not None:
            progress(f"{row.sampler} {row.setting}: {row.nfe.value:.1f} NFE, {row.seconds_per_batch:.2f} s a batch")
    return comparisons
