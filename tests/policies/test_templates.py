"""The chat template of a model is found wherever it lies, and is given content in the form that it takes."""

import json
import shutil
from pathlib import Path

import pytest
from failures import raises
from families import TEMPLATE, TEXT_FAMILIES
from small import picture
from transformers import AutoProcessor

from workbench.errors import ConfigError, PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policies, load_policy
from workbench.types import Prompt, Turn

OF_TEXT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PRINTS = OF_TEXT.replace("message['role'] + ': ' + message['content']", "message['role'] ~ ': ' ~ message['content']")
PLACES = ["jinja", "tokenizer_config", "named in tokenizer_config", "chat_template.json", "processor_config"]


def moved(source: Path, folder: Path, position: str, template: str | None = None) -> Path:
    """The model with its template where other tools leave it."""
    shutil.copytree(source, folder)
    template = template or (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if position == "jinja":
        (folder / "chat_template.jinja").write_text(template)
        return folder
    value = template
    if position.startswith("named"):
        value = [{"name": "default", "template": template}, {"name": "tool_use", "template": "tools"}]
    file = folder / ("chat_template.json" if position == "chat_template.json" else f"{position.split()[-1]}.json")
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | {"chat_template": value}))
    return folder


def text_of(policy: AutoregressivePolicy, prompt: Prompt) -> str:
    return policy.tokenizer.decode(policy.encoder.encode(prompt)["input_ids"][0])


@pytest.mark.parametrize("position", PLACES)
@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen3_vl"])
def test_chat_template_is_found_in_every_place(family: str, position: str, folders: dict, tmp_path: Path) -> None:
    prompt = Prompt((picture(1),), "what is this?")
    wanted = text_of(load_policy(folders[family], "student"), prompt)
    policy = load_policy(moved(folders[family], tmp_path / "model", position), "student")
    assert text_of(policy, prompt) == wanted and "assistant" in wanted
    policy.processor.save_pretrained(tmp_path / "saved")  # as a checkpoint and an export are
    assert (tmp_path / "saved/chat_template.jinja").read_text() == policy.processor.chat_template


@pytest.mark.parametrize("template", [OF_TEXT, PRINTS])
@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_text_template_gets_text_content(family: str, template: str, folders: dict, tmp_path: Path) -> None:
    """By hand: the pictures' tokens, then the question, as the processor expands them."""
    folder = moved(folders[family], tmp_path / "model", "tokenizer_config", template)
    prompt = Prompt((picture(1),), "what is this?", (Turn("user", "red", (picture(2),)), Turn("assistant", "yes")))
    policy = load_policy(folder, "student")
    processor = AutoProcessor.from_pretrained(folder)
    token = processor.boi_token if family == "gemma3" else processor.image_token
    text = f"<bos>user: {token}red\nassistant: yes\nuser: {token}what is this?\nassistant:"
    images = [[picture(2), picture(1)]]
    wanted = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    encoded = policy.encoder.encode(prompt)
    assert encoded["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert (encoded["pixel_values"] == wanted["pixel_values"]).all()


def test_tokenizer_template_of_parts_gets_parts(folders: dict, tmp_path: Path) -> None:
    folder = moved(folders["llava"], tmp_path / "model", "tokenizer_config", TEMPLATE.replace("IMAGE", "<image>"))
    policy = load_policy(folder, "student")
    alone = AutoregressivePolicy(policy.model, policy.tokenizer, "student")
    assert text_of(alone, Prompt((), "what is this?")).startswith("<bos>user: what is this?")


def test_chat_template_that_loses_question_raises(folders: dict, tmp_path: Path) -> None:
    folder = moved(folders["llava"], tmp_path / "model", "jinja", "{{ bos_token }}user: assistant:")
    with raises(PolicyError, "chat template", "question"):
        load_policy(folder, "student")


def test_several_chat_templates_without_default_raise(folders: dict, tmp_path: Path) -> None:
    folder = moved(folders["llava"], tmp_path / "model", "tokenizer_config")
    file = folder / "tokenizer_config.json"
    named = [{"name": name, "template": TEMPLATE} for name in ("one", "two")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    with raises(PolicyError, "processor", "chat templates"):
        load_policy(folder, "student")


THINKS = OF_TEXT + "{% if enable_thinking is defined and not enable_thinking %}<none>{% endif %}"


@pytest.mark.parametrize("template", [THINKS, THINKS.replace("['content']", "['content'][0]['text']")])
@pytest.mark.parametrize("family", ["llava", "qwen3"])
def test_system_prompt_and_arguments_render_in_every_form(family: str, template: str, folders: dict, tmp_path) -> None:
    source = folders[family] if family in folders else TEXT_FAMILIES[family](tmp_path / "text")
    if not (source / "chat_template.jinja").is_file():
        (source / "chat_template.jinja").write_text(template)
    folder = moved(source, tmp_path / "model", "jinja", template)
    policy = load_policy(folder, "student", system_prompt="be brief", chat_template_kwargs={"enable_thinking": False})
    prompt_text = text_of(policy, Prompt((), "what is this?"))
    assert prompt_text.replace(" ", "").endswith("system:bebrief\nuser:whatisthis?\nassistant:<none>")
    of_its_own = Prompt((), "what is this?", (Turn("system", "be long"), Turn("user", "a"), Turn("assistant", "b")))
    assert "brief" not in text_of(policy, of_its_own)
    text, ids, _ = policy.encoder.request(Prompt((), "what is this?"))  # as a rollout engine gets it
    assert list(ids) == policy.encoder.encode(Prompt((), "what is this?"))["input_ids"][0].tolist()
    assert text.endswith("<none>")


def test_template_argument_not_read_names_those_that_are(folders: dict, tmp_path: Path) -> None:
    folder = moved(folders["llava"], tmp_path / "model", "jinja", THINKS)
    with raises(ConfigError, "student", "enable_thinkin", 'mean "enable_thinking"'):
        load_policy(folder, "student", chat_template_kwargs={"enable_thinkin": False})
    for unread in ("content", "bos_token", "message", "raise_exception"):  # words of the template
        with raises(ConfigError, "student", unread, "Allowed: enable_thinking"):
            load_policy(folder, "student", chat_template_kwargs={unread: "x"})
    with raises(ConfigError, "student", "enable_thinking", "Allowed: none. Remove it."):
        load_policy(folders["llava"], "student", chat_template_kwargs={"enable_thinking": False})
    with raises(ConfigError, "teacher", "Remove it.", "models.teacher_chat_template_kwargs"):
        load_policy(folders["llava"], "teacher", chat_template_kwargs={"enable_thinking": False})
    with raises(ConfigError, "messages"):
        load_policy(folder, "student", chat_template_kwargs={"messages": []})


def test_template_argument_of_assistant_text_or_with_default_is_read(folders: dict, tmp_path: Path) -> None:
    default = "{% if style is not defined %}{% set style = 'plain' %}{% endif %}"
    text = "{% for _ in [1] %}{% generation %}{{ style }}{{ name }}{% endgeneration %}{% break %}{% endfor %}"
    folder = moved(folders["llava"], tmp_path / "model", "jinja", default + TEMPLATE.replace("IMAGE", "<image>") + text)
    policy = load_policy(folder, "student", chat_template_kwargs={"style": "brief", "name": "me"})
    assert text_of(policy, Prompt((), "what?")).replace(" ", "").endswith("assistant:briefme")


def test_system_prompt_not_rendered_is_refused(folders: dict, tmp_path: Path) -> None:
    only_users = OF_TEXT.replace("in messages", "in messages if message['role'] != 'system'")
    refuses = OF_TEXT.replace(
        "{{ bos_token }}", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    for template, words in ((only_users, "drops"), (refuses, "no system")):
        folder = moved(folders["llava"], tmp_path / words[:2], "jinja", template)
        with raises(ConfigError, "models.system_prompt", words):
            load_policy(folder, "student", system_prompt="be brief")
    with raises(ConfigError, "models.system_prompt", "<image>"):
        load_policy(folders["llava"], "student", system_prompt="see <image>")


def test_teacher_own_system_prompt_reaches_teacher_alone(models: dict) -> None:
    policies = load_policies(("teacher",), **models, teacher_options={"system_prompt": "be brief"})
    texts = {name: text_of(policy, Prompt((), "what is this?")) for name, policy in policies.items()}
    assert "brief" in texts["teacher"] and "brief" not in texts["student"]
