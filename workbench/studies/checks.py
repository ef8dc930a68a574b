"""What a study's models and data lack, found before anything runs."""

from collections.abc import Callable

from workbench.config.schema import RunConfig
from workbench.data.examples import split_by_evidence
from workbench.errors import DataError
from workbench.evals.records import require_answers, require_shown
from workbench.types import Example

_PEEKED = 64  # training examples whose evidence is looked at before all of them are


def check_evidence(config: RunConfig, load: Callable) -> None:
    """Raises DataError if no training example has what the method's contexts need."""
    contexts = list(config.load_method().contexts)
    for limit in (_PEEKED, config.data.limit):
        examples = load(config.data.train, limit=limit)
        split = split_by_evidence(examples, contexts)
        if split.usable:
            return
        if limit is not None and len(examples) < limit:
            break
    lacking = sorted({column for _, column in split.skipped})
    first, column = split.skipped[0] if split.skipped else (None, "")
    raise DataError(
        f"none of the {len(examples)} examples of {config.data.train} has what method {config.method['name']} needs "
        f"(contexts {', '.join(contexts)}): no {', '.join(lacking)}"
        + (f" (the first, {first.origin or first.id}, has no {column})" if first else "")
        + ". Add the columns, or choose another context."
    )


def check_questions(data: str, contexts: list[str], count: int | None, load: Callable) -> None:
    """Raises DataError if nothing can be counted as right, or a context can be built for no example.

    All rows of a file are read, since one may be faulty; of scenes, whose pictures take long to draw, the first will do.
    """
    if data.startswith("scenes:") and (count is None or count > _PEEKED):
        try:
            return _check_examples(load(data, limit=_PEEKED), data, contexts)
        except DataError:
            pass  # rare evidence may come later
    return _check_examples(load(data, limit=count), data, contexts)


def _check_examples(examples: list[Example], data: str, contexts: list[str]) -> None:
    require_answers(examples)
    require_shown(examples, data, contexts)
