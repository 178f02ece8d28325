"""Where progress goes: standard error, since standard output is for results."""

import sys


def say(text: str) -> None:
    """Prints lines to standard error at once."""
    print(text, file=sys.stderr, flush=True)
