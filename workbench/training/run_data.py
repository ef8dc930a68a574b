"""All examples of a run: what data.train, data.held_out, data.eval and data.probes name."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.config.evaluation import EvaluationSet
from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples
from workbench.data.held_out import count_repeated, split_held_out
from workbench.data.mixture import load_mixture
from workbench.errors import at
from workbench.evals.records import require_answers
from workbench.types import Example


@dataclass(frozen=True)
class RunData:
    """Loaded examples. evaluation: pairs of a set and its examples; num_held_out: rows set aside, before any limit."""

    train: list[Example]
    evaluation: list[tuple[EvaluationSet, list[Example]]]
    probes: list[Example]
    num_held_out: int = 0

    @property
    def by_key(self) -> dict[str, list[Example]]:
        """Examples by configuration key, for fingerprints."""
        return {
            "data.train": self.train,
            **{chosen.key: examples for chosen, examples in self.evaluation},
            "data.probes": self.probes,
        }

    def describe_held_out(self, share: float) -> str:
        """One sentence on the rows that are set aside; "" if none are."""
        if not self.num_held_out:
            return ""
        (_, evaluated), total = self.evaluation[0], self.num_held_out + len(self.train)
        return (
            f"data.held_out={share:g}: {self.num_held_out:,} of {total:,} examples are set aside, "
            f"{len(evaluated):,} of them are evaluated (evaluation.max_examples); {len(self.train):,} are trained on"
        )

    def describe_repeated(self) -> list[str]:
        """One sentence for each evaluation set of which examples are trained on too."""
        counts = [(chosen.key, count_repeated(rows, self.train), len(rows)) for chosen, rows in self.evaluation]
        return [
            f"{key}: {count:,} of {total:,} examples are trained on too (same texts and images), so their accuracy "
            "tells nothing about new questions. Name others, or set data.held_out in place of data.eval."
            for key, count, total in counts
            if count
        ]


def with_template(examples: list[Example], config: RunConfig) -> list[Example]:
    """Examples whose privileged prompts follow data.privileged_template."""
    template = config.data.privileged_template
    if template is None:
        return examples
    return [dataclasses.replace(example, privileged_template=template) for example in examples]


def load_run_data(config: RunConfig) -> RunData:
    """Load all examples. Raises DataError for a faulty row, or if no example of an evaluation set has an answer."""
    train, held_out = load_train(config)
    evaluation = load_evaluation(config.evaluation_sets, held_out)
    evaluation = [(chosen, with_template(examples, config)) for chosen, examples in evaluation]
    probes = [] if config.data.probes is None else load_examples(config.data.probes)
    return RunData(with_template(train, config), evaluation, with_template(probes, config), len(held_out))


def load_train(config: RunConfig) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those that data.held_out sets aside."""
    examples = load_mixture(config.data.train_sources, max_examples=config.data.max_train_examples)
    return split_held_out(examples, config.data.held_out) if config.data.held_out else (examples, [])


def load_evaluation(
    sets: Iterable[EvaluationSet], held_out: list[Example]
) -> list[tuple[EvaluationSet, list[Example]]]:
    """Every evaluation set with its examples, whose ids and `source` have the set's name."""
    loaded = []
    for chosen in sets:
        limit = chosen.max_examples or None
        if not chosen.path:
            examples = held_out[:limit]
        elif not chosen.name:
            examples = load_examples(chosen.path, max_examples=limit)
        else:
            with at(chosen.key):
                examples = load_examples(chosen.path, max_examples=limit)
            name = chosen.name
            examples = [dataclasses.replace(row, id=f"{name}/{row.id}", source=name) for row in examples]
        with at(chosen.key):
            require_answers(examples)
        loaded.append((chosen, examples))
    return loaded
