"""Every error a user can meet.

    WorkbenchError
    ├── ConfigError   (ValueError)    a key, option or value of a configuration
    ├── DataError     (ValueError)    a file, row, column, image or box of the data
    ├── PolicyError   (RuntimeError)  a model, processor, tokenizer or template
    ├── TraceError    (RuntimeError)  a trace that is missing, torn or of another schema
    └── RunError      (RuntimeError)  a run folder, a checkpoint, a loss that is not a number

A message says what is wrong, the value, where it is, what is allowed and what to do.
"""

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Iterator


class WorkbenchError(Exception):
    """Base of all errors that are the user's to read; the command line prints it without a traceback.

    loud  said by this process although it is not the first of its run
    """

    loud = False


class ConfigError(WorkbenchError, ValueError):
    """A configuration names something unknown or gives a value that is not allowed."""


class DataError(WorkbenchError, ValueError):
    """An example cannot be read or lacks what the method needs; names file, row and column."""


class PolicyError(WorkbenchError, RuntimeError):
    """A model, its processor or its tokenizer does not fit the task."""


class TraceError(WorkbenchError, RuntimeError):
    """A trace cannot be read or written."""


class RunError(WorkbenchError, RuntimeError):
    """A run folder or a checkpoint is not usable, or training cannot go on."""


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Whatever error is met inside begins with the place."""
    try:
        yield
    except WorkbenchError as error:
        raise type(error)(f"{where}: {error}") from None


def show(value: object) -> str:
    """A value as messages quote it, cut if long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__}"


def cut(text: object, length: int = 80) -> str:
    """A text as messages show it between their own quotes: cut if long, signs that do not print as escapes."""
    text = str(text)
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not known: the value, what is allowed, the nearest name."""
    allowed = sorted(allowed)
    value = cut(value)
    near = difflib.get_close_matches(value, allowed, n=3)
    # letters that changed places behind the first come before one that is missing
    near.sort(key=lambda name: (name[:1], sorted(name)) != (value[:1], sorted(value)))
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'{what} "{value}" is unknown. Allowed: {", ".join(allowed) or "none"}.{hint}'
