"""What all programs share: flags, one sentence for bad input, one line of JSON at the end.

Progress goes to standard error. Standard output ends with one line of JSON. Bad input ends in one sentence on standard
error and exit status 1; `--debug` shows the traceback instead. Ctrl-C is status 130. Of several processes the first
alone prints results.
"""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from jax.errors import JaxRuntimeError

from ssmd_jax.training import distributed

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error that is otherwise one sentence.")

# What bad input raises. Anything else is a fault of ours and keeps its traceback.
BAD_INPUT = (ValueError, OSError, ArithmeticError, ImportError)


def sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    missing = re.search(r"config file .*No such file or directory: '(.*?)'", text)
    if missing:  # config_flags wraps it three times
        return f"config file {missing[1]} does not exist; the experiments are in configs/"
    return text or type(error).__name__


def _flag_sentence(error: Exception) -> str:
    if isinstance(error, AttributeError | KeyError):
        # ml_collections passes the repr of a KeyError on: a quoted string with its line feed spelt out.
        return "config has no field " + sentence(error).replace("\\n", "; ").replace("\\'", "").strip("'\"")
    return sentence(error)


def _fail(text: str) -> None:
    # The sentence is the last word: what threads and unfinished saves complain of at exit would follow it.
    sys.unraisablehook = threading.excepthook = lambda _: None
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
    # Config files are read while flags are parsed, and whatever they do wrong comes out here: SystemExit is --help.
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}: all options are --flags")
    except Exception as error:
        if "--debug" in argv:
            raise
        _fail(_flag_sentence(error))
    return rest


def finish(result: dict[str, Any], status: int) -> None:
    """Prints the result as the last line of standard output and leaves with another exit status than 0."""
    if distributed.is_first():
        print(json.dumps(result), flush=True)
    sys.exit(status)


def run(
    main: Callable[[], dict[str, Any] | None],
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Runs a program: parses flags, calls `main()`, prints the result as the last line of standard output.

    Args:
        main: returns what to print as JSON, or None for nothing.
        around: makes the context that `main` runs in, once flags are known; it sees how the program ends.
    """

    def wrapped(_argv):
        # Orbax tells every step of every save; what the user should know is printed by ourselves.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(around())
                result = main()
            except KeyboardInterrupt:
                sys.exit(130)
            except BAD_INPUT as error:
                if _DEBUG.value:
                    raise
                _fail(sentence(error))
            except JaxRuntimeError as error:
                if _DEBUG.value or not distributed.is_shared():
                    raise
                _fail(distributed.lost_sentence(error))
            if result is not None and distributed.is_first():
                print(json.dumps(result), flush=True)

    jax.config.config_with_absl()
    app.run(wrapped, flags_parser=_parse)
