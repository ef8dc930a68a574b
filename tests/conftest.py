"""Shared by all tests: small real models on disk, made once."""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the suite may reach for a network
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student and a teacher with random weights: real Idefics3 models, tiny, in folders as save_pretrained leaves them."""
    from families import save_idefics3  # noqa: PLC0415  (transformers is heavy; most tests do not need it)

    folder = tmp_path_factory.mktemp("models")
    return {"student": save_idefics3(folder / "student", 0), "teacher": save_idefics3(folder / "teacher", 1)}
