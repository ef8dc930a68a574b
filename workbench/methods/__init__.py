"""The methods: one file each, found by looking into this folder.

A method file has a docstring (source, idea, what differs), a frozen dataclass `Options` whose fields are annotated with
`Option`, and `build(options) -> Method`. Nothing has to be registered anywhere.
"""

import dataclasses
import importlib
import pkgutil
import types
import typing
from types import ModuleType

from workbench.errors import ConfigError, unknown
from workbench.method import Method, Option


def list_methods() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def method_module(name: str) -> ModuleType:
    """The file of a method. Raises ConfigError for an unknown name."""
    if name not in list_methods():
        raise ConfigError(unknown("method", name, list_methods()))
    return importlib.import_module(f"{__name__}.{name}")


def describe_options(name: str) -> dict[str, tuple[type, object, Option]]:
    """Of each option of a method: its type, its default and its description. Forms and help texts are made of it."""
    options_class = method_module(name).Options
    hints = typing.get_type_hints(options_class, include_extras=True)
    described = {}
    for field in dataclasses.fields(options_class):
        value_type, option = typing.get_args(hints[field.name])
        described[field.name] = (value_type, field.default, option)
    return described


def load_method(name: str, options: dict[str, object] | None = None) -> Method:
    """The method `name` with `options` in place of its defaults.

    Raises: ConfigError for an unknown method or option, and for a value of the wrong type or out of range.
    """
    described = describe_options(name)
    values = {}
    for key, value in (options or {}).items():
        if key not in described:
            raise ConfigError(unknown(f"option of method {name}", key, described))
        values[key] = _checked(f"method.{key}", value, *described[key][::2])
    chosen = method_module(name).Options(**values)
    return dataclasses.replace(method_module(name).build(chosen), options=chosen)


def _checked(key: str, value: object, value_type: type, option: Option) -> object:
    """The value as `value_type`, inside the option's range."""
    allowed = typing.get_args(value_type) if isinstance(value_type, types.UnionType) else (value_type,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
        raise ConfigError(f"{key} must be {names}, got {value!r}. {option.help}")
    if option.choices and value not in option.choices:
        raise ConfigError(unknown(key, str(value), option.choices))
    too_low = option.low is not None and value < option.low
    too_high = option.high is not None and value > option.high
    if too_low or too_high:
        low, high = ("-" if limit is None else f"{limit:g}" for limit in (option.low, option.high))
        raise ConfigError(f"{key} must be in [{low}, {high}], got {value}. {option.help}")
    return value
