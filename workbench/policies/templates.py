"""Chat templates: which one a model folder has, and in what form it takes the content of a message."""

import re
from typing import Any

from jinja2 import TemplateError

from workbench.errors import PolicyError

PARTS, TEXT = "parts", "text"  # content as a list of pictures and texts, or as one string
_QUESTION = "Which WORKBENCHPROBE?"
_PRINTED_LIST = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")


def adopt_template(processor: Any) -> None:
    """Give a processor the chat template of its tokenizer where it has none: several tools save it in tokenizer_config.json
    alone, as a string or as a list of named ones. Of several the default is taken.

    Raises: ValueError if there are several and none is the default.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(tokenizer, "chat_template", None) is None:
        return
    template = tokenizer.get_chat_template()
    if processor is tokenizer or getattr(processor, "chat_template", None) is None:
        processor.chat_template = template


def content_form(processor: Any) -> str:
    """PARTS or TEXT: the form of content of which the chat template makes a prompt with the question in it.

    A processor of pictures is asked for parts first, a tokenizer for text.

    Raises: PolicyError if the template prints neither as it is.
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
        f"the model's chat template makes no prompt with the question in it, whether a message is a list of parts or a text "
        f"({'; '.join(faults)[:400]}). Put the model's own chat_template.jinja into its folder."
    )
