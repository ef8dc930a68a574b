"""A configuration as a form, and a form as a configuration. Functions take and return plain values.

The fields are those of `workbench options`. config/schema.py validates the values, as it does for the command line, so
both report the same errors.
"""

import dataclasses
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.app.context import AppContext
from workbench.config.schema import RunConfig, build_config, describe_config, load_config, override, read_yaml
from workbench.data.contexts import CONTEXTS, EVIDENCE, POST_ROLLOUT
from workbench.data.counterparts import WRONG
from workbench.distill.method import Option, range_in_words
from workbench.errors import ConfigError, cut
from workbench.files.parsing import Malformed, dump_yaml, parse_value
from workbench.methods import describe_options, list_methods
from workbench.runs.commands import value_at
from workbench.runs.folder import find_run_dir
from workbench.runs.jobs import config_file, find_jobs

SWITCH, CHOICE, OFFER, OFFERS, NUMBER, TEXT, YAML = "switch", "choice", "offer", "offers", "number", "text", "yaml"
TOP = {"name": "Run name", "method.name": "Method"}  # key -> label; above all others
ESSENTIAL = {  # key -> label, in the order of the short form
    "data.train": "Training data",
    "data.eval": "Evaluation data",
    "models.student": "Student",
    "models.teacher": "Teacher",
    "method.privilege": "Privileged context",
    "training.steps": "Steps",
    "training.batch_size": "Prompts per step",
    "sampling.num_generations": "Answers per prompt",
    "sampling.max_completion_length": "Longest answer",
    "training.learning_rate": "Learning rate",
    "evaluation.every": "Evaluate every",
}
OFFERED = {  # suggested values; others are allowed too
    "method.privilege": ("plain", *EVIDENCE, "boxes+caption", *WRONG),
    "evaluation.contexts": (*(name for name in CONTEXTS if name not in POST_ROLLOUT), "boxes+caption"),
}
_MAX_EXACT = 2**53  # browsers round larger whole numbers


@dataclass(frozen=True)
class Field:
    """One key of a configuration. `method`: the method that has this option; None for keys of every run."""

    key: str
    value_type: object
    default: object = dataclasses.field(hash=False)
    option: Option = dataclasses.field(hash=False)
    method: str | None = None

    @property
    def allowed(self) -> tuple[type, ...]:
        is_union = isinstance(self.value_type, types.UnionType)
        return typing.get_args(self.value_type) if is_union else (self.value_type,)  # type: ignore[return-value]

    @property
    def is_nullable(self) -> bool:
        return type(None) in self.allowed

    @property
    def kind(self) -> str:
        """Kind of widget."""
        if self.key in OFFERED:
            return OFFERS if list in self.allowed else OFFER
        if bool in self.allowed:
            return SWITCH
        if self.option.choices:
            return CHOICE
        if self._takes_yaml and str not in self.allowed:
            return YAML
        if {int, float} & set(self.allowed):
            # gr.Number shows 0 for an empty value
            return TEXT if self.is_nullable or (self.option.high or 0) > _MAX_EXACT else NUMBER
        return TEXT

    @property
    def _takes_yaml(self) -> bool:
        return list in self.allowed or dict in self.allowed

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def label(self) -> str:
        return {**TOP, **ESSENTIAL}.get(self.key) or self.key.rpartition(".")[2].replace("_", " ")

    @property
    def hint(self) -> str:
        """Meaning, unit, range, and the meaning of an empty field."""
        option = self.option
        parts = [option.help + (f" [{option.unit}]" if option.unit else "")]
        parts.append(range_in_words(option.low, option.high if (option.high or 0) <= _MAX_EXACT else None))
        if self.is_nullable and "null" not in option.help:
            parts.append("empty: none")
        text = " · ".join(filter(None, parts)).replace("null ", "empty ")
        return text.replace("e-0", "e\u2011")  # keeps 1e-06 on one line

    def to_widget(self, value: object) -> object:
        """The value for the field's widget."""
        if self.kind == OFFERS:
            return value
        if self.kind == YAML or isinstance(value, list | dict):
            return dump_yaml(value, on_one_line=True)
        if self.kind == TEXT:
            return "" if value is None else str(value)
        return "" if self.kind == CHOICE and value is None else value  # the choice "none"

    def from_widget(self, entered: object) -> object:
        """The entered value as a plain value. Raises ConfigError if a YAML field does not hold YAML."""
        if entered is None or (isinstance(entered, str) and not entered.strip()):
            return None if self.is_nullable else "" if str in self.allowed else entered
        is_list = self._takes_yaml and str(entered).lstrip()[:1] in ("[", "{")
        if self.kind == YAML or is_list or (self.kind == TEXT and str not in self.allowed):
            try:
                return parse_value(str(entered))
            except Malformed as error:
                raise ConfigError(f'{self.key}: "{cut(entered)}" is not a YAML value ({error}).') from None
        return entered.strip() if isinstance(entered, str) else entered


def fields() -> list[Field]:
    """Every key of a configuration, then every option of every method."""
    common = [Field(key, *described) for key, described in describe_config().items()]
    options = [
        Field(f"method.{key}", *described, method=name)
        for name in list_methods()
        for key, described in describe_options(name).items()
    ]
    return common + options


def form_slots(every_field: Sequence[Field]) -> list[dict[str | None, Field]]:
    """One entry per widget, in the page's order: {None: field} for a key of every method, else {method: field, ...}.

    Options of one name and kind share a widget, since only one method is chosen at a time. The order: TOP, ESSENTIAL,
    options of methods, other sections, keys without section.
    """
    slots: dict[tuple[str, str], dict[str | None, Field]] = {}
    for field in every_field:
        slots.setdefault((field.key, field.kind), {})[field.method] = field
    first = [*TOP, *ESSENTIAL]
    sections = list(dict.fromkeys(key.rpartition(".")[0] for key, _ in slots))
    order = ["method", *(name for name in sections if name not in ("", "method")), ""]

    def position(slot: tuple[tuple[str, str], object]) -> tuple[int, int]:
        key = slot[0][0]
        return (first.index(key), 0) if key in first else (len(first), order.index(key.rpartition(".")[0]))

    return [slot for _, slot in sorted(slots.items(), key=position)]


def slot_field(slot: Mapping[str | None, Field], method: str) -> Field | None:
    """The field that a widget holds while `method` is chosen; None if the method lacks the option."""
    return slot.get(None) or slot.get(method)


def section_notes() -> dict[str, str]:
    """The first docstring line of each section's class; the form describes the method itself."""
    return dict(_notes(RunConfig, ""))


def _notes(section: Any, prefix: str) -> typing.Iterator[tuple[str, str]]:
    for name, hint in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            yield f"{prefix}{name}", (hint.__doc__ or "").splitlines()[0].rstrip(".")
            yield from _notes(hint, f"{prefix}{name}.")


def recipes(context: AppContext) -> list[tuple[str, str]]:
    """Configurations to start from, as (label, value): recipes, the demo first; then runs, newest first."""
    choices = []
    for file in sorted(context.configs_dir.glob("*.yaml"), key=lambda file: (file.stem != "demo", file.name)):
        try:
            is_run = "method" in read_yaml(file)  # others are for `workbench pretrain`
        except ConfigError:
            is_run = True  # choosing it shows the error
        if is_run:
            choices.append((f"recipe  {file.name}", f"recipe:{file.name}"))
    runs = [state for state in find_jobs(context.runs_dir) if config_file(state.run_dir) is not None]
    return choices + [(f"run  {state.name}  ·  {state.status}", f"run:{state.name}") for state in runs]


def recipe_file(context: AppContext, choice: str | None) -> Path:
    """The file of a choice. Raises ConfigError or RunError if it is not one of `recipes`."""
    kind, _, name = (choice or "").partition(":")
    if kind == "run":
        run_dir = find_run_dir(context.runs_dir, name)
        return config_file(run_dir) or run_dir / "config.yaml"  # reading it raises the error
    file = context.configs_dir / name
    if kind != "recipe" or Path(name).name != name or file.suffix != ".yaml":
        raise ConfigError(
            f'"{choice}" is not a recipe. Choose one from the list, or put a YAML file into {context.configs_dir}.'
        )
    return file


def free_name(context: AppContext, first: str) -> str:
    """The name, or the next one that no run has: demo-2, demo-3, ..."""
    taken = {state.name for state in find_jobs(context.runs_dir)}
    stem, dash, number = first.rpartition("-")
    stem = stem if dash and number.isdigit() else first
    name, count = first, 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}"
    return name


def form_values(context: AppContext, choice: str | None) -> dict[str, object]:
    """The value of each key of a recipe, with a free name and the app's runs folder.

    Raises: ConfigError if the recipe is not a valid configuration.
    """
    plain = load_config(recipe_file(context, choice)).to_dict()
    keys = ["method.name", *describe_config(plain["method"]["name"])]
    values = {key: value_at(plain, key) for key in keys}
    return {**values, "name": free_name(context, str(values["name"])), "output_dir": str(context.runs_dir)}


def entered_config(
    context: AppContext, form: Sequence[Mapping[str | None, Field]], entered: Sequence[object], overrides: str = ""
) -> RunConfig:
    """The configuration of a form.

    entered    a value for each of `form_slots`
    overrides  lines of key=value that take precedence over the form

    Raises: ConfigError naming the key and the allowed values.
    """
    method = next(value for slot, value in zip(form, entered, strict=True) if _key(slot) == "method.name")
    values: dict[str, object] = {}
    for slot, value in zip(form, entered, strict=True):
        field = slot_field(slot, str(method))
        if field is not None:
            *parents, last = field.key.split(".")
            section = values
            for parent in parents:
                section = section.setdefault(parent, {})  # type: ignore[assignment]
            section[last] = field.from_widget(value)
    lines = [line.strip() for line in overrides.split("\n") if line.strip()]
    config = build_config(override(values, lines))
    return dataclasses.replace(config, output_dir=str(context.runs_dir))


def _key(slot: Mapping[str | None, Field]) -> str:
    return next(iter(slot.values())).key


def check_table(text: str) -> list[tuple[str, ...]]:
    """The rows of a printed table, to an empty line; the rules under its header give the columns."""
    lines = text.split("\n")
    ruled = next((line_idx for line_idx, line in enumerate(lines) if line.strip() and set(line) <= {" ", "─"}), None)
    if ruled is None:
        return []
    starts = [
        line_idx for line_idx, sign in enumerate(lines[ruled]) if sign == "─" and lines[ruled][line_idx - 1] != "─"
    ]
    ends: Sequence[int | None] = [*starts[1:], None]
    rows = list(itertools.takewhile(str.strip, lines[ruled + 1 :]))
    return [tuple(row[start:end].strip() for start, end in zip(starts, ends, strict=True)) for row in rows]
