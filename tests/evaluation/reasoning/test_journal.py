"""Finished questions survive, and are not mixed with others."""

import pytest

from ssmd_jax.evaluation.reasoning import journal

SETTINGS = {"task": "gsm8k", "steps": 4}
RECORDS = [{"id": "a", "correct": True}, {"id": "b", "text": "\u2028\n"}]


def test_what_is_added_is_read(tmp_path):
    path = tmp_path / "made" / "gsm8k.jsonl"
    assert journal.resume(path, SETTINGS) == []
    journal.append(path, RECORDS[:1])
    journal.append(path, RECORDS[1:])
    assert journal.resume(path, SETTINGS) == RECORDS


@pytest.mark.parametrize("left", [1, 10, 25])
def test_an_unfinished_line_is_removed(left, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    journal.resume(path, SETTINGS)
    journal.append(path, RECORDS[:1])
    whole = path.read_bytes()
    journal.append(path, RECORDS[1:])
    path.write_bytes(path.read_bytes()[: len(whole) + left])
    assert journal.resume(path, SETTINGS) == RECORDS[:1]
    journal.append(path, RECORDS[1:])
    assert journal.resume(path, SETTINGS) == RECORDS


def test_an_unfinished_first_line(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(b'{"settings": {"ta')
    assert journal.resume(path, SETTINGS) == []
    journal.append(path, RECORDS)
    assert journal.resume(path, SETTINGS) == RECORDS


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    journal.resume(path, SETTINGS)
    with pytest.raises(ValueError, match=r"was made with steps 4, not 8: give the same settings"):
        journal.resume(path, {**SETTINGS, "steps": 8})
    with pytest.raises(ValueError, match=r"was made with seed None, not 1"):
        journal.resume(path, {**SETTINGS, "seed": 1})
    path.write_text("a line\nof prose\n")
    with pytest.raises(ValueError, match="is not a journal"):
        journal.resume(path, SETTINGS)
    assert path.read_text() == "a line\nof prose\n"
