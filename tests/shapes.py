"""The checker of annotations that pytest switches on for the whole package: shapes, dtypes, plain types."""

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted for a float
_jaxtyped = jaxtyping.jaxtyped
_SCOPE = jaxtyping.jaxtyped("context")  # keeps its state outside itself, so that calls may share it


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation and everything inside its brackets."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from parts(argument)


def is_shape(part: Any) -> bool:
    """Whether a part of an annotation names the dimensions of an array."""
    return inspect.isclass(part) and issubclass(part, jaxtyping.AbstractArray)


def scoped(function: Callable, checked: Callable) -> Callable:
    """Give each call a scope, in which a dimension has one size. jaxtyping's own wrapper checks all arguments twice.

    checked  `function` with checks of its arguments and its result
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _SCOPE:
            return checked(*args, **kwargs)

    return call


def jaxtyped(function: Any, *, typechecker: Callable) -> Any:
    """What the import hook puts on every function: a scope for the names of dimensions where there are any.

    jaxtyping's own wrapper is kept for annotations that cannot be read yet or name the value of an argument.
    """
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    annotations = inspect.get_annotations(function).values()
    every = [part for annotation in annotations for part in parts(annotation)]
    if any(isinstance(part, str) or (is_shape(part) and "{" in part.dim_str) for part in every):
        return _jaxtyped(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__ and not any(map(is_shape, every)):
        return function  # the hook would build its checks anew in each call of the function around it
    checked = typechecker(function)
    return scoped(function, checked) if any(map(is_shape, every)) else checked


def install() -> None:
    """Before the first import of the package."""
    if sys.version_info < (3, 12):  # which keeps the attributes that a protocol asks for, in place of listing them anew
        typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)
    jaxtyping.jaxtyped = lambda *, typechecker: lambda function: jaxtyped(function, typechecker=typechecker)
