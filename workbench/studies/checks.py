"""Check that a study's data has what its methods and evaluations need, before a run starts."""

from collections.abc import Callable

from workbench.config.schema import RunConfig
from workbench.data.examples import split_by_evidence
from workbench.data.mixture import load_mixture
from workbench.errors import DataError
from workbench.evals.records import require_answers, require_shown
from workbench.types import Example

_PEEKED = 64  # number of training examples checked before all are loaded


def check_evidence(config: RunConfig, load: Callable) -> None:
    """Raise DataError if no training example has the evidence that the method's contexts need."""
    contexts = list(config.load_method().contexts)
    for limit in (_PEEKED, config.data.max_train_examples):
        examples = load_mixture(config.data.train_sources, max_examples=limit, load=load)
        split = split_by_evidence(examples, contexts)
        if split.usable:
            return
        if limit is not None and len(examples) < limit:  # of a single source
            break
    lacking = sorted({column for _, column in split.skipped})
    first, column = split.skipped[0] if split.skipped else (None, "")
    raise DataError(
        f"none of the {len(examples)} examples of {config.data.train_text} has what method "
        f"{config.method['name']} needs (contexts {', '.join(contexts)}): no {', '.join(lacking)}"
        + (f" (the first, {first.origin or first.id}, has no {column})" if first else "")
        + ". Add the columns, or choose another context."
    )


def check_questions(data: str, contexts: list[str], count: int | None, load: Callable) -> None:
    """Raise DataError if no example has an answer, or no example has the evidence of a context.

    Reads all rows of a file, since any may be faulty. Of scenes, which are slow to draw, it reads only the first.
    """
    if data.startswith("scenes:") and (count is None or count > _PEEKED):
        try:
            return _check_examples(load(data, max_examples=_PEEKED), data, contexts)
        except DataError:
            pass  # rare evidence may occur later
    return _check_examples(load(data, max_examples=count), data, contexts)


def _check_examples(examples: list[Example], data: str, contexts: list[str]) -> None:
    require_answers(examples)
    require_shown(examples, data, contexts)
