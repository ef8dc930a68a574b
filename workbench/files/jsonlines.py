"""JSON Lines: a record ends at a newline and at nothing else."""


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their newlines.

    str.splitlines also splits at U+2028, U+2029, U+0085 and five control characters. Questions and answers hold them, and
    JSON with ensure_ascii=False writes them as they are.
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
