"""Template of what privileged views read in place of the question with its evidence: data.privileged_template.

    "{question}\\n\\nA reliable source says: {evidence}"

{evidence} is the textual evidence as prompts have it by default ("caption: ...", a line each). The template applies to
the privileged contexts with textual evidence; one without {evidence} to those that show evidence as images alone.
"""

import string
from collections.abc import Iterable

from workbench.errors import ConfigError, show, unknown

PLACEHOLDERS = ("question", "evidence")


def placeholders_of(template: str) -> set[str]:
    """The placeholders of a template. Raises ConfigError if it is malformed or has another one."""
    try:
        fields = [entry[1:] for entry in string.Formatter().parse(template) if entry[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"data.privileged_template {show(template)} is not a template ({error}). Write a brace as {{{{ or }}}}."
        ) from None
    for name, form, conversion in fields:
        if name not in PLACEHOLDERS or form or conversion:
            raise ConfigError(unknown("data.privileged_template: placeholder", name, PLACEHOLDERS))
    return {name for name, _, _ in fields}


def check_template(template: str, textual: Iterable[bool]) -> None:
    """Raise ConfigError if the template lacks a placeholder, or if no view of the method reads it.

    textual  of each privileged context of the method, whether its evidence is text
    """
    present, textual = placeholders_of(template), list(textual)
    if "question" not in present:
        raise ConfigError(f"data.privileged_template {show(template)} lacks {{question}}. Add it.")
    if not textual:
        raise ConfigError(
            "data.privileged_template has no effect: no view of the method is privileged. Set method.privilege, or "
            "remove the template."
        )
    if any(textual) and "evidence" not in present:
        raise ConfigError(
            f"data.privileged_template {show(template)} lacks {{evidence}}, so the textual evidence would be dropped. "
            "Add it."
        )
    if not any(textual) and "evidence" in present:
        raise ConfigError(
            f"data.privileged_template {show(template)} has {{evidence}}, but the method shows its evidence as images "
            "alone. Remove the placeholder."
        )


def apply_template(template: str, question: str, evidence: str) -> str:
    """The text of a privileged prompt; the default text where the template does not apply."""
    if bool(evidence) != ("evidence" in placeholders_of(template)):
        return f"{question}\n{evidence}" if evidence else question
    return template.format(question=question, evidence=evidence)
