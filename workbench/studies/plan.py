"""Parse a study's file into the configurations of its runs.

    name: main
    extends: configs/demo.yaml              a recipe, see `workbench train`
    overrides: {training.steps: 120}     dotted keys, for all runs
    seeds: [0, 1, 2, 3, 4]
    parallel: 2                          runs at a time
    baseline: opd                        the variant that the others are compared with; default: the first
    variants:
      opd: {method.name: opd}
      dopd: {note: as in the paper, method.name: dopd, method.privilege: crop}
      later: {starts_from: dopd, method.name: opd}    starts from the final student of dopd's run of the same seed
    grid: {method.privilege: [crop, boxes]}   optional: multiplied into every variant except those with grid: false
    evaluate:
      - {data: "scenes:eval?count=512", contexts: [plain], reference_contexts: [crop, wrong_crop]}

`reference_contexts` apply only to untrained students and teachers, to show whether privilege could pay at all.
`{seed}` in a value, except of models, is replaced by the run's seed, as in
`training.update_mask: masks/found-s{seed}.safetensors`. Overrides cannot set what the study decides itself: seed,
folder and evaluation. Paths are relative to the working directory.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.config.models import check_models
from workbench.config.renamed import refuse_renamed_study_key
from workbench.config.schema import (
    RunConfig,
    as_it_ran,
    build_config,
    describe_config,
    override,
    read_recipe,
    read_yaml,
)
from workbench.data.contexts import require_promptable
from workbench.data.examples import load_examples
from workbench.errors import ConfigError, WorkbenchError, at, show, unknown
from workbench.files.parsing import PLAIN_NAME, flatten
from workbench.files.shipped import find_recipe
from workbench.runs.folder import checkpoint_path
from workbench.studies.checks import check_evidence, check_questions
from workbench.types import STUDENT

_QUESTION_KEYS = ("data", "contexts", "reference_contexts", "max_examples")
KEYS = ("name", "extends", "overrides", "seeds", "parallel", "baseline", "variants", "grid", "evaluate")
BASE, TEACHER = "base", "teacher"  # names of rows, reserved
_OWN = {  # keys that the study sets itself -> what to do instead
    "name": "It is the variant's name",
    "seed": "Set seeds: [...]",
    "output_dir": "It is the output_dir of the base recipe, plus the study's name",
    **dict.fromkeys(
        ("data.eval", "evaluation.max_examples", "evaluation.contexts", "evaluation.teacher", "evaluation.every"),
        "Set evaluate: [...]",
    ),
}
_SECTIONS = {key.partition(".")[0] for key in describe_config() if "." in key}
_NEEDED = {
    "extends": "a recipe's file, as in extends: configs/demo.yaml",
    "variants": "the variants to compare, as in variants: {opd: {method.name: opd}}",
    "evaluate": 'the questions, as in evaluate: [{data: "scenes:eval?count=512", contexts: [plain]}]',
}
# keys that may differ between an existing run and the study's configuration: a run's numbers do not depend on them
_FREE = (
    "name",
    "output_dir",
    "data.eval",
    "data.probes",
    "evaluation.",
    "training.save_every",
    "training.save_total_limit",
    "training.report_to",
)


@dataclass(frozen=True)
class EvalSet:
    """One entry of `evaluate`: a data set and the contexts in which all are evaluated. `label` names it in tables."""

    data: str
    contexts: tuple[str, ...]
    max_examples: int | None
    label: str
    reference_contexts: tuple[str, ...] = ()  # contexts for untrained students and teachers alone

    def for_references(self) -> "EvalSet":
        """These questions with every context in which a reference is evaluated."""
        extra = (context for context in self.reference_contexts if context not in self.contexts)
        return replace(self, contexts=(*self.contexts, *extra), reference_contexts=())


@dataclass(frozen=True)
class ReferenceModel:
    """An untrained model, evaluated once for the whole study: a student before training, or a teacher."""

    role: str  # "student" or "teacher"
    model: str
    row: str  # its name in tables
    config: RunConfig = field(compare=False)
    learner: str = STUDENT  # in a run with peers: name of the student

    def belongs_to(self, config: RunConfig) -> bool:
        """Whether a run starts from this student, or has this teacher."""
        models = config.models
        if self.role == TEACHER:
            return self.model in (models.teacher, *models.teachers.values())
        return self.model == models.learners.get(self.learner)


@dataclass(frozen=True)
class Variant:
    """One row of the study: a configuration without its seed.

    fault  why it cannot be built
    after  an earlier variant: each run starts from the final student of that variant's run of the same seed
    """

    name: str
    note: str = ""
    config: RunConfig | None = None
    fault: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Study:
    """A validated study. Its folder holds one run per variant and seed, and the tables."""

    name: str
    folder: Path
    source: Path
    seeds: tuple[int, ...]
    parallel: int
    baseline: str
    variants: tuple[Variant, ...]
    evaluate: tuple[EvalSet, ...]

    @property
    def usable(self) -> list[Variant]:
        return [variant for variant in self.variants if variant.config is not None]

    @property
    def faults(self) -> dict[str, str]:
        """Variants that cannot be built -> reason."""
        return {variant.name: variant.fault for variant in self.variants if variant.fault is not None}

    def reference_file(self, row: str) -> Path:
        """Path of the stored answers of a reference model."""
        return self.folder / ".references" / f"{row.replace(' ', '-')}.parquet"

    def config(self, variant: Variant, seed: int) -> RunConfig:
        """Build the configuration of one run."""
        values = _of_seed(variant.config, seed)
        before = self.before(variant, seed)
        if before is not None:
            last = checkpoint_path(before.run_dir, before.training.steps)
            values["models"] = values["models"] | {"student": str(last / "student")}
        return build_config(values | {"seed": seed, "name": run_name(variant.name, seed)})

    def before(self, variant: Variant, seed: int) -> RunConfig | None:
        """Configuration of the run whose final student this run starts from; None without `after`."""
        earlier = next((candidate for candidate in self.usable if candidate.name == variant.after), None)
        return None if earlier is None else self.config(earlier, seed)

    def references(self) -> list[ReferenceModel]:
        """List every starting student and every teacher of the variants once."""
        configs: dict[tuple[str, str, str], RunConfig] = {}
        for variant in self.usable:
            models = variant.config.models
            for learner, model in models.learners.items():
                configs.setdefault(("student", learner, model), variant.config)
            for model in filter(None, (models.teacher, *models.teachers.values())):
                configs.setdefault((TEACHER, STUDENT, model), variant.config)
        rows = []
        for (role, learner, model), config in sorted(configs.items(), key=lambda item: item[0][0] == TEACHER):
            row = TEACHER if role == TEACHER else BASE if learner == STUDENT else f"{BASE} {learner}"
            several = sum(other[:2] == (role, learner) for other in configs) > 1
            rows.append(ReferenceModel(role, model, f"{row} {Path(model).name}" if several else row, config, learner))
        return rows


def run_name(variant: str, seed: int) -> str:
    """Name of a run's folder: the variant's name in plain characters, and the seed."""
    return f"{re.sub(r'[^A-Za-z0-9._+=-]+', '-', variant).strip('-.')}-s{seed}"


def settings(config: RunConfig) -> dict[str, object]:
    """Return the settings that a run's numbers depend on, with dotted keys."""
    return {key: value for key, value in flatten(config.to_dict()).items() if not key.startswith(_FREE)}


def other_settings(config: RunConfig) -> str | None:
    """Return a sentence if the run's folder holds a run with other settings."""
    if not (config.run_dir / "config.yaml").is_file():
        return None
    try:
        there = settings(build_config(as_it_ran(read_yaml(config.run_dir / "config.yaml")), where=str(config.run_dir)))
    except ConfigError as error:
        return f"{error} Delete {config.run_dir}; the same study runs it again."
    here = settings(config)
    others = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    if not others:
        return None
    changes = ", ".join(f"{key}={there.get(key)} there, {here.get(key)} here" for key in others[:3])
    return (
        f"{config.run_dir} was made with other settings ({changes}). Rename the study or the variant, or delete that "
        "folder."
    )


def load_study(
    path: str | Path, overrides: Iterable[str] = (), *, check: bool = True, load: Callable = load_examples
) -> Study:
    """Load a study's YAML file, build the configuration of every variant, and check its models and data.

    overrides  `key=value` of the study's own keys: seeds=[0,1], parallel=1, overrides.training.steps=20
    check      check models and data; not needed to report finished runs

    Raises: ConfigError or DataError if the study as a whole is faulty, or if no variant can be built. The error of a
    single variant is kept in `Variant.fault`.
    """
    load = functools.cache(load) if check else None  # all variants check the same examples
    path = find_recipe(path)
    values = _own_overrides(read_yaml(path), overrides)
    where = f"study {path}"
    _check_keys(values, where)
    name = values.get("name", Path(path).stem)
    if not isinstance(name, str) or run_name(name, 0) != f"{name}-s0":
        raise ConfigError(f"{where}: name {show(name)} must be a plain folder name: {PLAIN_NAME}.")
    common = _mapping(values.get("overrides"), f"{where}: overrides")
    _refuse_own(common, f"{where}: overrides")
    with at(f"{where}: extends"):
        if "variants" in read_yaml(find_recipe(values["extends"])):
            raise ConfigError(
                f"extends must be a recipe's file such as configs/demo.yaml, got the study {values['extends']}."
            )
        base = read_recipe(values["extends"])
    questions = _questions(values["evaluate"], where, load)
    folder = Path(str(base.get("output_dir", "runs"))) / name
    fixed = {"output_dir": str(folder), "data.eval": None}
    if override(base, _texts(common)).get("data", {}).get("probes") is None:
        fixed["data.probes"] = questions[0].data
    variants, seeds = [], _seeds(values.get("seeds", [0, 1, 2, 3, 4]), where)
    for variant, note, after, variant_overrides in _expanded(values, where):
        built = _variant(variant, note, base, {**common, **variant_overrides, **fixed}, load, seeds[0])
        variants.append(_placed(built, after, variants, where))
    _refuse_twins(variants, where)
    parallel, baseline = (
        _count(values.get("parallel", 2), f"{where}: parallel"),
        values.get("baseline", variants[0].name),
    )
    study = Study(name, folder, Path(path), seeds, parallel, str(baseline), tuple(variants), questions)
    if study.baseline not in [variant.name for variant in variants]:
        raise ConfigError(f"{where}: {unknown('baseline', study.baseline, [candidate.name for candidate in variants])}")
    if not study.usable:
        names: dict[str, list[str]] = {}
        for variant, fault in study.faults.items():
            names.setdefault(fault, []).append(variant)
        faults = "; ".join(f"{', '.join(affected)}: {fault}" for fault, affected in names.items())
        raise ConfigError(f"{where}: none of its {len(variants)} variants can be built. {faults}")
    return study


def _check_keys(values: dict, where: str) -> None:
    """Raise ConfigError for an unknown, a former or a missing key of a study's file."""
    for key in values:
        if key not in KEYS:
            with at(where):
                refuse_renamed_study_key(key)
            raise ConfigError(f"{where}: {unknown('key', key, KEYS)}")
    for key, meaning in _NEEDED.items():
        if not values.get(key):
            raise ConfigError(f"{where}: {key} is missing: {meaning}.")
    if not isinstance(values["extends"], str):
        raise ConfigError(
            f"{where}: extends must be a recipe's file such as configs/demo.yaml, got {show(values['extends'])}."
        )


def _placed(variant: Variant, after: str | None, earlier: list[Variant], where: str) -> Variant:
    """Set the variant that this one starts from, which must be an earlier one that can be built."""
    if after is None:
        return variant
    before = next((candidate for candidate in earlier if candidate.name == after), None)
    if before is None:
        names = [candidate.name for candidate in earlier]
        raise ConfigError(f"{where}: variants.{variant.name}: starts_from: {unknown('earlier variant', after, names)}")
    fault = variant.fault or (before.fault and f'it starts after "{after}", which cannot be built')
    return replace(variant, after=after, fault=fault, config=None if fault else variant.config)


def _expanded(values: dict, where: str) -> list[tuple[str, str, str | None, dict]]:
    """List every variant of the file and grid as (name, note, after, overrides). Names are unique as folders."""
    variants = _mapping(values["variants"], f"{where}: variants")
    grid = _mapping(values.get("grid"), f"{where}: grid")
    _refuse_own(grid, f"{where}: grid")
    for key, several in grid.items():
        if not isinstance(several, list) or not several:
            raise ConfigError(f"{where}: grid.{key} must be a list of values, got {show(several)}.")
    last = [key.rpartition(".")[2] for key in grid]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(grid, last, strict=True)}
    expanded = []
    for name, variant_overrides in variants.items():
        variant_overrides = _mapping(variant_overrides, f"{where}: variants.{name}")
        _refuse_own(variant_overrides, f"{where}: variants.{name}")
        with at(f"{where}: variants.{name}"):
            for key in variant_overrides:
                refuse_renamed_study_key(key)
        note, after = variant_overrides.pop("note", ""), variant_overrides.pop("starts_from", None)
        if not isinstance(note, str):
            raise ConfigError(f"{where}: variants.{name}: note must be text, got {show(note)}. Put quotes around it.")
        is_varied = variant_overrides.pop("grid", True)
        if not isinstance(is_varied, bool):
            raise ConfigError(
                f"{where}: variants.{name}: grid must be true or false, got {show(is_varied)}. Set grid: false to "
                "run the variant once."
            )
        varied = grid if is_varied else {}
        twice = next((key for key in varied if key in variant_overrides), None)
        if twice is not None:
            raise ConfigError(
                f"{where}: variants.{name} sets {twice}, which grid varies. Remove it, or set grid: false to run the "
                "variant once."
            )
        for chosen in itertools.product(*varied.values()):
            point = dict(zip(varied, chosen, strict=True))
            label = " ".join([str(name), *(f"{short[key]}={_plain(value)}" for key, value in point.items())])
            expanded.append((label, note, None if after is None else str(after), {**variant_overrides, **point}))
    folders: dict[str, str] = {}
    for name, *_ in expanded:
        if name in (BASE, TEACHER):
            raise ConfigError(f'{where}: the name "{name}" is reserved for a row of every table. Rename the variant.')
        other = folders.setdefault(run_name(name, 0), name)
        if other != name or sum(name == other_name for other_name, *_ in expanded) > 1:
            raise ConfigError(f'{where}: variants "{other}" and "{name}" would share one folder. Rename one of them.')
    return expanded


def _refuse_twins(variants: list[Variant], where: str) -> None:
    """Raise ConfigError if two variants have the same settings, and so would be the same run."""
    first_with: dict[str, str] = {}
    for variant in variants:
        if variant.fault:
            continue
        key = json.dumps([variant.after, settings(variant.config)], sort_keys=True, default=str)
        twin = first_with.setdefault(key, variant.name)
        if twin != variant.name:
            raise ConfigError(
                f'{where}: variants "{twin}" and "{variant.name}" have the same settings, so they would be the same '
                "run. Set what differs, such as method.privilege (naming a method resets its options), or remove one."
            )


def _variant(name: str, note: str, base: dict, overrides: dict, load: Callable | None, seed: int) -> Variant:
    """Build a variant and check the models and data of its first seed's run."""
    try:
        config = build_config(override(base, _texts({**overrides, "name": run_name(name, 0)})))
        if load is not None:
            first = build_config(_of_seed(config, seed))
            check_models(first)
            check_evidence(first, load)
    except WorkbenchError as error:
        return Variant(name, note, fault=str(error))
    return Variant(name, note, config)


def _of_seed(config: RunConfig, seed: int) -> dict:
    return json.loads(json.dumps(config.to_dict()).replace("{seed}", str(seed)))


def _questions(entries: object, where: str, load: Callable | None) -> tuple[EvalSet, ...]:
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: evaluate must be a list of {{data, contexts, max_examples}}, got {show(entries)}.")
    question_sets = []
    for idx, entry in enumerate(entries):
        here = f"{where}: evaluate[{idx}]"
        entry = _mapping(entry, here)
        for key in entry:
            if key not in _QUESTION_KEYS:
                with at(here):
                    refuse_renamed_study_key(key)
                raise ConfigError(f"{here}: {unknown('key', key, _QUESTION_KEYS)}")
        if not isinstance(entry.get("data"), str):
            raise ConfigError(f"{here}: data is missing. Set it to scenes:SPLIT?count=N, a file, or hf:NAME.")
        contexts, extra = entry.get("contexts", ["plain"]), entry.get("reference_contexts", [])
        if not isinstance(contexts, list) or not contexts:
            raise ConfigError(f"{here}: contexts must be a list such as [plain, crop], got {show(contexts)}.")
        if not isinstance(extra, list):
            raise ConfigError(
                f"{here}: reference_contexts must be a list such as [crop, wrong_crop], got {show(extra)}."
            )
        count = None if entry.get("max_examples") is None else _count(entry["max_examples"], f"{here}: max_examples")
        with at(here):
            for context in (*contexts, *extra):
                require_promptable(str(context))
            if load is not None:
                check_questions(entry["data"], [*contexts, *extra], count, load)
        question_sets.append(EvalSet(entry["data"], tuple(contexts), count, entry["data"], tuple(extra)))
    short = [item.data.partition("?")[0] for item in question_sets]
    labels = short if len(set(short)) == len(short) else [item.data for item in question_sets]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{where}: evaluate names the same data twice. Merge the contexts into one entry.")
    return tuple(replace(item, label=label) for item, label in zip(question_sets, labels, strict=True))


def _own_overrides(values: dict, overrides: Iterable[str]) -> dict:
    """Apply command-line overrides to a study. `overrides.KEY=VALUE` sets one key of its overrides."""
    plain = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key.startswith("overrides."):
            (parsed,) = override({}, [f"value={value}"]).values()
            merged = {**(values.get("overrides") or {}), key.removeprefix("overrides."): parsed}
            values = {**values, "overrides": merged}
        else:
            plain.append(text)
    return override(values, plain)


def _mapping(value: object, what: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be a mapping of keys to values, got {show(value)}.")
    return dict(value)


def _refuse_own(values: dict, what: str) -> None:
    for key in values:
        if key in _OWN:
            raise ConfigError(f"{what}: cannot set {key}, which the study sets itself. {_OWN[key]}.")
        if key in _SECTIONS:  # would replace the recipe's whole section
            raise ConfigError(f"{what}: {key} is a whole section. Set dotted keys, each as {key}.KEY: VALUE.")


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    good = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: seeds must be a list of different whole numbers such as [0, 1, 2], got {show(seeds)}."
        )
    return tuple(seeds)


def _count(value: object, what: str) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{what} must be a whole number of at least 1, got {show(value)}.")
    return value


def _texts(values: dict) -> list[str]:
    """Write values as overrides, in JSON, which is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
