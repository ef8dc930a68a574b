"""The checker of annotations that pytest switches on for the whole package: shapes, dtypes, plain types."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted for a float
_jaxtyped = jaxtyping.jaxtyped


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation and everything inside its brackets."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from parts(argument)


def has_shapes(function: Callable) -> bool:
    """Whether an annotation of a function names the dimensions of an array, or cannot be read yet."""
    return any(
        isinstance(part, str) or (inspect.isclass(part) and issubclass(part, jaxtyping.AbstractArray))
        for annotation in inspect.get_annotations(function).values()
        for part in parts(annotation)
    )


def jaxtyped(function: Any, *, typechecker: Callable) -> Any:
    """What the import hook puts on every function: a scope for the names of dimensions where there are any.

    A scope binds the arguments of each call, and checks them twice: a third of the time of a small run.
    """
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    return _jaxtyped(function, typechecker=typechecker) if has_shapes(function) else typechecker(function)


def install() -> None:
    """Before the first import of the package."""
    jaxtyping.jaxtyped = lambda *, typechecker: lambda function: jaxtyped(function, typechecker=typechecker)
