"""Compare two scorings of an answer: which tokens changed their regime, and how far log-probs and gaps moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from workbench.analysis.table import Table, table
from workbench.render.view import TokenCell, TokenView

GAPS = ("information_gap", "capability_gap")


@dataclass(frozen=True)
class TokenPair:
    """One token before and after a change; None where it was inserted or deleted. `first`, `second`: its indices."""

    first: int | None
    second: int | None
    before: TokenCell | None
    after: TokenCell | None

    @property
    def is_edited(self) -> bool:
        """Whether the token is not the same in both."""
        return self.before is None or self.after is None or self.before.token_id != self.after.token_id

    @property
    def changed_regime(self) -> bool:
        """Whether both have the token, in different regimes."""
        return self.before is not None and self.after is not None and self.before.regime != self.after.regime


def pair_tokens(before: TokenView, after: TokenView) -> list[TokenPair]:
    """Align the tokens of two scorings by their ids; a replaced token is paired with its replacement."""
    ids, other_ids = ([token.token_id for token in view.tokens] for view in (before, after))
    pairs = []
    for _, start, end, other_start, other_end in SequenceMatcher(None, ids, other_ids, autojunk=False).get_opcodes():
        for offset in range(max(end - start, other_end - other_start)):
            first = start + offset if start + offset < end else None
            second = other_start + offset if other_start + offset < other_end else None
            cells = (
                None if first is None else before.tokens[first],
                None if second is None else after.tokens[second],
            )
            pairs.append(TokenPair(first, second, *cells))
    return pairs


def moved(before: TokenView, after: TokenView) -> Table:
    """Each token with its regime and numbers before and after, in nats; change = after minus before.

    Columns: position, token, token_after, regime, regime_after, and for each gap and each view's log-prob NAME,
    NAME_after, NAME_change.
    """
    views = [name for name in before.views if name in after.views]
    numbers = [*GAPS, *(f"logprob_{name}" for name in views)]
    columns = ["position", "token", "token_after", "regime", "regime_after"]
    columns += [name + suffix for name in numbers for suffix in ("", "_after", "_change")]
    rows = [_row(pair, numbers) for pair in pair_tokens(before, after)]
    units = dict.fromkeys(columns[5:], "nats")
    return table(rows, columns, run="", empty="Neither answer has a token.", units=units)


def _row(pair: TokenPair, numbers: Sequence[str]) -> dict:
    row: dict[str, object] = {
        "position": pair.first if pair.first is not None else pair.second,
        "token": pair.before and pair.before.text,
        "token_after": pair.after and pair.after.text,
        "regime": pair.before and pair.before.regime,
        "regime_after": pair.after and pair.after.regime,
    }
    for name in numbers:
        first, second = (None if cell is None else _number(cell, name) for cell in (pair.before, pair.after))
        change = None if first is None or second is None or pair.is_edited else second - first
        row |= {name: first, f"{name}_after": second, f"{name}_change": change}
    return row


def _number(cell: TokenCell, name: str) -> float | None:
    return cell.logprobs.get(name.removeprefix("logprob_")) if name.startswith("logprob_") else getattr(cell, name)


def summary(before: TokenView, after: TokenView) -> Table:
    """The answer as a whole before and after: its log-prob under each view, and mean sizes of the gaps.

    Columns: quantity, before, after, change; the log-prob of an answer is the sum over its tokens, in nats.
    """
    rows: list[tuple[str, float, float]] = []
    for name in (view for view in before.views if view in after.views):
        first, second = (sum(token.logprobs.get(name, 0.0) for token in view.tokens) for view in (before, after))
        rows.append((f"log-prob of the answer, {name}", first, second))
    for name in GAPS:
        mean, other_mean = (_mean_size(view, name) for view in (before, after))
        if mean is not None and other_mean is not None:
            rows.append((f"mean |{name.replace('_', ' ')}|", mean, other_mean))
    named = [
        {"quantity": quantity, "before": first, "after": second, "change": second - first}
        for quantity, first, second in rows
    ]
    return table(named, ["quantity", "before", "after", "change"], run="", empty="No view scored both answers.")


def _mean_size(view: TokenView, name: str) -> float | None:
    values = [abs(value) for token in view.tokens if (value := getattr(token, name)) is not None]
    return sum(values) / len(values) if values else None


def sentence(before: TokenView, after: TokenView) -> str:
    """How many tokens changed their regime, and the token whose information gap moved most."""
    pairs = pair_tokens(before, after)
    same = [pair for pair in pairs if not pair.is_edited]
    changed = sum(pair.changed_regime for pair in same)
    text = (
        f"{changed} of {len(same)} unchanged tokens changed regime"
        if len(same) < len(pairs)
        else (f"{changed} of {len(same)} tokens changed regime")
    )
    gaps = [
        (pair.after.information_gap - pair.before.information_gap, pair)
        for pair in same
        if pair.before and pair.after and None not in (pair.before.information_gap, pair.after.information_gap)
    ]
    if not gaps:
        return f"{text}."
    move, pair = max(gaps, key=lambda item: abs(item[0]))
    where = f'token {(pair.first or 0) + 1}, "{pair.before.text.strip()}"'
    return f"{text}; the information gap moved most at {where}: {move:+.2f} nats."
