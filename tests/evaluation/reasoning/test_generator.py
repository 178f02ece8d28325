"""Answers depend on prompts and keys, and on nothing that is computed beside them."""

import numpy as np
import pytest

from ssmd_jax.evaluation.reasoning import generator
from tests.evaluation.reasoning import small

PROMPTS = [[70], [65, 66, 67], [80, 81, 82, 83, 84, 85], [90, 91], [70]]


def answers(machine, prompts=PROMPTS, keys=None):
    found = {}
    for batch in generator.generate(machine, prompts, small.keys(len(prompts)) if keys is None else keys):
        found |= dict(batch)
    return [found[n] for n in range(len(prompts))]


def test_plan_covers_every_prompt_once_with_the_longest_first():
    assert generator.plan([3, 9, 4, 8, 0], 2, 4, 100) == [(12, [1, 3]), (4, [0, 2]), (4, [4])]
    # Nothing is padded to more than fits.
    assert generator.plan([9], 2, 4, 10) == [(10, [0])]


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        ("llada", {"temperature": 0.7, "steps": 6}),
        pytest.param("dual", {"network": True, "threshold": 0.3, "temperature": 0.7}, marks=pytest.mark.slow),
        pytest.param("dualdiffusion", {"network": True, "drafter": 1, "rule": "exact_match"}, marks=pytest.mark.slow),
    ],
)
def test_batches_and_padding_change_nothing(sampler, fields):
    whole = answers(small.generator(sampler, batch_size=5, pad_to=8, **fields))
    parts = answers(small.generator(sampler, batch_size=2, pad_to=4, **fields))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.counts == other.counts
    assert (whole[0].tokens != whole[1].tokens).any()
    if "temperature" in fields:  # one prompt with two keys
        assert (whole[0].tokens != whole[4].tokens).any()
    assert all(made.seconds > 0 for made in whole)


def test_the_run_that_compiles_is_one_of_its_own(monkeypatch):
    """On the least budget, and nothing of it is counted."""
    budgets, sample = [], generator._sample
    monkeypatch.setattr(generator, "_sample", lambda *args: budgets.append((args[-1], args[1].budget)) or sample(*args))
    machine = small.generator("llada", steps=6, batch_size=1, pad_to=4, stop=False)
    made = answers(machine, [*PROMPTS[1:4], [71, 72, 73, 74]])[0]
    # The last prompt fills its length: without padding it is another program.
    assert budgets == [(8, 3), (8, None), (4, 3), (4, None), (4, None), (4, 3), (4, None)]
    assert made.counts["drafter_forwards"] == 6
    assert made.counts["num_tokens"] == 12


def test_too_long_a_prompt_is_refused():
    machine = small.generator()
    assert machine.longest_prompt == small.CONFIG.max_length - 12
    generator.check_length(machine, range(machine.longest_prompt), "question 1")
    with pytest.raises(ValueError, match=r"prompt of question 1 has 2037 tokens, and with gen_length 12 .* the 2048 "):
        generator.check_length(machine, range(machine.longest_prompt + 1), "question 1")


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        small.generator(batch_size=0)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    """Not of the folder, nor of what else lies there."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    made = generator.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("A model.")
    assert generator.fingerprint(tmp_path) == made
    for place in (0, 2_999_999):
        content = bytearray(3_000_000)
        content[place] = 1
        (tmp_path / "model.safetensors").write_bytes(content)
        assert generator.fingerprint(tmp_path) != made
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "config.json").write_text('{"n_layers": 2}')
    assert generator.fingerprint(tmp_path) != made
