"""The answer in a text: a number or a letter, by the protocol of DualDiffusion's evaluation, commas normalised."""

import decimal
import re

LETTERS = "ABCD"
# A minus belongs to a number unless it stands between two, as in 16-3. Commas must group thousands.
_SIGN, _DIGITS = r"(?:(?<![\w.)])[-+\u2212])?", r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+"
_NUMBER = rf"{_SIGN}(?:\$[-\u2212]?)?(?:{_DIGITS})"
_ANSWER_NUMBER = re.compile(rf"answer:\s*({_NUMBER})", re.IGNORECASE)
_ANY_NUMBER = re.compile(_NUMBER)
_ANSWER_LETTER = re.compile(rf"answer:\s*\(?([{LETTERS}])\b", re.IGNORECASE)
_BARE_LETTER = re.compile(rf"\(?([{LETTERS}])\)?\.?", re.IGNORECASE)


def canonical(number: str) -> str:
    """One writing for equal numbers: no commas, no currency, no plus, no zeros behind the last decimal.

    Args:
        number: as GSM8K writes its answers, or as `_NUMBER` finds it.

    Raises:
        ValueError: where it is no number.
    """
    plain = number.strip().replace(",", "").replace("$", "").replace("\u2212", "-")
    try:
        value = decimal.Decimal(plain)
    except decimal.InvalidOperation:
        raise ValueError(f"{number!r} is not a number") from None
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def number(text: str) -> str | None:
    """The number behind the first "Answer:" that has one, or the last number of the text; None where there is none."""
    found = _ANSWER_NUMBER.search(text)
    if found:
        return canonical(found[1])
    every = _ANY_NUMBER.findall(text)
    return canonical(every[-1]) if every else None


def letter(text: str) -> str | None:
    """The letter behind the first "Answer:" that has one, or the last line that is not empty if it is a bare letter."""
    found = _ANSWER_LETTER.search(text)
    if not found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        found = _BARE_LETTER.fullmatch(lines[-1]) if lines else None
    return found[1].upper() if found else None
