import json
import re
import sys
import tracemalloc

import numpy as np
import pytest

from ssmd_jax.data import tokenizers, train_tokenizer

TEXT = "It is so, said the cat.\n\n  The dog (aged 12) said: no; naïve fool!\tThe end\n"


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    return train_tokenizer.train_sentencepiece([TEXT * 20], vocab_size=300)


def huggingface_json(path, byte_level=True):
    import tokenizers as hf

    if byte_level:
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        )
    else:
        tokenizer = hf.Tokenizer(hf.models.BPE(unk_token="[UNK]"))
        trainer = hf.trainers.BpeTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    # As in some released files: neither may reach the corpus.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=tokenizers.KINDS)
def tokenizer(request, tmp_path, sentencepiece_tokenizer):
    if request.param == "sentencepiece":
        return sentencepiece_tokenizer
    if request.param == "huggingface":
        return tokenizers.make_tokenizer("huggingface", huggingface_json(tmp_path / "gpt.json"))
    return tokenizers.make_tokenizer(request.param)


def text8_twin(text):
    return re.sub("[^a-z]+", " ", text.lower())


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "Hello,  World 12é3\n\n", ",a,", "  b  ", "\u212aelvin \u0130", "\ud800x", TEXT, "\x00\xff~z{`"],
)
def test_text8_normalisation_equals_the_dumb_twin(text):
    text8 = tokenizers.make_tokenizer("text8")
    twin = text8_twin(text)
    ids = text8.encode(text)
    assert ids.dtype == np.int32
    assert text8.decode(ids) == twin
    np.testing.assert_array_equal(ids, [" abcdefghijklmnopqrstuvwxyz".index(symbol) for symbol in twin])
    assert text8.normalize(text) == twin.strip(" ")


def test_round_trip(tokenizer):
    text = {"text8": text8_twin(TEXT), "esm2": "<cls>MKVLAGXB-.<eos>"}.get(tokenizer.kind, TEXT)
    for strict in (False, True):
        ids = tokenizer.encode(text, strict=strict)
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.num_tokens
        assert tokenizer.decode(ids) == text
    batch = tokenizer.encode_batch([text, "", "the cat"])
    for ids, alone in zip(batch, [text, "", "the cat"], strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(alone))


def test_the_mask_id_decodes_to_a_placeholder_and_others_are_refused(tokenizer):
    mask = tokenizer.num_tokens
    text = "MKVLAG" if tokenizer.kind == "esm2" else "the cat"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([mask, *ids, mask, mask]) == f"_{text}__"
    assert tokenizer.decode([]) == ""
    for bad in (-1, mask + 1):
        with pytest.raises(ValueError, match=f"id {bad} is not of this {tokenizer.kind} tokenizer"):
            tokenizer.decode([*ids, bad])


@pytest.mark.parametrize("kind", ["text8", "bytes"])
def test_decoding_a_whole_split_widens_no_ids(kind):
    """text8's training split is one document of 90 million tokens."""
    ids = np.arange(1 << 20).astype(np.uint8) % 27
    tokenizer = tokenizers.make_tokenizer(kind)
    tracemalloc.start()
    text = tokenizer.decode(ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) == len(ids) and text[:2] == tokenizer.decode(ids[:2].astype(np.int64))
    assert peak < 5 * len(ids)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    loaded = tokenizers.load_tokenizer(tmp_path / "saved")
    assert loaded.kind == tokenizer.kind and loaded.num_tokens == tokenizer.num_tokens
    assert loaded.fingerprint() == tokenizer.fingerprint()
    np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
    np.testing.assert_array_equal(loaded.separator, tokenizer.separator)


def test_fingerprints_differ_by_kind_and_by_model(sentencepiece_tokenizer):
    other = train_tokenizer.train_sentencepiece([TEXT * 20], vocab_size=299)
    kinds = [tokenizers.make_tokenizer("text8"), tokenizers.make_tokenizer("bytes"), sentencepiece_tokenizer, other]
    assert len({tokenizer.fingerprint() for tokenizer in kinds}) == 4


def test_amino_acids_have_the_ids_of_esm2():
    esm2 = tokenizers.make_tokenizer("esm2")
    assert esm2.num_tokens == 32 and esm2.separator.tolist() == [2]
    ids = esm2.encode("<cls>LAGVSERTIDPKQNFYMHWCXBUZO.-<eos><pad><unk><null_1>")
    np.testing.assert_array_equal(ids, [0, *range(4, 31), 2, 1, 3, 31])
    np.testing.assert_array_equal(esm2.encode("mk1<L"), [20, 15, 3, 3, 4])
    np.testing.assert_array_equal(esm2.encode("mk1é.-L"), [20, 15, 3, 3, 29, 30, 4])
    assert esm2.decode([32, 20, 32]) == "_M_" and esm2.normalize("MK\nV L") == "MKVL"
    with pytest.raises(ValueError, match="'k', 'J', outside the vocabulary of esm2"):
        esm2.encode("MkJ", strict=True)


def test_amino_acids_have_the_ids_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    symbols = [*tokenizers.AminoAcidTokenizer.SYMBOLS, "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(symbols))
    theirs = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    text = "LAGVSERTIDPKQNFYMHWCXBUZO"
    np.testing.assert_array_equal(theirs(text)["input_ids"], [0, *tokenizers.make_tokenizer("esm2").encode(text), 2])
    assert theirs.mask_token_id == tokenizers.make_tokenizer("esm2").num_tokens


def test_strict_names_the_first_symbols_outside_the_vocabulary(tmp_path, sentencepiece_tokenizer):
    text8 = tokenizers.make_tokenizer("text8")
    with pytest.raises(ValueError, match=r"'é', 'B', '!', outside the vocabulary of text8"):
        text8.encode("aéBé!", strict=True)
    np.testing.assert_array_equal(text8.encode("a  b", strict=True), [1, 0, 0, 2])
    with pytest.raises(ValueError, match=r"'\\ud800', outside"):
        tokenizers.make_tokenizer("bytes").encode("a\ud800", strict=True)
    with pytest.raises(ValueError, match="'\u2581', outside"):
        sentencepiece_tokenizer.encode("a\u2581b", strict=True)
    with_unknown = tokenizers.make_tokenizer("huggingface", huggingface_json(tmp_path / "unk.json", byte_level=False))
    with pytest.raises(ValueError, match="'漢', outside"):
        with_unknown.encode("the 漢 cat", strict=True)
    with_unknown.encode("the 漢 cat")


def test_documents_end_with_the_separator(tmp_path, sentencepiece_tokenizer):
    assert tokenizers.make_tokenizer("text8").separator.tolist() == [0]
    assert tokenizers.make_tokenizer("bytes").separator.tolist() == [10]
    assert sentencepiece_tokenizer.decode(sentencepiece_tokenizer.separator) == "\n"
    gpt = tokenizers.make_tokenizer("huggingface", huggingface_json(tmp_path / "gpt.json"))
    assert gpt.decode(gpt.separator) == "<|endoftext|>"


def test_unknown_names_and_missing_files_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='unknown tokenizer "word"; choose one of text8'):
        tokenizers.make_tokenizer("word")
    with pytest.raises(ValueError, match='"text8" takes no path'):
        tokenizers.make_tokenizer("text8", "x")
    with pytest.raises(ValueError, match='"sentencepiece" needs the path'):
        tokenizers.make_tokenizer("sentencepiece")
    with pytest.raises(FileNotFoundError, match="there is no huggingface tokenizer at"):
        tokenizers.make_tokenizer("huggingface", tmp_path / "none.json")
    (tmp_path / "bad").write_text("{}")
    for kind, reason in (
        ("sentencepiece", "no sentencepiece model"),
        ("huggingface", r"no Hugging Face tokenizer\.json"),
    ):
        with pytest.raises(ValueError, match=reason):
            tokenizers.make_tokenizer(kind, tmp_path / "bad")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r'pip install "ssmd_jax\[formats\]"'):
        tokenizers.make_tokenizer("huggingface", tmp_path / "bad")


def test_damaged_folders_are_one_sentence(tmp_path, sentencepiece_tokenizer):
    with pytest.raises(FileNotFoundError, match="there is no tokenizer in"):
        tokenizers.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "tex')
    with pytest.raises(ValueError, match="is damaged"):
        tokenizers.load_tokenizer(tmp_path)
    sentencepiece_tokenizer.save(tmp_path)
    other = train_tokenizer.train_sentencepiece([TEXT * 20], vocab_size=299)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "sentencepiece.model").replace(tmp_path / "sentencepiece.model")
    with pytest.raises(ValueError, match="is damaged"):
        tokenizers.load_tokenizer(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    assert description["kind"] == "sentencepiece" and description["num_tokens"] == 300
