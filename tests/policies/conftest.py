"""One small policy of each family, made once."""

from pathlib import Path

import pytest
from families import FAMILIES
from small import picture
from video_families import VIDEO_FAMILIES

from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.types import Prompt

ALL = FAMILIES | VIDEO_FAMILIES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in ALL.items()}


@pytest.fixture(scope="session", params=list(ALL))
def policy(request: pytest.FixtureRequest, folders: dict[str, Path]) -> AutoregressivePolicy:
    return load_policy(folders[request.param], "student")


@pytest.fixture(scope="session")
def idefics3(folders: dict[str, Path]) -> AutoregressivePolicy:
    return load_policy(folders["idefics3"], "student")


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Prompts of three lengths, with one image, with two of other shapes, and with one that is wide."""
    return [
        Prompt((picture(1),), "what is this?", key="one|plain"),
        Prompt((picture(2), picture(3, (30, 60))), "which of the two pictures is larger?", key="two|crop"),
        Prompt((picture(4, (90, 30)),), "red", key="three|plain"),
    ]
