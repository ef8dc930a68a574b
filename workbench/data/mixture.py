"""Several sources of training examples with weights: `data.train: [{path: a.jsonl, weight: 2}, {path: b.jsonl}]`.

A step draws from the sources in proportion to their weights (seeding.MixedOrder). Examples of several sources have ids
SOURCE/ID, since row numbers repeat, and `Example.source` names their source.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

from workbench.data.counterparts import Counterparts
from workbench.data.examples import load_examples
from workbench.data.source_list import Source
from workbench.errors import DataError, at
from workbench.seeding import EpochOrder, MixedOrder
from workbench.types import Example


def load_mixture(
    sources: Sequence[Source], *, max_examples: int | None = None, load: Callable[..., list[Example]] = load_examples
) -> list[Example]:
    """Load the examples of all sources, or the first `max_examples` of each, in the order of the sources.

    load    as load_examples
    Raises  as load_examples, naming the entry; DataError for a source without rows
    """
    if len(sources) == 1 and not sources[0].domain:
        return load(sources[0].path, max_examples=max_examples)
    examples: list[Example] = []
    for source in sources:
        with at(source.key):
            examples += _labeled(load(source.path, max_examples=max_examples), source, is_alone=len(sources) == 1)
    return examples


def _labeled(rows: list[Example], source: Source, *, is_alone: bool) -> list[Example]:
    """Rows with the domain of their source where they have none, and its name in their ids if there are several."""
    labeled = []
    for row in rows:
        domain = row.domain or source.domain
        name, row_id = ("", row.id) if is_alone else (source.name, f"{source.name}/{row.id}")
        labeled.append(dataclasses.replace(row, id=row_id, source=name, domain=domain))
    if not isinstance(rows[0].others, Counterparts):
        return labeled
    others = Counterparts(labeled)  # by the domains that the rows have now
    return [dataclasses.replace(row, others=others) for row in labeled]


def require_every_source(usable: Sequence[Example], sources: Sequence[Source]) -> None:
    """Raise DataError for a source of which no example is left."""
    left = {example.source for example in usable}
    for source in sources if len(sources) > 1 else ():
        if source.name not in left:
            raise DataError(
                f'{source.key} "{source.path}": none of its examples can be used, so its weight of '
                f"{source.weight:g} cannot be kept. Remove the entry, or see skipped.jsonl and correct its rows."
            )


def order_of(
    examples: Sequence[Example], sources: Sequence[Source], seed: int, *, shuffle: bool = True
) -> EpochOrder | MixedOrder:
    """Order in which training draws the examples, in epochs of each source.

    shuffle  a new permutation each epoch; False = as loaded

    Raises: as require_every_source.
    """
    require_every_source(examples, sources)
    if len(sources) == 1:
        return EpochOrder(len(examples), seed, shuffle=shuffle)
    groups: dict[str, list[int]] = {source.name: [] for source in sources}
    for idx, example in enumerate(examples):
        groups[example.source].append(idx)
    return MixedOrder(list(groups.values()), [source.weight for source in sources], seed, shuffle=shuffle)


def describe_sources(
    loaded: Sequence[Example], usable: Sequence[Example], sources: Sequence[Source], num_draws: int
) -> list[str]:
    """One sentence for each source: its examples, share of the draws, passes in `num_draws` draws, and domain.

    loaded  all examples; `usable` are those that training draws from
    """
    if len(sources) == 1 and not sources[0].domain:
        return []
    total = sum(source.weight for source in sources)
    rows = Counter(example.source for example in loaded)
    left = Counter(example.source for example in usable)
    lines = []
    for source in sources:
        key = "" if len(sources) == 1 else source.name
        share = source.weight / total
        passes = share * num_draws / left[key] if left[key] else math.nan
        line = f"{source.name or source.path}: {left[key]:,} of {rows[key]:,} examples, {share:.1%} of the draws, "
        line += f"{passes:.2f} passes"
        if source.domain:
            line += f", domain {source.domain}"
            other = [example for example in loaded if example.source == key and example.domain != source.domain]
            line += f" ({len(other):,} rows keep a domain of their own)" if other else ""
        lines.append(line)
    return lines


def describe_order(seed: int, *, shuffle: bool) -> str:
    """One sentence on the order of the examples."""
    return f"shuffled by seed {seed}, anew in each epoch" if shuffle else "as in the data, in every epoch"
