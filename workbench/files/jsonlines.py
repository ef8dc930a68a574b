"""JSON Lines: records end only at newlines."""


def split_lines(text: str) -> list[str]:
    """Split a text at its newlines.

    str.splitlines also splits at U+2028, U+2029, U+0085 and five control characters, which questions and answers may
    contain and JSON with ensure_ascii=False does not escape.
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
