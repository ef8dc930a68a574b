"""Selections of answers: conditions and an order, as one line of text that page, command line and JSON share.

    in:probes token.regime=HS token.information_gap>2 grade=incorrect answer:/red (cross|square)/ sort:-loss

    word, "two words"         the question or the answer contains it, in any case
    /red|blue/, /red/i        a regular expression (RE2) matches the question or the answer; i: in any case
    answer:red, answer:/^red/ the same of one text: question, answer, expected or reference
    domain=read, domain!=read equality
    tokens>200, loss<=0.5     comparison: > >= < <= = !=
    token.regime=HS           a condition on tokens; all conditions on tokens hold for the same token
    in:probes                 source of the answers: training (the default), probes or evaluation
    sort:loss, sort:-loss     order by a field, ascending or descending; the default is sort:-step

A condition on a value that was not recorded does not hold, except for `!=`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from workbench.errors import TraceError, cut, require_one_of, unknown

SOURCES = ("training", "probes", "evaluation")
CONTAINS, MATCHES = "contains", "matches"
COMPARISONS = ("=", "!=", ">", ">=", "<", "<=")
TEXT_FIELD = "text"  # question or answer
TOKEN = "token."
NEWEST = "step"
GRADES = ("correct", "incorrect", "unknown")

TEXTS = ("question", "answer", "expected", "reference")
_LABELS = ("domain", "example", "learner", "sampled_by", "finish_reason")
_NUMBERS = ("step", "rollout", "process", "sample", "tokens", "reward", "loss", "contribution")
_GAPS = ("capability_gap", "information_gap", "abs_capability_gap", "abs_information_gap")
ANSWER_FIELDS = {
    **dict.fromkeys(TEXTS, "text"),
    **dict.fromkeys((*_LABELS, "grade"), "label"),
    **dict.fromkeys((*_NUMBERS, *_GAPS), "number"),
}
EVALUATION_FIELDS = {
    **dict.fromkeys(TEXTS[:3], "text"),
    **dict.fromkeys(("domain", "example", "policy", "context", "visibility", "dataset", "grade"), "label"),
    **dict.fromkeys(("step", "rollout", "tokens", "reward", "confidence"), "number"),
}
_TOKEN_LABELS = ("regime", "token_type", "visibility", "target", "divergence")
_TOKEN_NUMBERS: tuple[str, ...] = (
    "position",
    "token_id",
    "denoising_step",
    "sampler_logprob",
    "weight",
    "effective_weight",
)
_TOKEN_NUMBERS += ("advantage", "loss", "contribution", "ratio", "total_gap", "abs_total_gap")
_BY_VIEW = re.compile(r"(logprob|entropy|max_logprob|rank)_\w+")  # views differ between methods: checked by the reader


@dataclass(frozen=True)
class Condition:
    """`field operator value`. operator: one of COMPARISONS, `contains` (any case) or `matches` (a regular expression).

    start  index of its first character in the text it was read from; not compared
    """

    field: str
    operator: str
    value: str | float
    start: int = dataclasses.field(default=0, compare=False)

    @property
    def of_token(self) -> bool:
        return self.field.startswith(TOKEN)

    @property
    def text(self) -> str:
        """The condition as `parse_selection` reads it."""
        field = "" if self.field == TEXT_FIELD else self.field
        if self.operator == MATCHES:
            pattern, flag = str(self.value), ""
            if pattern.startswith("(?i)"):
                pattern, flag = pattern[4:], "i"
            escaped = re.sub(r"\\.|/", lambda sign: r"\/" if sign[0] == "/" else sign[0], pattern)
            return f"{field}{':' if field else ''}/{escaped}/{flag}"
        value = repr(self.value).removesuffix(".0") if isinstance(self.value, float) else str(self.value)
        operator = self.operator if self.operator != CONTAINS else ":" if field else ""
        return f"{field}{operator}{_quoted(value)}"


@dataclass(frozen=True)
class Selection:
    """Which answers of a run, and in which order. Made by `parse_selection`, or by `Selection.of`.

    conditions  all must hold; those on tokens for the same token
    source      training, probes or evaluation
    order       field to sort by; answers without its value come last
    """

    conditions: tuple[Condition, ...] = ()
    source: str = "training"
    order: str = NEWEST
    descending: bool = True

    @classmethod
    def of(cls, text: str = "", *, source: str | None = None, **equal: str | float | None) -> "Selection":
        """Read `text` and add conditions of equality; None adds none. A name of a token's label means the token.

        Raises: TraceError, as parse_selection.
        """
        selection = parse_selection(text)
        if source is not None:
            require_one_of("source", source, SOURCES, TraceError)
            selection = replace(selection, source=source)
        for name, value in equal.items():
            if value is not None:
                selection = selection.add(TOKEN + name if name in _TOKEN_LABELS else name, "=", value)
        return selection

    def add(self, field: str, operator: str, value: str | float) -> "Selection":
        """The selection with one more condition. Raises TraceError for a field or a value that does not exist."""
        condition = _checked(Condition(field, operator, value), self.source)
        return replace(self, conditions=(*self.conditions, condition))

    def without(self, *fields: str) -> "Selection":
        """The selection without its conditions on these fields."""
        return replace(self, conditions=tuple(item for item in self.conditions if item.field not in fields))

    def sorted_by(self, order: str, *, descending: bool = True) -> "Selection":
        """The selection in another order. Raises TraceError for a field that does not exist."""
        require_one_of("field to sort by", order, fields_of(self.source), TraceError)
        return replace(self, order=order, descending=descending)

    def value_of(self, field: str) -> str | float | None:
        """The value that a condition of equality asks of a field; None without one."""
        return next((item.value for item in self.conditions if (item.field, item.operator) == (field, "=")), None)

    @property
    def of_tokens(self) -> tuple[Condition, ...]:
        return tuple(item for item in self.conditions if item.of_token)

    @property
    def of_answers(self) -> tuple[Condition, ...]:
        return tuple(item for item in self.conditions if not item.of_token)

    @property
    def text(self) -> str:
        """The selection as `parse_selection` reads it; empty for all training answers, newest first."""
        terms = [] if self.source == "training" else [f"in:{self.source}"]
        terms += [condition.text for condition in self.conditions]
        if (self.order, self.descending) != (NEWEST, True):
            terms.append(f"sort:{'-' if self.descending else ''}{self.order}")
        return " ".join(terms)


ALL_ANSWERS = Selection()


def fields_of(source: str) -> Mapping[str, str]:
    """Fields of the answers of a source, each "text", "label" or "number"."""
    return EVALUATION_FIELDS if source == "evaluation" else ANSWER_FIELDS


def token_fields() -> dict[str, str]:
    """Fields of tokens with their prefix, without those of single views."""
    kinds = dict.fromkeys(_TOKEN_LABELS, "label") | dict.fromkeys((*_TOKEN_NUMBERS, *_GAPS), "number")
    return {TOKEN + name: kind for name, kind in (kinds | {"text": "text"}).items()}


_TERM = re.compile(
    r"""(?P<field>[A-Za-z_][\w.]*)?(?P<operator>!=|>=|<=|=|>|<|:)?
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|/(?P<pattern>(?:[^/\\]|\\.)+)/(?P<flags>\w*)|(?P<word>[^\s"]+))?(?=\s|$)""",
    re.VERBOSE | re.DOTALL,
)


def parse_selection(text: str, source: str | None = None) -> Selection:
    """Read a selection from text; the module's docstring has the grammar.

    source  source of the answers, in place of the text's

    Raises: TraceError that names the term, its first character from 1, what is allowed and what to do.
    """
    selection, conditions = Selection(source=source or "training"), []
    for start, match in _terms(text):
        field, operator = match["field"], match["operator"]
        if operator is None:
            conditions.append(_search(TEXT_FIELD, match, start))
        elif operator == ":" and field in ("in", "sort"):
            selection = _set(selection, field, _value(match), start)
        elif operator == ":":
            conditions.append(_search(field or "", match, start))
        else:
            conditions.append(Condition(field or "", operator, _value(match), start))
    selection = replace(selection, source=source or selection.source)
    return replace(selection, conditions=tuple(_checked(item, selection.source) for item in conditions))


def _terms(text: str) -> Iterator[tuple[int, re.Match]]:
    end = 0
    while end < len(text):
        if text[end].isspace():
            end += 1
            continue
        # a word may hold any sign: only a field's name before an operator makes it a comparison
        match = _TERM.match(text, end)
        if match is None or match.end() == end:
            rest = text[end:].split()[0]
            remedy = "Close its quotation mark or slash, or put the text between quotation marks."
            raise _error(f'"{cut(rest)}" is not a term', end, remedy)
        yield end, match
        end = match.end()


def _value(match: re.Match) -> str:
    if match["pattern"] is not None:
        raise _error("a regular expression follows the sign :", match.start(), "Write answer:/red|blue/.")
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL)
    if match["word"] is None:
        remedy = 'Write it behind the sign, without a space; two quotation marks "" are the empty text.'
        raise _error(f'"{match[0]}" has no value', match.start(), remedy)
    return match["word"]


def _search(field: str, match: re.Match, start: int) -> Condition:
    is_word = match["operator"] is None and match["field"] is not None  # such as red, and/or
    if match["pattern"] is None or is_word:
        if is_word and match["quoted"] is not None:
            raise _error(f'"{cut(match[0])}" is not a term', start, "Put a sign or a space before the quotation mark.")
        value = match[0] if is_word else _value(match)
        if not value:
            raise _error("the text to search for is empty", start, f"Write {field}:word.")
        return Condition(field, CONTAINS, value, start)
    if match["flags"] not in ("", "i"):
        remedy = 'The only flag is i, for any case. Put a path between quotation marks: "/usr/bin".'
        raise _error(f'"{cut(match["flags"])}" is not a flag of a regular expression', match.start("flags"), remedy)
    pattern = match["pattern"].replace(r"\/", "/")
    _check_pattern(pattern, match.start("pattern"))
    return Condition(field, MATCHES, f"(?i){pattern}" if match["flags"] else pattern, start)


def _check_pattern(pattern: str, start: int) -> None:
    """Raise TraceError with the position of what RE2 does not accept."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).partition("Invalid regular expression: ")[2] or str(error)
        part = reason.partition(": ")[2]
        start = start + max(0, pattern.find(part)) if part else start
        remedy = "Correct it. RE2 has no look-around and no back-references. Put literal text between quotation marks."
        raise _error(f"/{cut(pattern)}/ is not a regular expression: {reason}", start, remedy) from error


def _set(selection: Selection, name: str, value: str, start: int) -> Selection:
    try:
        if name == "in":
            require_one_of("source", value, SOURCES, TraceError)
            return replace(selection, source=value)
        return selection.sorted_by(value.removeprefix("-"), descending=value.startswith("-"))
    except TraceError as error:
        raise TraceError(f"{error} (filter, character {start + 1})") from None


def _checked(condition: Condition, source: str) -> Condition:
    """The condition with its value converted. Raises TraceError for an unknown field, operator or value."""
    kind = _kind(condition, source)
    if kind != "number" and condition.operator in (">", ">=", "<", "<="):
        raise _error(f"{condition.field} is not a number", condition.start, "Use = or !=, or : for a part of it.")
    if kind == "number" and condition.operator not in COMPARISONS:
        raise _error(f"{condition.field} is a number", condition.start, f"Use one of {' '.join(COMPARISONS)}.")
    if kind == "number":
        return replace(condition, value=_number(condition))
    if condition.field == "grade" and condition.operator in ("=", "!=") and condition.value not in GRADES:
        raise _error(unknown("grade", condition.value, GRADES), condition.start, "Write one of them.")
    return replace(condition, value=str(condition.value))


def _kind(condition: Condition, source: str) -> str:
    field = condition.field
    fields = {**fields_of(source), TEXT_FIELD: "text"}
    if source != "evaluation":
        fields |= token_fields()
        if _BY_VIEW.fullmatch(field.removeprefix(TOKEN)) and condition.of_token:
            return "number"
    if field not in fields:
        remedy = "Put text that holds one of = < > : between quotation marks."
        raise _error(unknown("field", field, fields), condition.start, remedy)
    return fields[field]


def _number(condition: Condition) -> float:
    try:
        value = float(condition.value)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        remedy = f"Write, for example, {condition.field}{condition.operator}2."
        raise _error(f'{condition.field} is a number, and "{cut(condition.value)}" is not', condition.start, remedy)
    return value


def _error(problem: str, start: int, remedy: str) -> TraceError:
    return TraceError(f"{problem} (filter, character {start + 1}). {remedy}")


def _quoted(value: str) -> str:
    """The value as a term's part: between quotation marks unless it is one plain word."""
    if re.fullmatch(r"[\w.+-][\w.+,;!?@#%&*'()|^~$-]*", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
