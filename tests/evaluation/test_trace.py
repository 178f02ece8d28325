"""The trace shows every token once, and ends at the sample."""

import io

import numpy as np
import pytest
from rich.console import Console

from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.evaluation import trace
from ssmd_jax.sampling.canvas import ACCEPTED, GIVEN, REPLACED, UNVERIFIED
from tests.evaluation.drawn import BATCH, CASES, LENGTH, drawn, model

TOKENIZER = make_tokenizer("text8")
FRESH = (GIVEN, ACCEPTED, REPLACED, UNVERIFIED)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_token_once(case, prompted):
    result, verify_cost = drawn(case, prompted)
    for row in range(BATCH):
        shown = list(trace.frames(result, TOKENIZER, model().trunk_cost, verify_cost, row=row))
        text = TOKENIZER.decode(result.tokens[row])
        assert "".join(cell.text for cell in shown[-1].cells) == text
        first_seen = [
            next(frame.number for frame in shown if frame.cells[position].kind in FRESH) for position in range(LENGTH)
        ]
        for position in range(LENGTH):
            kinds = [frame.cells[position].kind for frame in shown]
            track = int(np.flatnonzero(result.order[row] == position)[0])
            status = result.status[row, track]
            # masked until its pass, then once what happened to it, then earlier (given stays given)
            at = [frame.number for frame in shown].index(first_seen[position])
            assert kinds[:at] == [trace.MASKED] * at and kinds[at] == status
            after = trace.EARLIER if status != GIVEN else GIVEN
            assert kinds[at + 1 :] == [after] * (len(kinds) - at - 1)
            assert first_seen[position] == result.revealed_in[row, track]
            rejected = [frame.cells[position].rejected for frame in shown]
            wanted = TOKENIZER.decode([result.rejected_token[row, track]]) if status == REPLACED else ""
            assert rejected[at] == wanted and not any(rejected[:at] + rejected[at + 1 :])
        assert shown[-1].nfe == pytest.approx(result.nfe[row], rel=1e-6)
        assert sum(frame.rounds for frame in shown) == result.verify_rounds[row]


def printed(**console):
    result, verify_cost = drawn("many rounds", True)
    file = io.StringIO()
    trace.show(Console(file=file, width=40, **console), result, TOKENIZER, model().trunk_cost, verify_cost, row=2)
    return file.getvalue(), result


def test_colours_on_a_terminal():
    out, result = printed(force_terminal=True, color_system="standard", no_color=False)
    for code in ("\x1b[1m", "\x1b[32m", "\x1b[33m", "31m"):  # bold, green, yellow, red
        assert code in out
    assert out.splitlines()[-1].strip() == TOKENIZER.decode(result.tokens[2]).strip()


@pytest.mark.parametrize("console", [{"force_terminal": False}, {"force_terminal": True, "no_color": True}])
def test_marks_elsewhere(console):
    out, result = printed(**console)
    assert "\x1b[3" not in out
    lines = out.splitlines()
    assert lines[-1] == "  " + TOKENIZER.decode(result.tokens[2])
    marks = "".join(line for line in lines[1:] if line.strip() and set(line.strip()) <= set("=+x? "))
    assert marks.count("+") == result.accepted[2] and marks.count("x") == result.rejected[2]
    assert sum(line.count("->") for line in lines) == result.rejected[2]


def test_control_characters_stay_on_the_line():
    assert trace.visible("a\nb\x00") == "a⏎b�" and trace.visible("") == "∅"


def test_long_canvas_is_wrapped():
    cells = tuple(trace.Cell("ab", ACCEPTED) for _ in range(10))
    lines = [line.plain for line in trace._lines(cells, 8, colour=True)]
    assert lines == ["  abababab", "  abababab", "  abab"]
