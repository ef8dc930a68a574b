"""What runs and servers send each other: safetensors with JSON facts in their header.

request   facts: the distinct prompts (turns, which pictures), the prompt and the length of each row, the passes
          tensors: `ids` of all answers end to end, `picture.0`, `picture.1`, ... as (height, width, 3) bytes
answer    facts: fingerprint of the model, checksums of each prompt's ids and pictures, as the server read them
          tensors: `hidden` (N, D), one row per answer token, in the server's precision
"""

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from workbench.policies import Completion, SamplingOptions
from workbench.policies.encoding import Encoded, image_inputs
from workbench.types import Prompt, Turn

PROTOCOL = 3
TEACHER, SAMPLER = "teacher", "sampler"  # kinds of servers, named after their commands
TEMPLATE = ("system_prompt", "chat_template_kwargs", "image_processor")  # how a run encodes prompts
DECODING = ("vocabulary", "stop_ids", "eos_ids", "never")  # how a run ends answers
# facts in /info that a run reads, with their types
INFO: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "class": str,
    "dtype": str,
    "engine": str,
    "versions": dict,
    "samples": bool,
    "fingerprint": str,
    "files": str,
    "vocabulary": int,
    "width": int,
    "context_length": (int, type(None)),
    "stop_ids": list,
    "has_head": bool,
    "head": dict,
    "differs": list,
}
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_FACTS = "facts"
# in transformers' files: how they were read, and which package resizes pictures (a run warns of other pixels)
_NOTES = ("is_local", "local_files_only", "name_or_path", "backend", "image_processor_type", "transformers_version")


class WireError(ValueError):
    """Bytes that are truncated, or not of this protocol."""


@dataclass(frozen=True)
class ReadRequest:
    """Rows to read: answers to prompts, each row with the index of its prompt.

    passes     rows of each forward pass
    template   how to encode prompts, by the names of TEMPLATE
    pixels     whether the answer has checksums of processed pictures
    """

    prompts: list[Prompt]
    rows: list[int]
    completions: list[tuple[int, ...]]
    passes: list[list[int]]
    template: dict[str, Any]
    pixels: bool = False


@dataclass(frozen=True)
class SampleRequest:
    """Prompts to answer, with the seeds of each one's answers.

    decoding  what ends an answer, and what is never sampled, by the names of DECODING
    version   of the weights that a sampler must have; "" = its own
    """

    prompts: list[Prompt]
    seeds: list[list[int]]
    options: SamplingOptions
    template: dict[str, Any]
    decoding: dict[str, Any]
    version: str = ""


@dataclass(frozen=True)
class Pin:
    """What a prompt was read as: checksums of token ids, of pictures as sent, and of pictures as processed."""

    ids: str
    length: int
    pictures: str
    pixels: str = ""


def pack(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Tensors and facts as a safetensors file. The package's own function copies the numbers three times, this once."""
    header: dict[str, Any] = {"__metadata__": {_FACTS: json.dumps(facts)}}
    parts, start = [], 0
    for name, value in tensors.items():
        data = memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy())
        end = start + len(data)
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        parts.append(data)
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def unpack(body: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of `pack`. Raises WireError for truncated or other bytes."""
    try:
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + size]) if size < len(body) else {}
        return safetensors.torch.load(body), json.loads(header["__metadata__"][_FACTS])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError(
            f"{len(body):,} bytes are not a complete message ({str(error) or type(error).__name__})"
        ) from None


def encoding_digest(files: dict[str, bytes]) -> str:
    """Digest of the files that encode prompts, by name: tokenizer, processor, chat template.

    Without the model's configuration, and without what a library notes of where and by what it read them.
    """
    digest = blake2b(digest_size=16)
    for name, data in sorted(files.items()):
        if name == "config.json":
            continue
        if name.endswith("_config.json"):
            data = json.dumps(_without_notes(json.loads(data)), sort_keys=True).encode()
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def _without_notes(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_notes(part) for key, part in value.items() if key not in _NOTES}


def pack_request(request: ReadRequest) -> bytes:
    """A request as bytes; equal picture objects are sent once."""
    tensors, prompts = _pack_prompts(request.prompts)
    tensors["ids"] = torch.tensor([token for ids in request.completions for token in ids], dtype=torch.int32)
    facts = {
        "protocol": PROTOCOL,
        "prompts": prompts,
        "rows": request.rows,
        "lengths": [len(ids) for ids in request.completions],
        "passes": request.passes,
        "template": request.template,
        "pixels": request.pixels,
    }
    return pack(tensors, facts)


def unpack_request(body: bytes) -> ReadRequest:
    """The request in a body. Raises WireError naming what is wrong."""
    with _parsing():
        tensors, facts = _message(body)
        prompts = _unpack_prompts(tensors, facts)
        rows, lengths, passes = facts["rows"], facts["lengths"], facts["passes"]
        completions = [tuple(ids.tolist()) for ids in tensors["ids"].long().split(lengths)]
        if sorted(row for part in passes for row in part) != list(range(len(rows))) or len(rows) != len(lengths):
            raise WireError("rows, lengths and passes do not cover the same rows")
        if not all(0 <= row < len(prompts) for row in rows):
            raise WireError(f"rows refer to prompts beyond the {len(prompts)} of the request")
        return ReadRequest(prompts, rows, completions, passes, _template(facts), bool(facts["pixels"]))


def pack_sample(request: SampleRequest) -> bytes:
    """A request for samples as bytes."""
    tensors, prompts = _pack_prompts(request.prompts)
    facts = {
        "protocol": PROTOCOL,
        "prompts": prompts,
        "seeds": request.seeds,
        "options": asdict(request.options),
        "template": request.template,
        "decoding": request.decoding,
        "version": request.version,
    }
    return pack(tensors or {"ids": torch.zeros(0)}, facts)


def unpack_sample(body: bytes) -> SampleRequest:
    """The request in a body. Raises WireError naming what is wrong."""
    with _parsing():
        tensors, facts = _message(body)
        options = facts["options"] | {"stop_strings": tuple(facts["options"]["stop_strings"])}
        prompts = _unpack_prompts(tensors, facts)
        if len(facts["seeds"]) != len(prompts):
            raise WireError(f"seeds are for {len(facts['seeds'])} prompts, and there are {len(prompts)}")
        decoding = {name: facts["decoding"][name] for name in DECODING}
        return SampleRequest(
            prompts, facts["seeds"], SamplingOptions(**options), _template(facts), decoding, facts["version"]
        )


def unpack_completions(facts: dict[str, Any], counts: Sequence[int]) -> list[list[Completion]]:
    """Completions of each prompt, from an answer's facts. counts: of each prompt. Raises WireError for others."""
    with _parsing():
        sampled = [[_completion(values) for values in completions] for completions in facts["completions"]]
        lengths = [len(completions) for completions in sampled]
        if lengths != list(counts):
            raise WireError(f"it has {lengths} completions of the prompts, and {list(counts)} were requested")
        return sampled


def _completion(values: dict[str, Any]) -> Completion:
    ids, logprobs, entropies = values["ids"], values["logprobs"], values["entropies"]
    lengths = {len(part) for part in (ids, logprobs, entropies) if part is not None}
    if len(lengths) != 1 or not all(isinstance(token, int) for token in ids):
        raise WireError("a completion's ids, log-probs and entropies have different lengths, or are not numbers")
    entropies = None if entropies is None else tuple(entropies)
    return Completion(**values | {"ids": tuple(ids), "logprobs": tuple(logprobs), "entropies": entropies})


def unpack_pins(facts: dict[str, Any], count: int) -> list[Pin]:
    """Pins of an answer's facts. Raises WireError unless there are as many as `count`, the prompts of its request."""
    with _parsing():
        pins = [Pin(**entry) for entry in facts["pins"]]
        if len(pins) != count:
            raise WireError(f"it has checksums of {len(pins)} prompts, and {count} were sent")
        return pins


def _pack_prompts(prompts: list[Prompt]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Pictures as tensors, and the prompts with indices of their pictures."""
    pictures: dict[int, tuple[int, Image.Image]] = {}

    def indices(images: Sequence[Image.Image]) -> list[int]:
        return [pictures.setdefault(id(image), (len(pictures), image))[0] for image in images]

    facts = [
        {
            "key": prompt.key,
            "text": prompt.text,
            "images": indices(prompt.images),
            "history": [{"role": t.role, "text": t.text, "images": indices(t.images)} for t in prompt.history],
        }
        for prompt in prompts
    ]
    return {f"picture.{idx}": torch.from_numpy(numpy.array(image)) for idx, image in pictures.values()}, facts


def _unpack_prompts(tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[Prompt]:
    images = {name: _image(value) for name, value in tensors.items() if name.startswith("picture.")}

    def of(indices: list[int]) -> tuple[Image.Image, ...]:
        return tuple(images[f"picture.{idx}"] for idx in indices)

    return [
        Prompt(
            of(prompt["images"]),
            prompt["text"],
            tuple(Turn(turn["role"], turn["text"], of(turn["images"])) for turn in prompt["history"]),
            key=prompt["key"],
        )
        for prompt in facts["prompts"]
    ]


def _message(body: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = unpack(body)
    if facts.get("protocol") != PROTOCOL:
        raise WireError(f"protocol {facts.get('protocol')} is unknown; this server has {PROTOCOL}")
    return tensors, facts


def _template(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts["template"][name] for name in TEMPLATE}


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise WireError(f"a part is missing or of another kind ({type(error).__name__}: {error})") from None


def _image(pixels: Tensor) -> Image.Image:
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise WireError(f"a picture has shape {list(pixels.shape)} and {pixels.dtype}; expected RGB bytes")
    return Image.fromarray(pixels.numpy())


def pin(encoded: Encoded, pictures: Sequence[Image.Image], *, pixels: bool) -> Pin:
    """Checksums of an encoded prompt and of the pictures that it was made from."""
    ids, inputs = encoded["input_ids"], image_inputs(encoded)
    return Pin(
        _checksum(ids),
        ids.shape[1],
        _checksum(*(torch.from_numpy(numpy.array(picture)) for picture in pictures)),
        _checksum(*(inputs[name] for name in sorted(inputs))) if pixels else "",
    )


def pin_facts(pins: Sequence[Pin]) -> list[dict[str, Any]]:
    """Pins as JSON values."""
    return [asdict(entry) for entry in pins]


def _checksum(*values: Tensor) -> str:
    """CRC-32 of types, shapes and numbers: against faults, not against forgery."""
    checksum = 0
    for value in values:
        checksum = zlib.crc32(f"{value.dtype}{list(value.shape)}".encode(), checksum)
        checksum = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"
