"""Samplers side by side: the figures of each row from the samples themselves."""

import jax
import numpy as np
import pytest

from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.evaluation import bench, tables, text
from ssmd_jax.evaluation.settings import Setting
from ssmd_jax.sampling import ancestral, registry, speculative
from tests.evaluation.drawn import BATCH, CASES, LENGTH, model

SETTINGS = [Setting(*(CASES[name][0], name, CASES[name][1])) for name in ("plain", "cosine")]
WORDS = frozenset({"a", "b", "ab"})
KEY = jax.random.key(2)
TOKENIZER = make_tokenizer("text8")


def compare(batch_size, num_samples=10):
    return bench.compare(
        model(),
        TOKENIZER,
        SETTINGS,
        KEY,
        length=LENGTH,
        num_samples=num_samples,
        batch_size=batch_size,
        words=WORDS,
    )


def one_by_one(sample, config, count):
    """Sample `n` alone, from key `fold_in(KEY, n)`, in the first row of a batch of the same."""
    rows = []
    for n in range(count):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.full(BATCH, n))
        result = sample(model(), keys, config, batch_size=BATCH, length=LENGTH)
        rows.append(jax.tree.map(lambda x: np.asarray(x)[:1], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def test_rows_against_samples_drawn_alone():
    for setting, got in zip(SETTINGS, compare(batch_size=BATCH), strict=True):
        sample = ancestral.sample if setting.sampler == "plain" else speculative.sample
        wanted = one_by_one(sample, setting.config, 10)
        np.testing.assert_array_equal(got.tokens, wanted.tokens)
        row = got.row
        assert (row.sampler, row.setting, row.num_samples, row.batch_size) == (
            setting.sampler,
            setting.label,
            10,
            BATCH,
        )
        nfe = np.asarray(wanted.nfe, np.float64)
        np.testing.assert_allclose(row.nfe, (nfe.mean(), nfe.std(ddof=1) / np.sqrt(10)), rtol=1e-5, atol=1e-7)
        assert row.passes == pytest.approx(np.mean(wanted.trunk_passes))
        assert row.rounds == pytest.approx(np.mean(wanted.verify_rounds))
        assert row.unigram_entropy == text.unigram_entropy(wanted.tokens)
        texts = [TOKENIZER.decode(tokens) for tokens in np.asarray(wanted.tokens)]
        np.testing.assert_equal(tuple(row.spelling), tuple(text.spelling_accuracy(texts, WORDS)))
        assert row.seconds_per_sample * BATCH == pytest.approx(row.seconds_per_batch) and row.seconds_per_batch > 0
        assert got.along.total_nfe == pytest.approx(row.nfe.value, rel=1e-5)
    plain, cosine = (each.row for each in compare(batch_size=BATCH))
    assert np.isnan(plain.acceptance) and 0 < cosine.acceptance < 1


def asked_of(monkeypatch, name) -> list[dict]:
    """Keyword arguments of every batch that the sampler of this name is asked for."""
    entry, seen = registry.entry(name), []

    def recorded(*args, **kwargs):
        seen.append(kwargs)
        return entry.sample(*args, **kwargs)

    monkeypatch.setitem(registry.REGISTRY, name, entry._replace(sample=recorded))
    return seen


def test_the_clock_runs_on_a_compiled_program(monkeypatch):
    """Timed batches trace nothing: the untimed one has compiled all there is, and run it on one open token."""
    setting, seen = SETTINGS[1], asked_of(monkeypatch, "speculative")
    bench.draw(model(), setting, KEY, length=LENGTH, num_samples=BATCH, batch_size=BATCH)
    before = speculative._sample._cache_size()
    bench.draw(model(), setting, KEY, length=LENGTH, num_samples=9, batch_size=BATCH)
    assert speculative._sample._cache_size() == before
    masks = [int((~asked["prompt_mask"]).sum(axis=1).max()) for asked in seen]
    assert masks == [1, LENGTH, 1, LENGTH, LENGTH, LENGTH]


def test_prompt_is_kept():
    tokens, given = np.arange(LENGTH), np.arange(LENGTH) % 3 == 0
    drawn = bench.draw(
        model(), SETTINGS[1], KEY, length=LENGTH, num_samples=5, batch_size=BATCH, prompt=tokens, prompt_mask=given
    )
    np.testing.assert_array_equal(drawn.result.tokens[:, given], np.tile(tokens[given], (5, 1)))
    assert (drawn.result.status == 0).sum() == 5 * given.sum()


def test_every_sample_has_a_prompt_of_its_own():
    """Five samples in batches of four: the row that fills up the last batch shows nowhere."""
    tokens = np.random.default_rng(0).integers(0, 4, (5, LENGTH))
    given = np.random.default_rng(1).random((5, LENGTH)) < 0.5
    drawn = bench.draw(
        model(), SETTINGS[1], KEY, length=LENGTH, num_samples=5, batch_size=BATCH, prompt=tokens, prompt_mask=given
    )
    np.testing.assert_array_equal(drawn.result.tokens[given], tokens[given])
    np.testing.assert_array_equal((drawn.result.status == 0).sum(axis=1), given.sum(axis=1))


P2 = Setting("p2", "p2", registry.entry("p2").make(steps=4))


@pytest.mark.parametrize("setting", [*SETTINGS, P2], ids=lambda setting: setting.sampler)
def test_narrow_batches_draw_the_same_samples(setting, monkeypatch):
    """Rows of neighbouring lengths, padded to a third, two thirds or all of the length, each in its old place."""
    lengths = np.random.default_rng(0).permutation(np.r_[1, LENGTH, np.arange(1, 8)])
    sizes = {"length": LENGTH, "num_samples": len(lengths), "batch_size": 2, "lengths": lengths}
    wide = bench.draw(model(), setting, KEY, **sizes).result
    seen = asked_of(monkeypatch, setting.sampler)
    narrow = bench.draw(model(), setting, KEY, **sizes, num_widths=3).result
    for name in vars(wide).keys() - {"order", "rows_computed"}:
        np.testing.assert_array_equal(getattr(narrow, name), getattr(wide, name), err_msg=name)
    np.testing.assert_array_equal(np.sort(narrow.order), np.broadcast_to(np.arange(LENGTH), narrow.order.shape))
    inside = np.arange(LENGTH) < lengths[:, None]
    np.testing.assert_array_equal(narrow.order[inside], wide.order[inside])
    # Every batch runs once before the clock starts.
    batches = [(asked["length"], list(asked["lengths"])) for asked in seen]
    once = batches[: len(batches) // 2]
    assert once + once == batches and {width for width, _ in once} == {3, 6, 8}
    assert all(width - 3 < max(rows) <= width for width, rows in once)
    in_turn = [row for _, rows in once for row in rows]
    assert in_turn == sorted(in_turn)


@pytest.mark.parametrize("num_widths", [1, 3])
def test_a_length_too_long(num_widths):
    sizes = {"length": LENGTH, "num_samples": 2, "batch_size": 2, "lengths": np.array([3, LENGTH + 1])}
    with pytest.raises(ValueError, match="lengths must lie between 1 and length = 8"):
        bench.draw(model(), SETTINGS[0], KEY, **sizes, num_widths=num_widths)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "num_widths"])
def test_numbers_below_one(name):
    sizes = {"num_samples": 2, "batch_size": 2} | {name: 0}
    with pytest.raises(ValueError, match=name):
        bench.draw(model(), SETTINGS[0], KEY, length=LENGTH, **sizes)


def test_tables_are_aligned():
    compared = compare(batch_size=BATCH, num_samples=8)
    lines = tables.samplers_table([each.row for each in compared]).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("sampler") and lines[1].split()[0] == "plain" and lines[1].split()[-1] == "-"
    short = tables.short_table([each.row for each in compared]).splitlines()
    assert len({len(line) for line in short}) == 1 and len(short[0]) <= 80
    assert [line.split()[:3] for line in short[1:]] == [line.split()[:3] for line in lines[1:]]
    lines = tables.acceptance_table(compared[1].along).splitlines()
    assert len(lines) == 12 and lines[-1].split()[0] == "all"
    assert float(lines[-1].split()[2]) == pytest.approx(compared[1].row.nfe.value, abs=1e-3)
