"""Prompts to tensors: kept by what they say and not by their name, refused with a sentence."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from failures import raises
from PIL import Image
from small import example, picture
from tokenizers.processors import TemplateProcessing

import workbench.policies.encoding
from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.errors import PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.encoding import PromptEncoder, collate
from workbench.types import Prompt, Turn


@pytest.fixture
def encoder(idefics3: AutoregressivePolicy) -> PromptEncoder:
    return PromptEncoder(idefics3.processor)


def text_of(encoder: PromptEncoder, encoded: dict) -> str:
    return encoder.tokenizer.decode(encoded["input_ids"][0])


def test_encode_has_one_start_token_and_image_tokens(encoder: PromptEncoder) -> None:
    ids = encoder.encode(Prompt((picture(1), picture(2)), "what is this?"))["input_ids"][0].tolist()
    assert ids.count(encoder.tokenizer.bos_token_id) == 1
    assert ids.count(encoder.tokenizer.convert_tokens_to_ids("<image>")) == 18  # nine for each
    assert encoder.tokenizer.decode(ids).endswith("what is this?<end_of_utterance><assistant>")


def test_encode_start_token_of_template_and_tokenizer_is_one(policy: AutoregressivePolicy, prompts: list) -> None:
    """Of every family, with a tokenizer that adds a start token; and an engine is handed the same tokens."""
    encoder_of_copy = PromptEncoder(copy.deepcopy(policy.processor))
    tokenizer, bos = encoder_of_copy.tokenizer, encoder_of_copy.tokenizer.bos_token
    if (
        encoder_of_copy.processor.chat_template
    ):  # PaliGemma has none: its processor writes the start token, and has the tokenizer add none
        start = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = start
        assert tokenizer("red")["input_ids"][0] == tokenizer.bos_token_id
    for prompt in prompts:
        assert encoder_of_copy.encode(prompt)["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1
        text, handed, images = encoder_of_copy.request(prompt)
        assert handed.count(tokenizer.bos_token_id) == bool(encoder_of_copy.processor.chat_template)
        assert len(images) == len(prompt.images) and prompt.text in text


def test_encode_prepares_images_once_for_all_texts(policy: AutoregressivePolicy, prompts: list) -> None:
    values, fresh = PromptEncoder(policy.processor), PromptEncoder(policy.processor)
    for prompt in prompts:
        for text in (prompt.text, "and now?"):
            requested = dataclasses.replace(prompt, text=text, key="")
            first, second = (
                values.encode(requested),
                fresh.encode(dataclasses.replace(requested, images=tuple(image.copy() for image in requested.images))),
            )
            assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    prepared, prepare = [], type(policy.processor.image_processor).preprocess
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(policy.processor.image_processor),
            "preprocess",
            lambda *settings, **options: prepared.append(1) or prepare(*settings, **options),
        )
        values.encode(dataclasses.replace(prompts[0], text="a third time", key=""))
        assert not prepared
        fresh.encode(dataclasses.replace(prompts[0], key=""))
    assert prepared


def test_picture_tokens_of_processor_that_requires_images_are_its_image_tokens(folders: dict[str, Path]) -> None:
    encoder = load_policy(folders["paligemma"], "student").encoder
    with pytest.raises(PolicyError):
        encoder.encode(Prompt((), "what is this?"))
    assert encoder.picture_tokens(Prompt((picture(1), picture(2)), "what is this?")) == 2 * 4


def test_encode_keeps_images_in_their_turn(encoder: PromptEncoder) -> None:
    turns = (Turn("user", "one", (picture(1),)), Turn("assistant", "yes"))
    prompt = Prompt((picture(2),), "two", turns)
    ids = encoder.encode(prompt)
    text = text_of(encoder, ids)
    assert [part.count("<image>") for part in text.split("<end_of_utterance>")] == [9, 0, 9, 0]
    single = [encoder.encode(Prompt((picture(position),), "x"))["pixel_values"][0, 0] for position in (1, 2)]
    assert torch.equal(ids["pixel_values"][0], torch.stack(single))


def test_encode_puts_history_before_question(encoder: PromptEncoder) -> None:
    turns = (Turn("system", "be short"), Turn("user", "hello"), Turn("assistant", "yes"))
    text = text_of(encoder, encoder.encode(Prompt((picture(1),), "and now?", turns)))
    places = [text.index(part) for part in ("be short", "hello", "yes", "<image>", "and now?")]
    assert places == sorted(places)


def test_encode_prompts_of_equal_name_stay_apart(encoder: PromptEncoder) -> None:
    prompt = Prompt((picture(1),), "one", key="1|plain")
    variants = [
        prompt,
        dataclasses.replace(prompt, text="another question"),
        dataclasses.replace(prompt, images=(picture(2),)),
        dataclasses.replace(prompt, history=(Turn("user", "hello"), Turn("assistant", "yes"))),
    ]
    kept = [encoder.encode(variant) for variant in variants]
    for variant, result in zip(variants, kept, strict=True):
        fresh = encoder.encode(dataclasses.replace(variant, key=""))
        assert all(torch.equal(result[name], fresh[name]) for name in fresh)


def test_encode_rows_of_two_files_without_ids_stay_apart(encoder: PromptEncoder, tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "a {name} question"}}\n')
    prompts = [build_prompt(load_examples(tmp_path / f"{name}.jsonl")[0], "plain") for name in ("train", "eval")]
    assert len({prompt.key for prompt in prompts}) == 2
    assert [
        f"a {name} question" in text_of(encoder, encoder.encode(prompt))
        for name, prompt in zip(("train", "eval"), prompts, strict=True)
    ] == [True, True]


def test_encode_equal_prompt_is_cached(encoder: PromptEncoder) -> None:
    first = encoder.encode(build_prompt(example(), "crop"))
    assert encoder.encode(build_prompt(example(), "crop")) is first


def test_encode_cache_drops_oldest_prompts(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.policies.encoding, "CACHE_BYTES", 300_000)  # two prompts of about 120 kB
    prompts = [Prompt((picture(n),), "what?", key=f"{n}|plain") for n in range(3)]
    first, *_, last = [encoder.encode(prompt) for prompt in prompts]
    assert encoder.encode(prompts[2]) is last
    assert encoder.encode(prompts[0]) is not first
    for _ in range(5):  # what replaces a prompt of the same name does not count twice
        for n in (1, 2):
            encoder.encode(Prompt((picture(n),), "same name", key="x|plain"))
    kept = encoder.encode(prompts[0])
    assert encoder.encode(prompts[0]) is kept


@pytest.mark.parametrize("where", ["question", "turn"])
@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<global-img>", "<bos>"])
def test_encode_special_token_as_text_raises(where: str, token: str, policy: AutoregressivePolicy) -> None:
    output = f"what is {token} here"
    prompt = Prompt((), output) if where == "question" else Prompt((), "what?", (Turn("user", output),))
    with raises(PolicyError, f'"{token}"'):
        policy.check_prompt(prompt)


def test_encode_too_long_prompt_raises_with_length(idefics3: AutoregressivePolicy) -> None:
    encoder = PromptEncoder(idefics3.processor, max_prompt_length=20)
    encoder.encode(Prompt((picture(1),), "what?"))
    with raises(PolicyError, "far|plain", "most 20"):
        encoder.encode(Prompt((picture(1), picture(2)), "what?", key="far|plain"))


def test_encode_error_of_chat_template_is_one_sentence(folders: dict) -> None:
    processor = load_policy(folders["idefics3"], "student").processor
    processor.chat_template = (
        "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
        "{% if messages | length > 1 %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    )
    before = (Turn("user", "hello"),)
    with raises(PolicyError, "7|plain"):
        PromptEncoder(processor).encode(Prompt((), "what?", before, key="7|plain"))


def test_encode_half_a_character_raises(encoder: PromptEncoder) -> None:
    with pytest.raises(PolicyError, match="prompt"):
        encoder.encode(Prompt((), "half \ud83d of one"))


def test_encode_image_of_any_shape_works_or_raises(policy: AutoregressivePolicy) -> None:
    for size in ((1, 1), (1, 900), (900, 1), (3, 500)):
        prompt = Prompt((Image.new("RGB", size, (9, 200, 30)),), "what?")
        try:
            policy.forward([prompt], [(300,)])
        except PolicyError as error:
            assert "cannot encode prompt" in str(error) or "tokens" in str(error)


def test_encode_image_for_language_model_raises(idefics3: AutoregressivePolicy) -> None:
    encoder = PromptEncoder(idefics3.tokenizer)
    assert encoder.encode(Prompt((), "what is this?"))["input_ids"].shape[0] == 1
    with raises(PolicyError, "1 image"):
        encoder.encode(Prompt((picture(1),), "what?"))


def test_collate_pads_ids_left_and_pixels_with_zeros() -> None:
    item = {
        "input_ids": torch.tensor([[5, 6]]),
        "attention_mask": torch.ones(1, 2).long(),
        "pixel_values": torch.ones(1, 1, 3),
    }
    two = {
        "input_ids": torch.tensor([[7, 8, 9]]),
        "attention_mask": torch.ones(1, 3).long(),
        "pixel_values": torch.ones(1, 2, 3),
        "token_type_ids": torch.tensor([[1, 1, 0]]),
    }
    batch = collate([item, two], pad_id=4)
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert batch["pixel_values"].shape == (2, 2, 3)
    assert batch["pixel_values"][0, 1].sum() == 0


def test_encode_template_with_other_image_count_raises(policy: AutoregressivePolicy) -> None:
    """A processor would else hand over pixels that no token stands for."""
    if policy.processor.chat_template is None:  # PaliGemma: the marks are placed by its processor
        return
    processor = copy.copy(policy.processor)
    processor.chat_template = (
        "{{ bos_token }}question:{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
    )
    with raises(PolicyError, "two|plain"):
        PromptEncoder(processor).encode(Prompt((picture(1), picture(2)), "what?", key="two|plain"))
