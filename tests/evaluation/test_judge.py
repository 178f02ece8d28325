"""The judge against plain sums over a tiny random GPT-2; what needs no judge runs everywhere."""

import json
import math

import numpy as np
import pytest

from ssmd_jax.evaluation import judge

TEXTS = ["the cat sat", "a", "", "dogs and the old oak tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 of two small layers and a tokenizer of single characters, as `transformers` saves them."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    symbols = ["<start>", *"abcdefghijklmnopqrstuvwxyz "]
    tokenizer = Tokenizer(models.WordLevel({symbol: n for n, symbol in enumerate(symbols)}, unk_token="<start>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    path = tmp_path_factory.mktemp("judge")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<start>").save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(symbols), n_positions=32, n_embd=16, n_layer=2, n_head=2)
    config.initializer_range = 0.5
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def alone(loaded, text):
    """Nats of a text, one forward pass for it alone and a sum over its tokens."""
    import torch

    tokens = [0, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()
    return sum(math.log(np.exp(logits[n] - logits[n, token]).sum()) for n, token in enumerate(tokens[1:]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bits_are_those_of_each_text_alone(folder, batch_size):
    loaded = judge.load_judge(folder)
    found = judge.judge_texts(loaded, TEXTS, batch_size=batch_size)
    texts = [text for text in TEXTS if text]
    nats, count = sum(alone(loaded, text) for text in texts), sum(map(len, texts))
    assert found.num_texts == 3 and found.truncated == 0
    assert found.bits_per_byte.value == pytest.approx(nats / math.log(2) / count, rel=1e-5)
    assert found.nats_per_token.value == pytest.approx(nats / count, rel=1e-5)
    assert found.tokens_per_text == pytest.approx(count / 3)


def test_long_texts_are_cut_with_their_bytes(folder):
    loaded = judge.load_judge(folder)
    assert loaded.context == 31
    found = judge.judge_texts(loaded, ["abcdefgh", "xyz"], max_tokens=4)
    expected = alone(loaded, "abcd") + alone(loaded, "xyz")
    assert found.truncated == 1
    assert found.bits_per_byte.value == pytest.approx(expected / math.log(2) / 7, rel=1e-5)


def test_files_and_bad_input(folder, tmp_path):
    (tmp_path / "a.json").write_text("progress\n" + json.dumps({"samples": ["the cat", "a dog"]}) + "\n")
    (tmp_path / "b.txt").write_text("one text\n\nand another\n")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.txt")]
    found = judge.judge_files(folder, files, dtype="float32", batch_size=2, max_tokens=None, count=1)
    assert [found["files"][file].num_texts for file in files] == [1, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no causal language model"):
        judge.load_judge(tmp_path / "empty")
    with pytest.raises(ValueError, match="no text to judge"):
        judge.judge_texts(judge.load_judge(folder), [""])


def test_texts_of_files(tmp_path):
    file = tmp_path / "texts"
    for content, texts in (
        (json.dumps({"texts": ["a", "b"]}), ["a", "b"]),
        (json.dumps(["a b", "c"]), ["a b", "c"]),
        ("first line\nsecond line\n", ["first line", "second line"]),
    ):
        file.write_text(content)
        assert judge.read_texts(file) == texts
    for content in ("", "{}", "[1, 2]"):
        file.write_text(content)
        with pytest.raises(ValueError, match="no texts"):
            judge.read_texts(file)
    with pytest.raises(ValueError, match="cannot read"):
        judge.read_texts(tmp_path / "missing")
    with pytest.raises(ValueError, match="there is no language model"):
        judge.load_judge(tmp_path / "missing")
    with pytest.raises(ValueError, match="dtype"):
        judge.load_judge(tmp_path, "int8")
