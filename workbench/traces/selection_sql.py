"""SQL of a selection over the tables of a trace."""

import re
from collections.abc import Collection, Iterable

from workbench.errors import TraceError, unknown
from workbench.traces.schema import GAPS, PROBE
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
_LISTS = {  # columns of rollouts with all values that a label of their tokens has
    "regime": "map_keys(regime_counts)",
    "token_type": "token_types",
    "visibility": "visibilities",
}


class SelectionSQL:
    """SQL of a selection and its parameters. `where` has the conditions on answers; with `of_tokens` those on tokens.

    regimes, views  names that the trace has. Raises TraceError for a condition on others.
    """

    def __init__(
        self, selection: Selection, regimes: Collection[str], views: Collection[str], *, of_tokens: bool = False
    ) -> None:
        self.params: dict[str, str | float] = {}
        self._of_tokens = selection.of_tokens
        self._prefix = PROBE if selection.source == "probes" else ""
        for condition in selection.of_tokens:
            _check_names(condition, regimes, views)
        self.where = self._all(selection.of_tokens if of_tokens else selection.of_answers)
        self.value = column_of(selection.order)

    @property
    def rollouts(self) -> str:
        """Name of the table of answers."""
        return f"{self._prefix}rollouts"

    @property
    def tokens(self) -> str:
        """Name of the table of tokens."""
        return f"{self._prefix}tokens"

    @property
    def kept(self) -> str:
        """WITH clause of `kept`: key and value of the selection's answers.

        Where what is recorded of the whole answer does not decide, tokens of steps with such candidates are read.
        """
        possible, is_open = self._by_answer()
        of_rollouts = f"{self.value} AS value FROM {self.rollouts} WHERE {self.where} AND {possible}"
        if is_open == "false":
            return f"WITH kept AS MATERIALIZED (SELECT {KEY}, {of_rollouts})"
        where = self._all(self._of_tokens)
        if (self.where, possible) != ("true", "true"):
            where += " AND step IN (SELECT step FROM candidates WHERE is_open)"
        has_token = f"({KEY}) IN (SELECT ({KEY}) FROM {self.tokens} WHERE {where})"
        if is_open != "true":
            has_token = f"NOT is_open OR {has_token}"
        return f"""
            WITH candidates AS MATERIALIZED (SELECT {KEY}, {is_open} AS is_open, {of_rollouts}),
            kept AS MATERIALIZED (SELECT {KEY}, value FROM candidates WHERE {has_token})"""

    def _by_answer(self) -> tuple[str, str]:
        """SQL of an answer: whether it can have such a token, and whether its tokens must be read to know."""
        is_single = len(self._of_tokens) == 1
        # among several conditions a list of labels seldom excludes an answer, and takes time to read
        bounds = [
            bound for item in self._of_tokens if (is_single or item.operator != "=") and (bound := self._bound(item))
        ]
        possible = " AND ".join(f"({holds} OR {is_unknown})" for holds, is_unknown in bounds) or "true"
        return possible, bounds[0][1] if is_single and bounds else str(bool(self._of_tokens)).lower()

    def _bound(self, condition: Condition) -> tuple[str, str] | None:
        """SQL of an answer: whether a token of it meets the condition, and whether that is unknown; None without."""
        name, operator = condition.field.removeprefix(TOKEN), condition.operator
        if operator == "=" and name in _LISTS:
            return f"list_contains({_LISTS[name]}, ${self._add(condition.value)})", "false"
        gap = name.removeprefix("abs_")
        if gap not in GAPS or operator not in (">", ">=", "<", "<="):
            return None
        if operator[0] == "<" and gap != name:
            return None
        value = self._add(condition.value)
        if operator[0] == "<":
            return f"min_{gap} {operator} ${value}", f"min_{gap} IS NULL"
        below = f" OR min_{gap} {operator.replace('>', '<')} -${value}" if gap != name else ""
        return f"(max_{gap} {operator} ${value}{below})", f"max_{gap} IS NULL"

    def _all(self, conditions: Iterable[Condition]) -> str:
        return " AND ".join(self._sql(condition) for condition in conditions) or "true"

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
