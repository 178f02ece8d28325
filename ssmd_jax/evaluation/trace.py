"""The accept/reject history of one sample, pass by pass, as coloured or plain terminal text."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.evaluation.acceptance import split_passes
from ssmd_jax.sampling.canvas import ACCEPTED, GIVEN, REPLACED, UNVERIFIED, SampleResult

MASKED, EARLIER = -1, -2
MASK_SYMBOL = "·"
# By what happened to a token in this pass: style on a colour terminal, and mark under it anywhere else.
STYLES = {
    GIVEN: "bold",
    ACCEPTED: "green",
    REPLACED: "yellow",
    UNVERIFIED: "blue",
    MASKED: "dim",
    EARLIER: "",
}
MARKS = {GIVEN: "=", ACCEPTED: "+", REPLACED: "x", UNVERIFIED: "?", MASKED: " ", EARLIER: " "}
REJECTED_STYLE = "red strike"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A position of the canvas during one pass.

    Attributes:
        text: the token, or the mask symbol.
        kind: what this pass did: given, accepted, replaced, unverified, still masked, or revealed earlier.
        rejected: the draft that was rejected here in this pass, "" where none.
    """

    text: str
    kind: int
    rejected: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """The canvas after one trunk pass; pass 0 is the prompt alone.

    Attributes:
        number: of the pass.
        rounds: verify rounds in it.
        nfe: function evaluations spent so far.
        cells: one a position, in sequence order.
    """

    number: int
    rounds: int
    nfe: float
    cells: tuple[Cell, ...]


def visible(text: str) -> str:
    """A token's text on one line: line feeds and other control characters as symbols."""
    return "".join(symbol if symbol.isprintable() else "⏎" if symbol == "\n" else "�" for symbol in text) or "∅"


def one_row(result: SampleResult, tokenizer: Tokenizer, row: int) -> SampleResult:
    """A row by itself, as NumPy arrays `[1, ...]`, without the padding behind its end."""
    one = jax.tree.map(lambda values: np.asarray(values)[row : row + 1], result)
    # Padding holds the mask id; its positions and its tracks come last.
    length = int(np.sum(one.tokens < tokenizer.num_tokens))
    return jax.tree.map(lambda values: values[:, :length] if values.ndim == 2 else values, one)


def frames(
    result: SampleResult, tokenizer: Tokenizer, trunk_cost: float, verify_cost: float, *, row: int = 0
) -> Iterator[Frame]:
    """The history of one row.

    Args:
        result: samples of `speculative.sample` or `ancestral.sample`.
        tokenizer: of the model.
        trunk_cost: NFE of a trunk pass.
        verify_cost: NFE of a verify round.
        row: which row.

    Yields:
        Pass 0, the prompt, where there is one, and then every pass.
    """
    one = one_row(result, tokenizer, row)
    order, status, rejected = one.order[0], one.status[0], one.rejected_token[0]
    piece = lambda token: visible(tokenizer.decode([token]))
    pieces = [piece(token) for token in one.tokens[0]]
    kinds = np.full(len(order), MASKED)
    cells = lambda: tuple(
        Cell(MASK_SYMBOL if kind == MASKED else text, int(kind)) for text, kind in zip(pieces, kinds, strict=True)
    )
    given = order[status == GIVEN]
    if len(given):
        kinds[given] = GIVEN
        yield Frame(0, 0, 0.0, cells())
    history, nfe = split_passes(one), 0.0
    for number, (_, start, end, rounds) in enumerate(zip(*history, strict=True), start=1):
        kinds[(kinds != MASKED) & (kinds != GIVEN)] = EARLIER
        kinds[order[start:end]] = status[start:end]
        shown = list(cells())
        for track in range(start, end):
            if status[track] == REPLACED:
                position = order[track]
                shown[position] = dataclasses.replace(shown[position], rejected=piece(rejected[track]))
        nfe += trunk_cost + int(rounds) * verify_cost
        yield Frame(number, int(rounds), nfe, tuple(shown))


def show(
    console: Console,
    result: SampleResult,
    tokenizer: Tokenizer,
    trunk_cost: float,
    verify_cost: float,
    *,
    row: int = 0,
) -> None:
    """Prints the history of one row: in colours where the console has them, with marks under the tokens elsewhere.

    Args:
        console: where to; `NO_COLOR` and redirection are its business.
        result, tokenizer, trunk_cost, verify_cost, row: as in `frames`.
    """
    colour = console.is_terminal and not console.no_color
    write = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    write(_legend(colour))
    for frame in frames(result, tokenizer, trunk_cost, verify_cost, row=row):
        fresh = sum(cell.kind in (ACCEPTED, REPLACED, UNVERIFIED) for cell in frame.cells)
        write(
            f"pass {frame.number}: {frame.rounds} rounds, {fresh} revealed, {frame.nfe:.2f} NFE"
            if frame.number
            else "prompt"
        )
        for line in _lines(frame.cells, max(console.width - 2, 8), colour):
            write(line)
    write("sample")
    write("  " + tokenizer.decode(one_row(result, tokenizer, row).tokens[0]))


def _legend(colour: bool) -> Text:
    entries = [(GIVEN, "given"), (ACCEPTED, "accepted"), (REPLACED, "replacement"), (UNVERIFIED, "unverified")]
    legend = Text()
    for kind, name in entries:
        if colour and kind == REPLACED:
            legend.append("rejected", REJECTED_STYLE)
        legend.append(name if colour else f"{MARKS[kind]} {name}", STYLES[kind] if colour else "")
        legend.append("  ")
    return legend + Text(f"{MASK_SYMBOL} masked")


def _lines(cells: tuple[Cell, ...], width: int, colour: bool) -> Iterator[Text]:
    """The canvas in lines of at most `width` columns (a single token may be longer)."""
    line, used = [], 0
    for cell in cells:
        size = len(cell.text) + (len(cell.rejected) if colour else 0)
        if line and used + size > width:
            yield from _line(line, colour)
            line, used = [], 0
        line.append(cell)
        used += size
    yield from _line(line, colour)


def _line(cells: list[Cell], colour: bool) -> Iterator[Text]:
    if colour:
        text = Text("  ")
        for cell in cells:
            text.append(cell.rejected, REJECTED_STYLE)
            text.append(cell.text, STYLES[cell.kind])
        yield text
        return
    yield Text("  " + "".join(cell.text for cell in cells))
    marks = "".join(MARKS[cell.kind] * len(cell.text) for cell in cells).rstrip()
    if marks:
        yield Text("  " + marks)
    replaced = [f"{cell.rejected!r} -> {cell.text!r}" for cell in cells if cell.rejected]
    if replaced:
        yield Text("  rejected: " + ", ".join(replaced))
