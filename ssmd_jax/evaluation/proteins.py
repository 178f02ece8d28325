"""Judges of generated proteins, each beside the same figure for held-out natural and for shuffled sequences.

A figure by itself says little: the share with a Pfam hit has a ceiling that is not 1, and the divergence of few
sequences is not 0. So all are taken on three sets of the same size: the samples, held-out natural proteins, and those
with their letters shuffled, which keep lengths and composition and nothing else.
"""

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ssmd_jax
from ssmd_jax.data import fasta, sources
from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.evaluation import protein_tools
from ssmd_jax.evaluation.statistics import Estimate, mean, to_json
from ssmd_jax.training.terminal import say

LETTERS = fasta.AMINO_ACIDS
WORD = 3
# Each width that rows of proteins are padded to is compiled once; all of one width would be half padding.
WIDTH_STEP = 64


class Judged(NamedTuple):
    """The figures of one set of sequences; None where the judge was not asked for.

    Attributes:
        name: of the set.
        num_sequences: how many.
        mean_length: letters.
        composition_divergence: of the letters' frequencies from those of the reference, bits (Jensen-Shannon).
        word_divergence: the same of words of three letters. It tells gross faults alone: natural sequences repeat
            themselves and come in families, so that shuffled ones have a smaller one.
        letter_entropy: of the letters of one sequence, bits, the mean over sequences: what a sampler that is too sure
            of itself lowers, as a lower temperature does.
        pfam: share with a Pfam hit.
        novelty: 1 - identity to the nearest protein of the reference, over the length of the sequence.
        unknown: share without any alignment to the reference.
        diversity: clusters over sequences, at 50 % identity.
        pseudo_perplexity: exp of the mean negative log likelihood of single letters, all others given; its standard
            error by the delta method.
        plddt: mean confidence of ESMFold, 0 to 100.
    """

    name: str
    num_sequences: int
    mean_length: float
    composition_divergence: float
    word_divergence: float
    letter_entropy: Estimate
    pfam: Estimate | None = None
    novelty: Estimate | None = None
    unknown: Estimate | None = None
    diversity: float | None = None
    pseudo_perplexity: Estimate | None = None
    plddt: Estimate | None = None


def shuffled(sequences: Sequence[str], seed: int = 0) -> list[str]:
    """Each sequence with its letters in random order."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.permutation(list(sequence))) for sequence in sequences]


def word_counts(sequences: Sequence[str], size: int) -> np.ndarray:
    """How often each word of `size` neighbouring letters occurs, int64 `[20 ** size]`; other letters end a word."""
    index = np.full(256, -1, np.int64)
    index[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
    # One long text, in which no word spans the letter between two sequences.
    letters_N = index[np.frombuffer("-".join(sequences).encode("ascii", "replace"), np.uint8)]
    count = max(0, len(letters_N) - size + 1)
    words_N, is_word_N = np.zeros(count, np.int64), np.ones(count, bool)
    for offset in range(size):
        part_N = letters_N[offset : offset + count]
        words_N = words_N * len(LETTERS) + part_N
        is_word_N &= part_N >= 0
    return np.bincount(words_N[is_word_N], minlength=len(LETTERS) ** size)


def letter_entropies(sequences: Sequence[str]) -> np.ndarray:
    """Entropy of each sequence's own letters, bits, float64 `[N]`; other letters than the 20 are left out."""
    counts_Nx20 = np.array([word_counts([sequence], 1) for sequence in sequences], np.float64)
    share_Nx20 = counts_Nx20 / counts_Nx20.sum(axis=1, keepdims=True)
    return -np.sum(share_Nx20 * np.log2(np.where(share_Nx20 > 0, share_Nx20, 1.0)), axis=1)


def divergence(counts_W: np.ndarray, other_W: np.ndarray) -> float:
    """Jensen-Shannon divergence of two frequency tables, bits, 0 to 1; nan where one is empty.

    Few counts give too large a value: compare sets of the same size.
    """
    if not counts_W.sum() or not other_W.sum():
        return math.nan
    p_W, q_W = counts_W / counts_W.sum(), other_W / other_W.sum()
    middle_W = (p_W + q_W) / 2
    part = lambda x_W: float(np.sum(x_W[x_W > 0] * np.log2(x_W[x_W > 0] / middle_W[x_W > 0])))
    return (part(p_W) + part(q_W)) / 2


@jax.jit
def _last_nll(model, tokens_BxD, positions_BxD, lengths_B):
    """Nats of the last track of each row, all others given, `[B]`."""
    context = model.trunk(tokens_BxD, positions_BxD, lengths_B - 1, lengths_B)
    logits_BxV = model.draft_logits(context, lengths_B - 1, 1)[:, 0]
    last_Bx1 = jnp.take_along_axis(tokens_BxD, lengths_B[:, None] - 1, axis=1)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), last_Bx1, axis=1)[:, 0]


def pseudo_nll(
    model,
    tokenizer: Tokenizer,
    sequences: Sequence[str],
    *,
    positions: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Mean negative log likelihood of single letters under the trunk, all others of the sequence given.

    Rows of like lengths are computed together, padded to a multiple of `WIDTH_STEP`.

    Letters outside the alphabet, such as the X of natural proteins, are given and never judged: no model draws them.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        tokenizer: of the model.
        sequences: amino acids, at least one of the alphabet in each.
        positions: letters of each sequence that are judged, drawn with replacement: the mean is that of all.
        batch_size: rows computed at a time.
        seed: of the positions.

    Returns:
        float64 nats `[N]`.
    """
    rng = np.random.default_rng(seed)
    known = [np.flatnonzero([letter in LETTERS for letter in sequence]) for sequence in sequences]
    rows = [(n, k[which]) for n, k in enumerate(known) for which in rng.integers(0, len(k), positions)]
    ids = [tokenizer.encode(sequence) for sequence in sequences]
    by_length = np.argsort([len(ids[n]) for n, _ in rows], kind="stable")
    nll = []
    for first in range(0, len(rows), batch_size):
        part = [rows[row] for row in by_length[first : first + batch_size]]
        longest = -(-len(ids[part[-1][0]]) // WIDTH_STEP) * WIDTH_STEP
        part = part + [part[-1]] * (batch_size - len(part))  # one shape
        tokens_BxD = np.full((batch_size, longest), model.num_tokens, np.int32)
        positions_BxD = np.broadcast_to(np.arange(longest), (batch_size, longest)).copy()
        for row, (n, position) in enumerate(part):
            # The letter that is judged comes last in the order.
            order = np.r_[np.delete(np.arange(len(ids[n])), position), position]
            tokens_BxD[row, : len(order)], positions_BxD[row, : len(order)] = ids[n][order], order
        lengths_B = np.array([len(ids[n]) for n, _ in part], np.int32)
        nll.append(_last_nll(model, tokens_BxD, positions_BxD.astype(np.int32), jnp.asarray(lengths_B)))
    nll_R = np.empty(len(rows))
    nll_R[by_length] = np.concatenate(jax.device_get(nll))[: len(rows)]
    return nll_R.reshape(len(sequences), positions).mean(axis=1)


def perplexity(nll_N: np.ndarray) -> Estimate:
    """`exp` of a mean of nats, its standard error by the delta method."""
    value, error = mean(nll_N)
    return Estimate(math.exp(value), math.exp(value) * error)


def judge(
    sets: dict[str, Sequence[str]],
    reference: os.PathLike | str,
    *,
    profiles: os.PathLike | str | None = None,
    mmseqs: str | None = None,
    esmfold: os.PathLike | str | None = None,
    model=None,
    tokenizer: Tokenizer | None = None,
    positions: int = 8,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Judged]:
    """Judges sets of sequences by all that is there to judge them.

    Args:
        sets: sequences by the name of their set.
        reference: FASTA of natural proteins, the training split; read as a stream.
        profiles: HMMER profiles; None for no Pfam hits.
        mmseqs: program of MMseqs2; None for no novelty and diversity.
        esmfold: folder of ESMFold; None for no pLDDT.
        model, tokenizer: of the trunk; None for no pseudo-perplexity.
        positions, seed: as in `pseudo_nll`.
        progress: told of every set when it is done.

    Raises:
        ValueError: for an empty set or sequence, or a judge that is missing, before any work; where one fails.
        FileNotFoundError: where the reference is.
    """
    for name, sequences in sets.items():
        if not sequences or not all(sequences):
            raise ValueError(f"the set {name} holds {'an empty sequence' if sequences else 'no sequences'}")
        if not all(set(sequence) & set(LETTERS) for sequence in sequences):
            raise ValueError(f"the set {name} holds a sequence without any of the letters {LETTERS}")
    if profiles is not None:
        protein_tools.find_profiles(profiles)
    if mmseqs is not None:
        protein_tools.find_mmseqs(mmseqs)
    # Last, since it takes a while, and once for all sets.
    folding = None if esmfold is None else protein_tools.load_esmfold(esmfold)
    natural = [np.zeros(len(LETTERS) ** size, np.int64) for size in (1, WORD)]
    batch = []
    for _, sequence in sources.read_sequences(os.fspath(reference)):
        batch.append(sequence)
        if len(batch) == 10_000:
            natural, batch = _added(natural, batch), []
    natural = _added(natural, batch)
    judged = []
    for name, sequences in sets.items():
        figures: dict[str, Any] = {}
        if profiles is not None:
            figures["pfam"] = mean(protein_tools.pfam_hits(sequences, profiles))
        if mmseqs is not None:
            targets = (sequence for _, sequence in sources.read_sequences(os.fspath(reference)))
            nearest = protein_tools.nearest(sequences, targets, mmseqs)
            figures["novelty"], figures["unknown"] = mean(1.0 - nearest.identity_N), mean(~nearest.is_found_N)
            figures["diversity"] = protein_tools.count_clusters(sequences, mmseqs) / len(sequences)
        if model is not None:
            nll_N = pseudo_nll(model, tokenizer, sequences, positions=positions, seed=seed)
            figures["pseudo_perplexity"] = perplexity(nll_N)
        if folding is not None:
            figures["plddt"] = mean(protein_tools.mean_plddt(sequences, folding, progress))
        divergences = [divergence(word_counts(sequences, s), n) for s, n in zip((1, WORD), natural, strict=True)]
        length = float(np.mean([len(sequence) for sequence in sequences]))
        entropy = mean(letter_entropies(sequences))
        judged.append(Judged(name, len(sequences), length, *divergences, entropy, **figures))
        if progress is not None:
            progress(f"{name}: {len(sequences)} sequences judged")
    return judged


def _added(counts: list[np.ndarray], sequences: Sequence[str]) -> list[np.ndarray]:
    return [total + word_counts(sequences, size) for total, size in zip(counts, (1, WORD), strict=True)]


def table(judged: Sequence[Judged]) -> str:
    """The figures as text, a set a line."""
    columns = [name for name in Judged._fields[1:] if any(getattr(one, name) is not None for one in judged)]
    wide = max(12, *(len(one.name) + 2 for one in judged))
    head = f"{'set':<{wide}}" + "".join(f"{name.replace('_', ' '):>24}" for name in columns)
    return "\n".join(
        [head] + [f"{one.name:<{wide}}" + "".join(f"{_cell(one, c):>24}" for c in columns) for one in judged]
    )


def _cell(judged: Judged, name: str) -> str:
    value = getattr(judged, name)
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{value.value:.3f} ± {value.standard_error:.3f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def judge_files(
    samples: str | Sequence[str],
    natural: str,
    reference: str,
    *,
    num_sequences: int = 1000,
    workdir: str | None = None,
    seed: int = 0,
    **judges,
) -> dict[str, Any]:
    """Judges FASTA files of samples beside held-out natural proteins: what `launch/judge_proteins.py` does.

    Args:
        samples: FASTA of generated proteins; several are sets of their own, named as the files are.
        natural: FASTA of natural ones that no model was trained on.
        reference: FASTA of the training split.
        num_sequences: at most so many of each, spread evenly over the file.
        workdir: of the run whose trunk gives pseudo-perplexities; None for none.
        seed: of the shuffled letters, and of what `judge` draws.
        **judges: as in `judge`.

    Returns:
        JSON values: "sets", a list of `Judged`.

    Raises:
        ValueError, FileNotFoundError: for bad input, in one sentence.
    """
    samples = [samples] if isinstance(samples, str) else samples
    names = ["samples"] if len(samples) == 1 else list(map(set_name, samples))
    repeated = sorted({name for name in names if names.count(name) > 1 or name in ("natural", "shuffled")})
    if repeated:
        raise ValueError(f"sets are named as their files, and {', '.join(repeated)} is taken twice")
    *drawn, held_out = ([s for _, s in sources.read_sequences(path)] for path in (*samples, natural))
    count = min(num_sequences, *map(len, drawn), len(held_out))
    held_out = spread(held_out, count)
    sets = {name: spread(one, count) for name, one in zip(names, drawn, strict=True)}
    sets |= {"natural": held_out, "shuffled": shuffled(held_out, seed)}
    model, tokenizer = (None, None) if workdir is None else ssmd_jax.load(os.path.expanduser(workdir))[:2]
    judged = judge(sets, reference, model=model, tokenizer=tokenizer, seed=seed, progress=say, **judges)
    say(table(judged))
    return {"sets": to_json([one._asdict() for one in judged])}


def set_name(path: os.PathLike | str) -> str:
    """What the set of a FASTA file is called: the file's name without its endings, packed or not."""
    return pathlib.Path(path).name.split(".fa")[0]


def spread(sequences: list[str], count: int) -> list[str]:
    """So many of the sequences, evenly spread over them."""
    return [sequences[n * len(sequences) // count] for n in range(count)]
