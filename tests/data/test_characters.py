"""Characters as tokens: there and back, and as the tokenizers library reads the files."""

import json

import pytest

from ssmd_jax.data import characters

TEXT = "Ada has 12 pens.\n12+3=15\nAnswer: 15"


def test_round_trip():
    ids = characters.encode(characters.ALPHABET)
    assert ids == list(range(96)) and characters.decode(ids) == characters.ALPHABET
    assert max(characters.EOS_ID, characters.MASK_ID) < characters.VOCAB_SIZE and characters.VOCAB_SIZE % 8 == 0
    ended = [*characters.encode("ab"), characters.MASK_ID, 103, *characters.encode("c"), characters.EOS_ID, 3]
    assert characters.decode(ended) == "abc"


@pytest.mark.parametrize("text", ["caf\u00e9", "a\tb"])
def test_other_characters_are_refused(text):
    with pytest.raises(ValueError, match="neither printable ASCII nor a line feed"):
        characters.encode(text)


def test_files_are_the_same_mapping(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    characters.write_tokenizer(tmp_path)
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.encode(TEXT).ids == characters.encode(TEXT)
    assert read.decode(characters.encode(TEXT)) == TEXT
    assert read.encode("\u00e9").ids == characters.encode("?")
    for symbol, n in ((characters.EOS_SYMBOL, characters.EOS_ID), (characters.MASK_SYMBOL, characters.MASK_ID)):
        assert read.token_to_id(symbol) == n and read.encode(f"a{symbol}").ids == [*characters.encode("a"), n]
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["eos_token"] == characters.EOS_SYMBOL and fields["mask_token"] == characters.MASK_SYMBOL
