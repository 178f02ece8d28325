"""Prompts and infilling patterns."""

import numpy as np
import pytest

from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.evaluation.prompts import encode_prompt

TEXT8, BYTES = make_tokenizer("text8"), make_tokenizer("bytes")


def test_prompt_starts_the_row():
    tokens, given = encode_prompt(TEXT8, 6, prompt="ab c")
    np.testing.assert_array_equal(tokens, [1, 2, 0, 3, 0, 0])
    np.testing.assert_array_equal(given, [True] * 4 + [False] * 2)
    assert tokens.dtype == np.int32 and given.dtype == bool
    assert encode_prompt(TEXT8, 6) is None
    assert not encode_prompt(TEXT8, 6, prompt="")[1].any()


def test_gaps_are_left_open():
    tokens, given = encode_prompt(TEXT8, 8, infill="_a__b")
    np.testing.assert_array_equal(given, [False, True, False, False, True, False, False, False])
    np.testing.assert_array_equal(tokens[given], [1, 2])
    _, given = encode_prompt(BYTES, 5, infill="_a*é", gap="*")
    np.testing.assert_array_equal(given, [True, True, False, True, True])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt": "abcdef"}, "prompt has 6 tokens"),
        ({"infill": "ab__ef"}, "infill has 6 tokens"),
        ({"prompt": "a#b"}, "'#'"),
        ({"infill": "A_"}, "infill.*'A'"),
        ({"prompt": "a", "infill": "b"}, "not both"),
        ({"infill": "a", "gap": ""}, "gap"),
        ({"infill": "a", "gap": "__"}, "gap"),
    ],
)
def test_bad_prompts(arguments, named):
    with pytest.raises(ValueError, match=named):
        encode_prompt(TEXT8, 5, **arguments)


def test_length_below_one():
    with pytest.raises(ValueError, match="length"):
        encode_prompt(TEXT8, 0, prompt="a")
