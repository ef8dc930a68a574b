"""A configuration as a form, and a form as a configuration: plain values in, plain values out.

The fields are those of `workbench options`: what the command line has, the form has. A value is checked where the
command line checks it, in config/schema.py, so both say the same sentence.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
TOP = ("name", "method.name")  # above the sections
OFFERED = {  # other values are allowed too
    "method.privilege": ("plain", *EVIDENCE, "boxes+caption", *WRONG),
    "evaluation.contexts": (*(name for name in CONTEXTS if name not in POST_ROLLOUT), "boxes+caption"),
}
_EXACT = 2**53  # a browser rounds larger whole numbers


@dataclass(frozen=True)
class Field:
    """One key of a configuration. `method`: the method whose option it is; None if every method has it."""

    key: str
    value_type: object
    default: object = dataclasses.field(hash=False)
    option: Option = dataclasses.field(hash=False)
    method: str | None = None

    @property
    def allowed(self) -> tuple[type, ...]:
        return typing.get_args(self.value_type) if isinstance(self.value_type, types.UnionType) else (self.value_type,)  # type: ignore[return-value]

    @property
    def is_nullable(self) -> bool:
        return type(None) in self.allowed

    @property
    def kind(self) -> str:
        """What it is entered with."""
        if self.key in OFFERED:
            return OFFERS if list in self.allowed else OFFER
        if bool in self.allowed:
            return SWITCH
        if self.option.choices:
            return CHOICE
        if list in self.allowed or dict in self.allowed:
            return YAML
        if {int, float} & set(self.allowed):
            # a number's component shows 0 where nothing is entered
            return TEXT if self.is_nullable or (self.option.high or 0) > _EXACT else NUMBER
        return TEXT

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def label(self) -> str:
        return self.key.rpartition(".")[2].replace("_", " ")

    @property
    def hint(self) -> str:
        """Meaning, unit, range, and what an empty field means."""
        option = self.option
        parts = [option.help + (f" [{option.unit}]" if option.unit else "")]
        parts.append(range_in_words(option.low, option.high if (option.high or 0) <= _EXACT else None))
        if self.is_nullable and "null" not in option.help:
            parts.append("empty: none")
        shown = " · ".join(filter(None, parts)).replace("null ", "empty ")
        return shown.replace("e-0", "e\u2011")  # 1e-06 is broken at no line's end

    def shown(self, value: object) -> object:
        """A value as its component takes it."""
        if self.kind == YAML:
            return dump_yaml(value, on_one_line=True)
        if self.kind == TEXT:
            return "" if value is None else str(value)
        return "" if self.kind == CHOICE and value is None else value  # the choice "none"

    def read(self, entered: object) -> object:
        """What was entered, as a plain value. Raises ConfigError if it is no YAML where YAML is asked for."""
        if entered is None or (isinstance(entered, str) and not entered.strip()):
            return None if self.is_nullable else "" if str in self.allowed else entered
        if self.kind == YAML or (self.kind == TEXT and str not in self.allowed):
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


def places(every_field: Sequence[Field]) -> list[dict[str | None, Field]]:
    """What the page has components for, in its order: a key of every method as {None: field}, an option as {method: field}.

    Options of one name that are entered alike share a component: it is one method's at a time.
    """
    common = [field for field in every_field if field.method is None]
    options: dict[tuple[str, str], dict[str | None, Field]] = {}
    for field in every_field:
        if field.method is not None:
            options.setdefault((field.key, field.kind), {})[field.method] = field
    top, rest = ([{None: field} for field in common if (field.key in TOP) == is_top] for is_top in (True, False))
    sections = dict.fromkeys(place[None].section for place in rest)
    order = [*(name for name in sections if name), ""]
    return [*top, *options.values(), *sorted(rest, key=lambda place: order.index(place[None].section))]  # type: ignore[list-item]


def field_at(place: Mapping[str | None, Field], method: str) -> Field | None:
    """The field that a component is for while `method` is chosen; None if it is for another method's."""
    return place.get(None) or place.get(method)


def section_notes() -> dict[str, str]:
    """Each section with the first line of what its class says; the method's own is left to the form."""
    return dict(_notes(RunConfig, ""))


def _notes(section: type, prefix: str) -> typing.Iterator[tuple[str, str]]:
    for name, hint in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            yield f"{prefix}{name}", (hint.__doc__ or "").splitlines()[0].rstrip(".")
            yield from _notes(hint, f"{prefix}{name}.")


def recipes(context: AppContext) -> list[tuple[str, str]]:
    """What a form can start from: the recipes, the demo first, then earlier runs, newest first; (label, value) pairs."""
    found = []
    for file in sorted(context.configs_dir.glob("*.yaml"), key=lambda file: (file.stem != "demo", file.name)):
        try:
            is_run = "method" in read_yaml(file)  # others make models, as configs/pretrain-student.yaml
        except ConfigError:
            is_run = True  # choosing it says what is wrong
        if is_run:
            found.append((f"recipe  {file.name}", f"recipe:{file.name}"))
    runs = [state for state in find_jobs(context.runs_dir) if config_file(state.run_dir) is not None]
    return found + [(f"run  {state.name}  ·  {state.status}", f"run:{state.name}") for state in runs]


def recipe_file(context: AppContext, choice: str | None) -> Path:
    """The file that a choice means. Raises ConfigError or RunError if it is none of `recipes`."""
    kind, _, name = (choice or "").partition(":")
    if kind == "run":
        run_dir = find_run_dir(context.runs_dir, name)
        return config_file(run_dir) or run_dir / "config.yaml"  # reading says that it is not there
    file = context.configs_dir / name
    if kind != "recipe" or Path(name).name != name or file.suffix != ".yaml":
        raise ConfigError(
            f'"{choice}" is no recipe. Choose one of the list, or put a YAML file into {context.configs_dir}.'
        )
    return file


def free_name(context: AppContext, wanted: str) -> str:
    """The name, or the next one that no run has: demo, demo-2, demo-3."""
    taken = {state.name for state in find_jobs(context.runs_dir)}
    stem, dash, number = wanted.rpartition("-")
    stem = stem if dash and number.isdigit() else wanted
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}"
    return name


def form_values(context: AppContext, choice: str | None) -> dict[str, object]:
    """The value of each key of a recipe, with a name that is free and the app's runs folder.

    Raises: ConfigError if the recipe is not a good configuration.
    """
    plain = load_config(recipe_file(context, choice)).to_dict()
    keys = ["method.name", *describe_config(plain["method"]["name"])]
    values = {key: value_at(plain, key) for key in keys}
    return {**values, "name": free_name(context, str(values["name"])), "output_dir": str(context.runs_dir)}


def entered_config(
    context: AppContext, form: Sequence[Mapping[str | None, Field]], entered: Sequence[object], overrides: str = ""
) -> RunConfig:
    """The configuration that a form holds: a value for each of its `places`. `overrides`: more lines of key=value, which win.

    Raises: ConfigError naming the key and what is allowed.
    """
    method = next(value for place, value in zip(form, entered, strict=True) if _key(place) == "method.name")
    values: dict[str, object] = {}
    for place, value in zip(form, entered, strict=True):
        field = field_at(place, str(method))
        if field is not None:
            *parents, last = field.key.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})  # type: ignore[assignment]
            place[last] = field.read(value)
    lines = [line.strip() for line in overrides.split("\n") if line.strip()]
    config = build_config(override(values, lines))
    return dataclasses.replace(config, output_dir=str(context.runs_dir))


def _key(place: Mapping[str | None, Field]) -> str:
    return next(iter(place.values())).key


def check_table(text: str) -> list[tuple[str, ...]]:
    """The rows of a table that the command line printed: its columns are as wide as the rules under its header."""
    lines = text.split("\n")
    ruled = next((place for place, line in enumerate(lines) if line.strip() and set(line) <= {" ", "─"}), None)
    if ruled is None:
        return []
    starts = [place for place, sign in enumerate(lines[ruled]) if sign == "─" and lines[ruled][place - 1] != "─"]
    ends: Sequence[int | None] = [*starts[1:], None]
    rows = [line for line in lines[ruled + 1 :] if line.strip()]
    return [tuple(row[start:end].strip() for start, end in zip(starts, ends, strict=True)) for row in rows]
