"""Compose a vision-language model of a text model, a vision tower and a connector: Idefics3, SmolVLM's first class.

The text model keeps its weights and vocabulary. Four tokens follow its vocabulary: those with which Idefics3Processor
writes an image. Their embeddings are copies of control tokens' that no text has, so that the model does not write them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from workbench.errors import PolicyError

WEIGHTS, RECORD = "parts.safetensors", "parts.json"
IMAGE_TOKENS = ("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>")
_ANSWER_TOKENS = 64  # the longest description of a scene has about as many
_UNUSED = "<jupyter_script>"  # a control token of SmolLM2 that chat has no use for
# As SmolLM2's own, but its system prompt is written only if the conversation has no image. 22 tokens fewer for each.
CHAT_TEMPLATE = (
    "{% set shown = namespace(image=false) %}{% for message in messages %}{% if message['content'] is not string %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set shown.image = true %}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' and not shown.image %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def graft_vision(
    text_model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, vision: dict, scale_factor: int
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Give a text model a vision tower and a connector, both with random weights, and its tokenizer an image processor.

    vision        fields of Idefics3VisionConfig: image_size and patch_size in pixels, widths, layers
    scale_factor  this many by this many patches become one image token

    Adds tokens to the tokenizer and rows to the text model's embeddings, in place.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)}, replace_extra_special_tokens=False)
    text_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings = text_model.get_input_embeddings().weight.data
    embeddings[-len(IMAGE_TOKENS) :] = embeddings[tokenizer.convert_tokens_to_ids(_UNUSED)]
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = Idefics3Config(
        text_config=text_model.config.to_dict(),
        vision_config=vision,
        scale_factor=scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        **ends,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.model.text_model.load_state_dict(text_model.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(max_new_tokens=_ANSWER_TOKENS, **ends)
    size = {"longest_edge": vision["image_size"]}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False, resample=1)
    tokenizer.padding_side = "left"
    count = (vision["image_size"] // vision["patch_size"] // scale_factor) ** 2
    return model, Idefics3Processor(images, tokenizer, image_seq_len=count, chat_template=CHAT_TEMPLATE)


def read_record(folder: Path, base: Path) -> dict[str, Any]:
    """Read what data/smolvlm.py recorded, and check that the parts are whole and fit the text model's file.

    Raises: PolicyError if the base is another file than that of training, or the parts are damaged.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    for file, wanted in ((base, record["base_sha256"]), (folder / WEIGHTS, record["sha256"])):
        if (digest := file_digest(file)) != wanted:
            raise PolicyError(
                f'"{file}" has the SHA-256 {digest}; {folder / RECORD} names {wanted}, so the trained parts do not fit '
                "it. Install the package's version of constraints.txt, or the workbench again."
            )
    return record


def add_parts(
    text_model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, record: dict[str, Any]
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Add the tower, connector and LoRA of a folder to a text model in float32, and merge the LoRA into its weights.

    record  of `read_record`

    Raises: PolicyError if the weights do not fit the tower that the record describes.
    """
    model, processor = graft_vision(text_model, tokenizer, record["vision"], record["scale_factor"])
    weights = {name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()}
    lora = {name for name in weights if name.startswith("text_model.")}
    for name in sorted(name for name in lora if name.endswith(".lora_A")):
        module = name.removesuffix(".lora_A")
        layer = model.model.get_submodule(module)
        layer.weight.data += record["lora_scale"] * weights[f"{module}.lora_B"] @ weights[name]
    rest = {name: weight for name, weight in weights.items() if name not in lora}
    lacking = model.model.load_state_dict(rest, strict=False)
    if lacking.unexpected_keys or any(not name.startswith("text_model.") for name in lacking.missing_keys):
        raise PolicyError(f'"{folder / WEIGHTS}" does not fit the vision tower that {RECORD} describes.')
    return model, processor


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
