"""The methods, one file each; the registry is this folder.

A method file has a docstring (source, idea, differences), a frozen dataclass `Options` whose fields are annotated with
`Option`, and `build(options) -> Method`. A new file needs no registration.
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
import typing
from types import ModuleType, UnionType

from workbench.distill.method import Method, Option, check_option
from workbench.errors import ConfigError, require_one_of, unknown


def list_methods() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def method_module(name: str) -> ModuleType:
    """Import the file of a method. Raises ConfigError for an unknown name."""
    module = f"{__name__}.{name}"
    if module not in sys.modules and name not in list_methods():
        raise ConfigError(unknown("method", name, list_methods()))
    return importlib.import_module(module)


def describe_options(name: str) -> dict[str, tuple[type | UnionType, object, Option]]:
    """Type, default and description of each option of a method, for forms and help texts."""
    return dict(_described(method_module(name).Options))


@functools.cache
def _described(options_class: type) -> dict[str, tuple[type | UnionType, object, Option]]:
    hints = typing.get_type_hints(options_class, include_extras=True)
    described = {}
    for field in dataclasses.fields(options_class):
        value_type, option = typing.get_args(hints[field.name])
        described[field.name] = (value_type, field.default, option)
    return described


def load_method(name: str, options: dict[str, object] | None = None) -> Method:
    """Build the method `name` with `options` in place of its defaults.

    Raises: ConfigError for an unknown method or option, and for a value of the wrong type or out of range.
    """
    described = describe_options(name)
    values = {}
    for key, value in (options or {}).items():
        require_one_of(f"option of method {name}", key, described)
        values[key] = check_option(f"method.{key}", value, *described[key][::2])
    chosen = method_module(name).Options(**values)
    return dataclasses.replace(method_module(name).build(chosen), options=chosen)
