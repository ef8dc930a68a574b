"""The checks of annotations that the suite puts on every function of the package."""

from collections.abc import Callable

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from shapes import check, jaxtyped
from torch import Tensor

from workbench.distill.divergences import forward_kl


def checked(function: Callable) -> Callable:
    return jaxtyped(function, typechecker=check)


@checked
def add(left: Float[Tensor, "B T"], right: Float[Tensor, "B T"], scale: float = 1.0) -> Float[Tensor, "B T"]:
    return scale * (left + right)


@checked
def transpose(values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return values.T


@checked
def repeat(value: int, count: int) -> Float[Tensor, "{count}"]:  # noqa: F821
    return torch.full((value,), 1.0)


def test_dimension_of_two_sizes_raises() -> None:
    assert add(torch.ones(2, 3), torch.ones(2, 3), scale=2).tolist() == [[4.0] * 3] * 2
    for wrong in (torch.ones(3, 3), torch.ones(2, 3).double().int(), torch.ones(3)):
        with pytest.raises(BeartypeCallHintViolation):
            add(torch.ones(2, 3), wrong)
    with pytest.raises(BeartypeCallHintViolation):
        transpose(torch.ones(2, 3))
    assert transpose(torch.ones(2, 2)).shape == (2, 2), "a scope ends with its call"


def test_dimension_named_by_argument_raises() -> None:
    assert repeat(2, 2).shape == (2,)
    with pytest.raises(TypeCheckError):
        repeat(2, 3)


def test_function_of_package_is_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 4))
