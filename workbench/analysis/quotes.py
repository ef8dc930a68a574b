"""Quote answers and tokens in Markdown, and check the quotes of a document against the trace.

    ["tag K"](http://127.0.0.1:7860/?run=demo&tab=answers&step=30&rollout=4&token=17)     tokens from token 17 on
    [information_gap 1.42](http://127.0.0.1:7860/?run=demo&...&token=17)                  a number of the token
    [regime=HS](http://127.0.0.1:7860/?run=demo&...&token=17)                             a word of the token
    > at top left, tag K, answer K
    > [demo, step 30, rollout 4](http://127.0.0.1:7860/?run=demo&...)                     text of the answer

A number is compared at the precision at which it is written. "[…]" leaves out text. Any other text of a link to an
answer claims only that the answer exists.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from workbench.analysis.addresses import AnswerAddress, is_answer_address, parse_address
from workbench.errors import TraceError, WorkbenchError, cut
from workbench.traces.reader import TracedRollout

TEXT, VALUE, REFERENCE = "text", "value", "reference"
OMITTED = "[…]"
_LINK = re.compile(r'\[((?:"(?:[^"\\]|\\.)*")|[^\]]*)\]\(([^()\s]+)\)')
_BLOCK = re.compile(r"^\s{0,3}> ?")
_VALUE = re.compile(r"([a-z][a-z0-9_]*)(?:\s*[=:]\s*|\s+(?=[-+−]?\d))(\S+)")


@dataclass(frozen=True)
class Quote:
    """A quote of a document. kind: text, value or reference; name: the quoted value's column."""

    line: int
    kind: str
    text: str
    address: str
    name: str = ""


@dataclass(frozen=True)
class CheckedQuote:
    """A quote and why it is not in the trace; `fault` is empty if it is."""

    quote: Quote
    fault: str = ""


def quote_answer(traced: TracedRollout, address: AnswerAddress, base: str) -> str:
    """The whole answer as a block quote that ends with its address."""
    lines = (traced.row["completion"] or "").split("\n")
    return "\n".join(
        [*(f"> {line}".rstrip() for line in lines), f"> [{address.at(None)}]({_link(address.at(None), base)})"]
    )


def quote_tokens(traced: TracedRollout, address: AnswerAddress, last: int, base: str) -> str:
    """Tokens from the address's token to `last` as a link. Raises TraceError if `last` is before it or not recorded."""
    first = address.token or 0
    if not first <= last < len(traced.tokens):
        raise TraceError(
            f"last is {last}. Expected {first} to {len(traced.tokens) - 1}: the tokens of {address.at(None)}."
        )
    text = "".join(position["token_text"] for position in traced.tokens[first : last + 1])
    quoted = json.dumps(text, ensure_ascii=False).replace("[", "\\u005b").replace("]", "\\u005d")
    return f"[{quoted}]({_link(address, base)})"


def _link(address: AnswerAddress, base: str) -> str:
    return address.url(base).replace("(", "%28").replace(")", "%29")


def read_quotes(document: str) -> list[Quote]:
    """Quotes of a Markdown document, in order. Links in fenced code are left out."""
    quotes: list[Quote] = []
    block: list[str] = []
    for line_number, line in _outside_code(document):
        in_block = _BLOCK.match(line)
        content = line[in_block.end() :] if in_block else line
        links = [match for match in _LINK.finditer(content) if is_answer_address(match[2])]
        is_source = bool(in_block and block and links and _is_alone(content, links[0]))
        if is_source:
            quotes.append(Quote(line_number, TEXT, "\n".join(block), links[0][2]))
        else:
            quotes += [_quote_of(line_number, *match.groups()) for match in links]
        block = [*block, content] if in_block and not is_source else []
    return quotes


def _outside_code(document: str) -> Iterator[tuple[int, str]]:
    fence = ""
    for line_number, line in enumerate(document.splitlines(), start=1):
        opened = re.match(r"\s{0,3}(```+|~~~+)", line)
        if opened and (not fence or line.strip() == fence):
            fence = "" if fence else opened[1]
        elif not fence:
            yield line_number, line


def _is_alone(content: str, link: re.Match) -> bool:
    """Whether a line of a block quote has only the link, possibly after a dash."""
    return not (content[: link.start()] + content[link.end() :]).strip(" \t—–-")


def _quote_of(line: int, text: str, address: str) -> Quote:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return Quote(line, TEXT, json.loads(text, strict=False), address)
        except ValueError:
            return Quote(line, TEXT, text[1:-1], address)
    if len(text) > 1 and (text[0], text[-1]) in (("“", "”"), ("`", "`")):
        return Quote(line, TEXT, text[1:-1], address)
    value = _VALUE.fullmatch(text.strip())
    return Quote(line, VALUE, value[2], address, value[1]) if value else Quote(line, REFERENCE, text, address)


def check_quotes(document: str, rollout_at: Callable[[AnswerAddress], TracedRollout]) -> list[CheckedQuote]:
    """Check every quote of a document.

    rollout_at  reads the rollout of an address, and raises a WorkbenchError if it was not recorded
    """
    checked = []
    for quote in read_quotes(document):
        try:
            address = parse_address(quote.address)
            fault = _fault(quote, address, rollout_at(address))
        except WorkbenchError as error:
            fault = str(error)
        checked.append(CheckedQuote(quote, fault))
    return checked


def _fault(quote: Quote, address: AnswerAddress, traced: TracedRollout) -> str:
    if quote.kind == TEXT:
        return _text_fault(quote.text, address, traced)
    return _value_fault(quote, address, traced) if quote.kind == VALUE else ""


def _text_fault(text: str, address: AnswerAddress, traced: TracedRollout) -> str:
    if address.token is not None:
        rest = "".join(position["token_text"] for position in traced.tokens[address.token :])
        if rest.startswith(text):
            return ""
        return f'{address} begins with "{cut(rest[: max(20, len(text))])}"'
    whole = traced.row["completion"] or ""
    start = 0
    for part in text.split(OMITTED):
        position = whole.find(part.strip("\n"), start)
        if position < 0:
            return f'"{cut(part.strip())}" is not in the answer: "{cut(whole, 200)}"'
        start = position + len(part.strip("\n"))
    return ""


def _value_fault(quote: Quote, address: AnswerAddress, traced: TracedRollout) -> str:
    """Compare a value with the token's column, or the answer's if the address has no token."""
    row = traced.row if address.token is None else traced.tokens[address.token]
    reward = traced.row["reward"]
    columns = {**row, **vars(address), "length": len(traced.tokens), "right": None if reward is None else reward == 1.0}
    if address.token is None:
        columns |= {name: row[f"mean_{name}"] for name in ("capability_gap", "information_gap", "loss")}
    if quote.name not in columns:
        names = ", ".join(name for name, value in columns.items() if isinstance(value, (int, float, str, bool)))
        return f'{address} has no value "{quote.name}". It has {names}'
    recorded = columns[quote.name]
    if recorded is None:
        return f"{quote.name} was not recorded"
    return "" if _is_equal(quote.text, recorded) else f"{quote.name} is {_shown(recorded)} in the trace"


def _is_equal(written: str, recorded: object) -> bool:
    if isinstance(recorded, bool):
        return written.lower() in (("yes", "true", "right") if recorded else ("no", "false", "wrong"))
    if not isinstance(recorded, (int, float)):
        return written == str(recorded)
    try:
        number = Decimal(written.replace("−", "-").replace(",", ""))
        exact = Decimal(repr(float(recorded)))
        if not (number.is_finite() and exact.is_finite()):
            return str(number) == str(exact)
        # half a unit of the last digit written, and a little for the float32 in the trace
        unit = Decimal(1).scaleb(int(number.as_tuple().exponent))
        return abs(number - exact) <= unit / 2 + abs(exact) * Decimal("1e-6")
    except InvalidOperation:
        return False


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f'"{cut(value)}"' if isinstance(value, str) else str(value)
