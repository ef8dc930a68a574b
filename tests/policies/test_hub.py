"""Names of models that are not here, without a hub."""

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from workbench.errors import PolicyError
from workbench.policies.hub import refuse_unreachable
from workbench.policies.models import load_model, load_model_processor, load_skeleton
from workbench.training.planning.models import read_config

NAME = "some-owner/misspelt-model"


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that refuses connections, as the hub's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return port


@pytest.mark.parametrize("load", [load_model, load_model_processor, load_skeleton, read_config])
def test_name_without_hub_is_refused_at_once(closed_port: int, load) -> None:
    start = time.monotonic()
    with pytest.raises(
        PolicyError, match=rf'student: cannot load "{NAME}": no folder here .*127.0.0.1:{closed_port} cannot'
    ):
        load(NAME, "student")
    assert time.monotonic() - start < 10  # the hub's client tries for more than twenty seconds


@pytest.mark.usefixtures("closed_port")
@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_name_behind_a_proxy_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    refuse_unreachable("student", NAME)


@pytest.mark.usefixtures("closed_port")
@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_folders_and_cached_models_need_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    refuse_unreachable("student", "here")
    refuse_unreachable("student", "a/path/of/a/missing/folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some-owner--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / file).write_text("{}")
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("abc")
    refuse_unreachable("student", "some-owner/cached")
    with pytest.raises(PolicyError, match="cannot be reached"):
        refuse_unreachable("student", NAME)
