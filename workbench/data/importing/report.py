"""Report of an import: written, skipped and changed rows."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_SHOWN = 3  # rows named per reason
_MOST_NOTES = 40  # notes listed


@dataclass
class ImportReport:
    """Counts of written and skipped rows, with notes on changes."""

    path: Path  # the data file
    written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # rows by reason
    first_skipped: dict[str, list[str]] = field(default_factory=dict)  # per reason: file:row and detail
    notes: Counter[str] = field(default_factory=Counter)  # changes to rows that were written
    columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs, as used; several joined by "and"
    unused: tuple[str, ...] = ()  # their columns that were not read
    used: set[str] = field(default_factory=set)  # their columns that were read

    def __str__(self) -> str:
        lines = [f"{self.written:,} rows written to {self.path}, {self.skipped.total():,} skipped."]
        if self.columns:
            lines.append(f"columns: {', '.join(f'{ours} from {theirs}' for ours, theirs in self.columns.items())}")
        if self.unused:
            lines.append(f"not read: {', '.join(self.unused)}")
        lines += [f"note: {count:,} x {note}" for note, count in self.notes.most_common(_MOST_NOTES)]
        if len(self.notes) > _MOST_NOTES:
            lines.append(f"note: {len(self.notes) - _MOST_NOTES:,} more kinds of notes, each at most as frequent")
        for reason, count in self.skipped.most_common():
            lines += [f"skipped: {count:,} x {reason}", *(f"    {first}" for first in self.first_skipped[reason])]
        return "\n".join(lines)

    def skip(self, reason: str, where: str) -> None:
        self.skipped[reason] += 1
        firsts = self.first_skipped.setdefault(reason, [])
        if len(firsts) < _SHOWN:
            firsts.append(where)

    def use(self, ours: str, theirs: str) -> None:
        """Note that a value of `ours` was read from the column `theirs`."""
        self.used.add(theirs)
        column = self.columns.get(ours)
        if column is None:
            self.columns[ours] = theirs
        elif theirs not in column.split(" and "):
            self.columns[ours] = f"{column} and {theirs}"
