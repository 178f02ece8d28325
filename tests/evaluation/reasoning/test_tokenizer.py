"""Tokenizers of published models, read from disk."""

import json

import pytest

from ssmd_jax.evaluation.reasoning import tokenizer
from ssmd_jax.evaluation.reasoning.prompts import Turn
from ssmd_jax.evaluation.reasoning.tokenizer import ChatTokenizer
from tests.evaluation.reasoning import small


def test_the_end_of_an_answer():
    made = ChatTokenizer(small.Bytes(), 256)
    assert made.decode([*b"4", 256, *b"5"]) == "4"
    # The network may have more tokens than the tokenizer.
    assert made.decode([*b"4", 263, *b"5"]) == "45"
    assert made.encode("<bos>a") == [*b"<bos>a"]
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        made.chat([Turn("user", "x")])


def test_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"need transformers: pip install ssmd_jax\[reasoning\]"):
        tokenizer.load(tmp_path, 256, 264)


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("tokenizers")
    return pytest.importorskip("transformers", reason="tokenizers of published models need transformers")


def load(folder, eos_id=256, vocab_size=264, **kinds):
    small.write_tokenizer(folder, **kinds)
    return tokenizer.load(folder, eos_id, vocab_size)


def test_text_and_back(transformers, tmp_path):
    made = load(tmp_path)
    ids = made.encode("Wie h\u00f6ch? 5")
    assert made.decode([*ids, 256, *ids]) == "Wie h\u00f6ch? 5"
    assert made.start_id == 258 and made.ends == (256,)
    assert not made.has_chat_template
    assert made.encode("<bos>a") == [258, *made.encode("a")]


def test_chat(transformers, tmp_path):
    made = load(tmp_path, chat=True)
    said = [Turn("user", "1+1?"), Turn("assistant", "2"), Turn("user", "2+2?")]
    assert made.chat(said) == "<bos>[user]1+1?[assistant]2[user]2+2?[assistant]"
    assert made.encode(made.chat(said), special=False)[0] == 258


def test_ends_of_a_turn(transformers, tmp_path):
    made = load(tmp_path)
    made.inner.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    assert made.ends == (256, 259)
    assert made.decode([*made.encode("4"), 259, *made.encode("5")]) == "4"


def test_one_tokenizer_for_both(transformers, tmp_path):
    one, same = load(tmp_path / "one"), load(tmp_path / "same")
    tokenizer.check_same(one, same)
    swapped = load(tmp_path / "swapped", swap=True)
    with pytest.raises(ValueError, match=r"drafter and verifier must have one tokenizer: '.' is token \d+ of the"):
        tokenizer.check_same(one, swapped)
    with pytest.raises(ValueError, match="but other chat templates"):
        tokenizer.check_same(one, load(tmp_path / "chat", chat=True))


def test_refused(transformers, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        tokenizer.load(tmp_path / "none", 256, 264)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can read") as refused:
        tokenizer.load(tmp_path / "empty", 256, 264)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="has tokens up to 258, the network only 200"):
        load(tmp_path / "large", vocab_size=200)
    own = tmp_path / "own"
    load(own)
    fields = json.loads((own / "tokenizer_config.json").read_text())
    fields |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (own / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="--trust_remote_code"):
        tokenizer.load(own, 256, 264)
