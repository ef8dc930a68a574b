"""SQL of a selection over the tables of a trace."""

import re
from collections.abc import Collection, Iterable

from workbench.errors import TraceError, unknown
from workbench.traces.schema import PROBE
from workbench.traces.selection import CONTAINS, MATCHES, TEXT_FIELD, TOKEN, Condition, Selection

KEY = "step, process_rank, rollout_idx"
GRADE = "CASE WHEN reward IS NULL THEN 'unknown' WHEN reward = 1 THEN 'correct' ELSE 'incorrect' END"
_COLUMNS = {  # fields whose column has another name
    "rollout": "rollout_idx",
    "process": "process_rank",
    "sample": "sample_idx",
    "example": "example_id",
    "tokens": "num_positions",
    "answer": "completion",
    "expected": "answer",
    "loss": "mean_loss",
    "contribution": "total_contribution",
    "capability_gap": "mean_capability_gap",
    "information_gap": "mean_information_gap",
    "abs_capability_gap": "abs(mean_capability_gap)",
    "abs_information_gap": "abs(mean_information_gap)",
    "grade": GRADE,
}
_OF_KEY = ("step", "process", "rollout")
_LISTS = {  # columns of rollouts with all values that a label of their tokens has
    "regime": "map_keys(regime_counts)",
    "token_type": "token_types",
    "visibility": "visibilities",
}


class SelectionSQL:
    """The WHERE clause of a selection and its parameters; of rollouts, or with `of_tokens` of tokens alone.

    regimes, views  names that the trace has. Raises TraceError for a condition on others.
    """

    def __init__(
        self, selection: Selection, regimes: Collection[str], views: Collection[str], *, of_tokens: bool = False
    ) -> None:
        self.params: dict[str, str | float] = {}
        self._prefix = PROBE if selection.source == "probes" else ""
        for condition in selection.of_tokens:
            _check_names(condition, regimes, views)
        if of_tokens:
            self.where = self._all(selection.of_tokens)
        else:
            has_token = [self._has_token(selection)] if selection.of_tokens else []
            self.where = " AND ".join([*map(self._sql, selection.of_answers), *has_token]) or "true"
        self.value = column_of(selection.order)

    @property
    def rollouts(self) -> str:
        """Name of the table of answers."""
        return f"{self._prefix}rollouts"

    @property
    def tokens(self) -> str:
        """Name of the table of tokens."""
        return f"{self._prefix}tokens"

    def _has_token(self, selection: Selection) -> str:
        """SQL: one token of the answer meets all conditions on tokens."""
        first, *others = selection.of_tokens
        name = first.field.removeprefix(TOKEN)
        if not others and first.operator == "=" and name in _LISTS:
            return f"list_contains({_LISTS[name]}, ${self._add(first.value)})"
        keys = [item for item in selection.of_answers if item.field in _OF_KEY]  # so that other files are not read
        where = self._all([*selection.of_tokens, *keys])
        return f"({KEY}) IN (SELECT ({KEY}) FROM {self.tokens} WHERE {where})"

    def _all(self, conditions: Iterable[Condition]) -> str:
        return " AND ".join(self._sql(condition) for condition in conditions)

    def _sql(self, condition: Condition) -> str:
        value = condition.value
        # RE2 finds a text in any case in half the time that lower() takes
        name = self._add(f"(?i){re.escape(str(value))}" if condition.operator == CONTAINS else value)
        if condition.field == TEXT_FIELD:
            return f"({_text_sql('question', condition, name)} OR {_text_sql('completion', condition, name)})"
        return _text_sql(column_of(condition.field), condition, name)

    def _add(self, value: str | float) -> str:
        name = f"value{len(self.params)}"
        self.params[name] = value
        return name


def column_of(field: str) -> str:
    """SQL expression of a field."""
    if field.startswith(TOKEN):
        name = field.removeprefix(TOKEN)
        if name == "text":
            return "token_text"
        return f"abs({name.removeprefix('abs_')})" if name.startswith("abs_") else name
    return _COLUMNS.get(field, field)


def _text_sql(column: str, condition: Condition, name: str) -> str:
    if condition.operator in (CONTAINS, MATCHES):
        return f"regexp_matches({column}, ${name})"
    if condition.operator == "!=":
        return f"{column} IS DISTINCT FROM ${name}"
    return f"{column} {condition.operator} ${name}"


def _check_names(condition: Condition, regimes: Collection[str], views: Collection[str]) -> None:
    """Raise TraceError if a condition on tokens names a regime or a view that the trace lacks."""
    name, where = condition.field.removeprefix(TOKEN), f" (filter, character {condition.start + 1})"
    if name == "regime" and condition.operator in ("=", "!=") and condition.value not in regimes:
        raise TraceError(unknown("regime", condition.value, regimes) + where)
    match = re.fullmatch(r"(?:max_logprob|logprob|entropy|rank)_(\w+)", name)
    if match and match[1] not in views:
        raise TraceError(unknown("view", match[1], views) + where)
