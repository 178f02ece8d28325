"""Judges of proteins: figures against dumb twins, and sets of which it is known what they must show."""

import collections
import itertools
import math

import numpy as np
import pytest

from ssmd_jax.data import tokenizers
from ssmd_jax.evaluation import protein_tools, proteins
from tests.model.test_esm2 import model, tensors, twin_logits

LETTERS = proteins.LETTERS


def draw(count, seed=0, shortest=20, longest=40):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), n)) for n in rng.integers(shortest, longest, count)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_words_are_counted_as_by_the_dumb_twin(size):
    sequences = [*draw(9), "LXAG", "L", "GGGG"]
    twin = collections.Counter(
        s[n : n + size] for s in sequences for n in range(len(s) - size + 1) if "X" not in s[n : n + size]
    )
    words = map("".join, itertools.product(LETTERS, repeat=size))
    np.testing.assert_array_equal(proteins.word_counts(sequences, size), [twin[word] for word in words])


def test_divergence_is_that_of_jensen_and_shannon():
    p, q = np.array([4, 0, 4]), np.array([1, 2, 1])
    m = (p / 8 + q / 4) / 2
    twin = sum(x * math.log2(x / y) for d in (p / 8, q / 4) for x, y in zip(d, m, strict=True) if x) / 2
    assert proteins.divergence(p, q) == pytest.approx(twin)
    assert proteins.divergence(p, 3 * p) == 0 and proteins.divergence(np.array([1, 0]), np.array([0, 5])) == 1
    assert math.isnan(proteins.divergence(p, 0 * q))


def test_shuffled_sequences_keep_letters_and_lengths():
    sequences = draw(5)
    other = proteins.shuffled(sequences)
    assert other != sequences and list(map(sorted, other)) == list(map(sorted, sequences))
    assert proteins.shuffled(sequences) == other and proteins.shuffled(sequences, 1) != other


def test_pseudo_nll_is_the_mean_over_masked_letters():
    """Against ESM-2's twin in NumPy, which sees each sequence with one letter masked."""
    sequences, esm2 = ["MKVLAG", "GAVL"], tokenizers.make_tokenizer("esm2")
    expected = []
    for sequence in sequences:
        ids, nll = np.r_[0, esm2.encode(sequence), 2], []
        for position in range(1, len(sequence) + 1):
            masked = ids.copy()
            masked[position] = 32
            logits_20 = twin_logits(tensors(), masked)[position, 4:24]
            nll.append(np.log(np.exp(logits_20).sum()) - logits_20[ids[position] - 4])
        expected.append(np.array(nll))
    found = proteins.pseudo_nll(model(), esm2, sequences, positions=30, batch_size=7, seed=3)
    rng = np.random.default_rng(3)
    for value, nll in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, nll[rng.integers(0, len(nll), 30)].mean(), rtol=1e-4)
    estimate = proteins.perplexity(np.array([1.0, 2.0, 3.0]))
    assert estimate.value == pytest.approx(math.exp(2)) and estimate.standard_error == pytest.approx(
        math.exp(2) / math.sqrt(3)
    )


@pytest.mark.slow
def test_letters_that_no_model_draws_are_given_and_not_judged():
    """X, B, U and others stand in natural proteins; what is judged beside them sees them."""
    esm2 = tokenizers.make_tokenizer("esm2")
    ids, nll = np.r_[0, esm2.encode("MXKXXL"), 2], []
    for position in (1, 3, 6):
        masked = ids.copy()
        masked[position] = 32
        logits_20 = twin_logits(tensors(), masked)[position, 4:24]
        nll.append(np.log(np.exp(logits_20).sum()) - logits_20[ids[position] - 4])
    found = proteins.pseudo_nll(model(), esm2, ["MXKXXL"], positions=30, batch_size=8, seed=3)
    np.testing.assert_allclose(found, np.mean(np.array(nll)[np.random.default_rng(3).integers(0, 3, 30)]), rtol=1e-4)


def test_letter_entropy_is_that_of_each_sequence_by_itself():
    """One letter says nothing, two as often as each other a bit, and what is no letter does not count."""
    found = proteins.letter_entropies(["AAAA", "ACAC", "AACX", proteins.LETTERS])
    third = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    np.testing.assert_allclose(found, [0.0, 1.0, third, np.log2(20)], atol=1e-12)


@pytest.fixture
def files(tmp_path):
    paths = {}
    for seed, name in enumerate(("samples", "natural", "reference")):
        paths[name] = str(tmp_path / f"{name}.fasta")
        protein_tools.write_fasta(paths[name], draw(12, seed))
    return paths


def test_files_are_judged_beside_natural_and_shuffled(files, capsys):
    result = proteins.judge_files(**files, num_sequences=10)
    assert [one["name"] for one in result["sets"]] == ["samples", "natural", "shuffled"]
    natural, mixed = result["sets"][1:]
    assert natural["num_sequences"] == 10 and natural["mean_length"] == mixed["mean_length"]
    assert natural["composition_divergence"] == mixed["composition_divergence"]
    assert natural["letter_entropy"] == mixed["letter_entropy"]
    assert all(one["pfam"] is None and one["plddt"] is None for one in result["sets"])
    table = capsys.readouterr().err
    assert "word divergence" in table and "pfam" not in table


def test_the_seed_is_that_of_the_shuffled_letters_too(files, monkeypatch):
    seen = []
    monkeypatch.setattr(proteins, "judge", lambda sets, *_, seed, **__: seen.append((sets["shuffled"], seed)) or [])
    monkeypatch.setattr(proteins, "table", lambda judged: "")
    for seed in (0, 7):
        proteins.judge_files(**files, seed=seed)
    assert [seed for _, seed in seen] == [0, 7]
    natural = [sequence for _, sequence in proteins.sources.read_sequences(files["natural"])]
    assert [letters for letters, _ in seen] == [proteins.shuffled(natural, seed) for seed in (0, 7)]


def test_esmfold_is_loaded_once_for_all_sets(files, monkeypatch):
    loaded, folded = [], []
    monkeypatch.setattr(protein_tools, "load_esmfold", lambda folder: loaded.append(folder) or "the model")
    monkeypatch.setattr(
        protein_tools, "mean_plddt", lambda sequences, model, _: folded.append(model) or np.full(len(sequences), 40.0)
    )
    judged = proteins.judge({"one": draw(3), "two": draw(2)}, files["reference"], esmfold="weights")
    assert loaded == ["weights"] and folded == ["the model"] * 2
    assert [one.plddt.value for one in judged] == [40.0, 40.0]


def test_a_run_gives_pseudo_perplexities(files):
    sets = {"samples": draw(4), "natural": draw(4, 1)}
    judged = proteins.judge(
        sets, files["reference"], model=model(), tokenizer=tokenizers.make_tokenizer("esm2"), positions=2
    )
    assert all(one.pseudo_perplexity.value > 1 and one.pseudo_perplexity.standard_error > 0 for one in judged)
    assert "±" in proteins.table(judged) and "pseudo perplexity" in proteins.table(judged)


def test_empty_sets_are_refused(files):
    with pytest.raises(ValueError, match="the set samples holds no sequences"):
        proteins.judge({"samples": []}, files["reference"])
    with pytest.raises(ValueError, match="the set samples holds an empty sequence"):
        proteins.judge({"samples": ["MK", ""]}, files["reference"])
    with pytest.raises(ValueError, match="the set samples holds a sequence without any of the letters"):
        proteins.judge({"samples": ["MK", "XX"]}, files["reference"])


@pytest.mark.parametrize("judge", ["profiles", "mmseqs", "esmfold"])
def test_a_missing_judge_is_said_before_any_work(files, judge, monkeypatch):
    monkeypatch.setattr(proteins.sources, "read_sequences", lambda path: pytest.fail("the reference was read"))
    with pytest.raises(ValueError, match=r"needs? |there (is|are) no"):
        proteins.judge({"samples": ["MK"]}, files["reference"], **{judge: "/nowhere"})


@pytest.mark.slow
def test_sets_are_judged_by_one_program(files):
    """Of like lengths in one: a set more compiles nothing."""
    sets = {"some": draw(2, shortest=130, longest=190), "more": draw(3, 1, shortest=130, longest=160)}
    before = proteins._last_nll._cache_size()
    proteins.judge(sets, files["reference"], model=model(), tokenizer=tokenizers.make_tokenizer("esm2"), positions=1)
    assert proteins._last_nll._cache_size() == before + 1
