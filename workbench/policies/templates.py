"""Chat templates: find the template of a model folder, and the form of message content that it takes."""

import re
from typing import Any

from jinja2 import TemplateError

from workbench.errors import PolicyError

PARTS, TEXT = "parts", "text"  # content as a list of images and texts, or as one string
_QUESTION = "Which WORKBENCHPROBE?"
_PRINTED_LIST = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")


def adopt_template(processor: Any) -> None:
    """Copy the chat template of the tokenizer to a processor without one.

    Several tools save it only in tokenizer_config.json, as a string or as a list of named templates with a default.

    Raises: ValueError for several templates without a default.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(tokenizer, "chat_template", None) is None:
        return
    template = tokenizer.get_chat_template()
    if processor is tokenizer or getattr(processor, "chat_template", None) is None:
        processor.chat_template = template


def content_form(processor: Any) -> str:
    """Content form, PARTS or TEXT, with which the chat template includes the question in the prompt.

    Processors of images try PARTS first, tokenizers TEXT.

    Raises: PolicyError if the template works with neither.
    """
    forms = [PARTS, TEXT] if hasattr(processor, "tokenizer") else [TEXT, PARTS]
    faults = []
    for form in forms:
        content = _QUESTION if form == TEXT else [{"type": "text", "text": _QUESTION}]
        try:
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            faults.append(f"{form}: {type(error).__name__}: {error}")
            continue
        if _QUESTION in text and not _PRINTED_LIST.search(text):
            return form
        faults.append(f"{form}: {text[:80]!r}")
    raise PolicyError(
        f"the model's chat template omits the question, as parts and as text ({'; '.join(faults)[:400]}). Put the "
        "model's own chat_template.jinja into its folder."
    )
