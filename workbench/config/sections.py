"""Build dataclasses of a configuration from plain values: every field with an Option is a key."""

import dataclasses
import typing
from typing import Annotated, Any

from workbench.distill.method import check_option
from workbench.errors import ConfigError, show, unknown


def build_section(section: Any, values: object, prefix: str = "") -> Any:
    """Build a dataclass from plain values of its fields that have an Option.

    prefix  of the keys in messages, such as "training."

    Raises: ConfigError for an unknown key, a value of the wrong type or out of range, or a missing value.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.')} must be a mapping of keys to values, got {show(values)}.".lstrip())
    hints = typing.get_type_hints(section, include_extras=True)
    is_key = {
        name: dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Annotated for name, hint in hints.items()
    }
    hints = {name: hint for name, hint in hints.items() if is_key[name]}
    built = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(unknown("key", f"{prefix}{key}", [f"{prefix}{name}" for name in hints]))
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            built[key] = build_section(hint, value, f"{prefix}{key}.")
        else:
            value_type, option = typing.get_args(hint)
            built[key] = check_option(f"{prefix}{key}", value, value_type, option)
    for entry in dataclasses.fields(section):
        needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if needed and not built.get(entry.name):
            raise ConfigError(
                f"{prefix}{entry.name} is missing. Meaning: {typing.get_args(hints[entry.name])[1].help}."
            )
    return section(**built)
