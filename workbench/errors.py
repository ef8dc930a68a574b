"""All errors for the user.

    WorkbenchError
    ├── ConfigError   (ValueError)    a key, option or value of a configuration
    ├── DataError     (ValueError)    a file, row, column, image or box of the data
    ├── PolicyError   (RuntimeError)  a model, processor, tokenizer or template
    │   ├── PromptTooLongError        a prompt of more tokens than fit
    │   └── UnavailableError          a server that does not answer, or has another model now
    ├── TraceError    (RuntimeError)  a trace that is missing, truncated or of another schema
    └── RunError      (RuntimeError)  a run folder, a checkpoint, a loss that is not a number

A message states what is wrong, the value, its place, what is allowed, and the remedy.
"""

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Iterator


class WorkbenchError(Exception):
    """Base of all errors for the user; the command line prints them without a traceback.

    print_anyway  print the error although this process is not rank 0
    """

    print_anyway = False


class ConfigError(WorkbenchError, ValueError):
    """A configuration names something unknown or gives a value that is not allowed."""


class DataError(WorkbenchError, ValueError):
    """An example cannot be read or lacks a column that the method needs; the message names file, row and column."""


class PolicyError(WorkbenchError, RuntimeError):
    """A model, its processor or its tokenizer does not fit the task."""


class PromptTooLongError(PolicyError):
    """A prompt has more tokens than the models' context or data.max_prompt_length leaves."""


class UnavailableError(PolicyError):
    """A server of a model does not answer, or has another model now. A run can be resumed when it is back."""


class TraceError(WorkbenchError, RuntimeError):
    """A trace cannot be read or written."""


class RunError(WorkbenchError, RuntimeError):
    """A run folder or a checkpoint is not usable, or training cannot continue."""


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Prefix the message of a WorkbenchError raised inside with `where`."""
    try:
        yield
    except WorkbenchError as error:
        raise type(error)(f"{where}: {error}") from None


def show(value: object) -> str:
    """Quote a value for a message: its repr, at most 80 characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return f"a {type(value).__name__}"


def cut(text: object, length: int = 80) -> str:
    """Shorten a text for a message to `length` characters and escape unprintable ones; the caller adds quotes."""
    text = str(text)
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """Message for an unknown name: the value, the allowed names and the nearest one; without any, to remove it."""
    allowed = sorted(allowed)
    value = cut(value)
    section = "".join(value.rpartition(".")[:2])  # equal in all names of a section, so it makes none of them nearer
    if not any(name.startswith(section) for name in allowed):
        section = ""
    leaves = [name.removeprefix(section) for name in allowed if name.startswith(section)]
    near = [section + name for name in difflib.get_close_matches(value.removeprefix(section), leaves, n=3)]
    # prefer a name with the same letters in another order
    near.sort(key=lambda name: (name[:1], sorted(name)) != (value[:1], sorted(value)))
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'{what} "{value}" is unknown. Allowed: {", ".join(allowed) or "none. Remove it"}.{hint}'


def require_one_of(what: str, value: object, allowed: Iterable[str], error: type[WorkbenchError] = ConfigError) -> None:
    """Raise `error` with the message of `unknown` if the value is not an allowed name."""
    allowed = list(allowed)
    if value not in allowed:
        raise error(unknown(what, value, allowed))
