"""Try model types, each in a process of its own with a time limit, and write what came out as a table."""

import difflib
import logging
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from workbench.errors import ConfigError, cut
from workbench.training.families.trial import FAILED, FAST, MISSING, OUT, PLAIN, REFUSED, Outcome, try_family

SECONDS = 300  # time limit of one model type
TEXT_TYPES = (
    "llama",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "gemma3_text",
    "gpt_oss",
    "mistral",
    "mamba",
    "falcon_h1",
    "lfm2",
)
_BESIDE = ("torchvision", "timm", "scipy")  # packages that some families need
_ORDER = (FAST, PLAIN, REFUSED, FAILED, MISSING, OUT)
_MEANING = {
    FAST: "trains; a prompt passes once for all its answers, and an image is encoded once",
    PLAIN: "trains, at the cost that the table names",
    REFUSED: "is refused, with the sentence in the table",
    FAILED: "does not train: the sentence is the error",
    MISSING: "could not be built where this table was written",
    OUT: "does not write text from left to right after images",
}


_INTRODUCTION = """# Model families

Written by `workbench families --write docs/families.md` with {packages},
with {extras}.

For each model type, a small random model is built from its default configuration, loaded, checked, trained (one step of
OPD, two of DOPD with a crop), saved, loaded again and resumed. Its log-probs in float32 are those of `generate` in
transformers within 1e-4 nats: with an image, padded on the left, and for two answers to one prompt."""


def check_types(model_types: Iterable[str]) -> None:
    """Raise ConfigError for a name outside the model types of language models in transformers."""
    model_names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    for name in model_types:
        if name not in model_names:
            near = (
                ", ".join(difflib.get_close_matches(name, model_names))
                or "none; docs/families.md lists all with images"
            )
            version = transformers.__version__
            raise ConfigError(
                f'transformers {version} has no language model of type "{cut(name)}". Near names: {near}.'
            )


def all_types() -> list[str]:
    """Every image-text model type of transformers, and some that take text alone."""
    return [*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *TEXT_TYPES]


def try_families(
    model_types: Iterable[str], *, seconds: int = SECONDS, report: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Try model types one after the other; `report` gets each outcome as it comes."""
    model_types = list(model_types)
    check_types(model_types)
    torch.set_num_threads(1)
    outcomes = []
    for model_type in model_types:
        outcomes.append(_in_process(model_type, seconds))
        report(outcomes[-1])
    return outcomes


def _in_process(model_type: str, seconds: int) -> Outcome:
    context = multiprocessing.get_context("fork")  # imports nothing again
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return Outcome(model_type, FAILED, f"no result after {seconds} seconds")
    except EOFError:
        process.join()
        return Outcome(model_type, FAILED, f"its process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_outcome(model_type: str, sender: Connection) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("workbench").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="family-") as folder:
        sender.send(try_family(model_type, Path(folder)))


def format_page(outcomes: list[Outcome]) -> str:
    """A page in Markdown with all outcomes."""
    counts = Counter(outcome.status for outcome in outcomes)
    image_types = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    packages = f"transformers {transformers.__version__} and torch {torch.__version__.partition('+')[0]}"
    versions = {entry.name: entry.version for entry in distributions()}
    extras = ", ".join(f"{name} {versions[name]}" for name in _BESIDE if name in versions) or "no package beside them"
    lines = [
        *_INTRODUCTION.format(packages=packages, extras=extras).splitlines(),
        "",
        "| status | image-text types | meaning |",
        "|---|--:|---|",
    ]
    for status in _ORDER:
        number = sum(outcome.status == status and outcome.model_type in image_types for outcome in outcomes)
        if counts[status]:
            lines.append(f"| {status} | {number} | {_MEANING[status]} |")
    lines += ["", "| model type | status | cost or reason |", "|---|---|---|"]
    ordered = sorted(outcomes, key=lambda outcome: (_ORDER.index(outcome.status), outcome.model_type))
    for outcome in ordered:
        name = f"{outcome.model_type}{'' if outcome.model_type in image_types else ' (text)'}"
        lines.append(f"| {name} | {outcome.status} | {outcome.sentence.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
