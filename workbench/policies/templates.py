"""Chat templates: find the template of a model folder, the form of message content that it takes, and its arguments."""

import re
from typing import Any

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser

from workbench.errors import ConfigError, PolicyError, show, unknown
from workbench.types import STUDENT

PARTS, TEXT = "parts", "text"  # content as a list of images and texts, or as one string
PROBE = "Which WORKBENCHPROBE?"
_RESERVED = {"messages", "add_generation_prompt", "tools", "documents"}
_FUNCTIONS = ("raise_exception", "strftime_now")  # that transformers gives to templates
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
        content = PROBE if form == TEXT else [{"type": "text", "text": PROBE}]
        try:
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            faults.append(f"{form}: {type(error).__name__}: {error}")
            continue
        if PROBE in text and not _PRINTED_LIST.search(text):
            return form
        faults.append(f"{form}: {text[:80]!r}")
    raise PolicyError(
        f"the model's chat template omits the question, as parts and as text ({'; '.join(faults)[:400]}). Put the "
        "model's own chat_template.jinja into its folder."
    )


def check_template_kwargs(processor: Any, kwargs: dict[str, Any], name: str) -> None:
    """Raise ConfigError for an argument that the chat template does not read; `name` is the policy's."""
    allowed = _arguments(processor) if kwargs else ()
    for key in kwargs:
        if key not in allowed:
            other = " Or give teachers theirs by models.teacher_chat_template_kwargs." if name != STUDENT else ""
            what = f"{name}: argument of the chat template (models.chat_template_kwargs)"
            raise ConfigError(unknown(what, key, allowed) + other)


def _arguments(processor: Any) -> set[str]:
    """Variables that the chat template reads and that neither itself nor the processor sets."""
    environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.globals |= dict.fromkeys(_FUNCTIONS)
    tokenizer = getattr(processor, "tokenizer", processor)
    read = find_undeclared_variables(environment.parse(getattr(processor, "chat_template", None) or ""))
    return read - _RESERVED - {name for name in read if name.endswith("_token") and hasattr(tokenizer, name)}


class _Generation(Extension):
    """The tag of transformers around the assistant's text, whose content counts as it stands."""

    tags = frozenset(["generation"])  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_system_prompt(processor: Any, form: str | None, system_prompt: str, name: str) -> None:
    """Raise ConfigError unless the chat template renders the system prompt; `name` is the policy's."""
    if form is None:
        raise ConfigError(
            f"{name}: models.system_prompt needs a chat template, and the model's processor has none. Put the model's "
            "chat_template.jinja into its folder, or remove the key."
        )
    texts = (("system", system_prompt), ("user", PROBE))
    messages = [
        {"role": role, "content": text if form == TEXT else [{"type": "text", "text": text}]} for role, text in texts
    ]
    try:
        rendered = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{name}: the model's chat template refuses a system prompt ({error}). Remove models.system_prompt and put "
            "its text into the questions."
        ) from error
    if system_prompt.strip() not in rendered:
        raise ConfigError(
            f"{name}: the model's chat template drops the system prompt {show(system_prompt)}. Remove "
            "models.system_prompt and put its text into the questions."
        )
