"""Errors are asserted by their type and by what they name, not by their wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises(kind: type[Exception], *names: str) -> Iterator[pytest.ExceptionInfo]:
    """An error of this type is raised, and its message names each of these: keys, values, paths, commands."""
    with pytest.raises(kind) as caught:
        yield caught
    assert not [name for name in names if name not in str(caught.value)], caught.value
