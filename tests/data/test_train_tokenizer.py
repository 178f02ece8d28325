import pytest

from ssmd_jax.data import train_tokenizer

WORDS = "a cat and a dog and the other cat sat on the mat with the dog\n"


def test_training_is_deterministic_and_lossless():
    documents = [WORDS * 30, "tabs\tand  double spaces, 漢字 \r\n" * 5]
    first = train_tokenizer.train_sentencepiece(documents, vocab_size=300)
    again = train_tokenizer.train_sentencepiece(iter(documents), vocab_size=300)
    assert first.num_tokens == 300
    assert first.fingerprint() == again.fingerprint()
    for text in [*documents, "  unseen ☃\n\n\n symbols\x07 "]:
        assert first.decode(first.encode(text, strict=True)) == text
    assert len(first.encode("\n\n")) == 2
    # It did learn something: shorter than bytes.
    assert len(first.encode(WORDS)) < 0.6 * len(WORDS)


def test_the_sample_is_bounded_and_covers_the_corpus():
    block = train_tokenizer.SAMPLE_BLOCK
    documents = [chr(ord("a") + n // 40) * (2 * block) for n in range(400)]
    sample = train_tokenizer.sample_blocks(documents, characters=100 * block)
    assert len(sample) == 100
    assert sample == train_tokenizer.sample_blocks(documents, characters=100 * block)
    counts = [sum(text[0] == letter for text in sample) for letter in "abcdefghij"]
    assert min(counts) >= 3 and max(counts) <= 20  # 10 expected, standard deviation 3
    # A corpus within the bound is taken whole.
    assert "".join(train_tokenizer.sample_blocks(documents[:3])) == "".join(documents[:3])


@pytest.mark.parametrize(
    ("vocab_size", "reason"), [(100, "Increase vocab_size"), (10_000, "Please set it to a value <=")]
)
def test_an_impossible_vocabulary_is_one_sentence(vocab_size, reason):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size}: .*{reason}"):
        train_tokenizer.train_sentencepiece([WORDS], vocab_size)


def test_no_text_is_one_sentence():
    with pytest.raises(ValueError, match="no text to train the sentencepiece tokenizer on"):
        train_tokenizer.train_sentencepiece(["\n\n"], 300)
