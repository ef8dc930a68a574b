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

`reference_contexts` apply only to untrained students and teachers, to show whether privilege can pay at all.
`{seed}` in a value, except of models, is replaced by the run's seed, as in
`training.update_mask: masks/found-s{seed}.safetensors`. Overrides cannot set what the study decides itself: seed,
folder and evaluation. Paths are relative to the working directory.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from workbench.config.models import check_models
from workbench.config.renamed import RENAMED_STUDY_KEYS, refuse_renamed_study_key
from workbench.config.schema import (
    RunConfig,
    as_it_ran,
    build_config,
    build_section,
    describe_config,
    override,
    read_recipe,
    read_yaml,
)
from workbench.data.contexts import require_promptable
from workbench.data.examples import load_examples
from workbench.distill.method import Option
from workbench.errors import ConfigError, WorkbenchError, at, require_one_of, show, unknown
from workbench.files.parsing import PLAIN_NAME, flatten
from workbench.files.shipped import find_recipe
from workbench.runs.folder import checkpoint_path
from workbench.studies.checks import check_evidence, check_questions
from workbench.types import STUDENT

UNTRAINED, TEACHER = "untrained", "teacher"  # names of rows, reserved
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
class StudyConfig:
    """A study's file. The classes below build the entries of `variants` and `evaluate`."""

    extends: Annotated[str, Option("File of a recipe, as in extends: configs/demo.yaml")]
    variants: Annotated[dict, Option("Variants to compare, as in variants: {opd: {method.name: opd}}")]
    evaluate: Annotated[
        tuple, Option('Questions, as in evaluate: [{data: "scenes:eval?count=512", contexts: [plain]}]')
    ]
    name: Annotated[str, Option("Name of the study and of its folder. Empty = the file's name")] = ""
    overrides: Annotated[dict | None, Option("Dotted keys for all runs")] = None
    seeds: Annotated[tuple, Option("Seeds, each of a run of every variant")] = (0, 1, 2, 3, 4)
    parallel: Annotated[int, Option("Runs at a time", low=1)] = 2
    baseline: Annotated[str | None, Option("Variant that the others are compared with. null = the first")] = None
    grid: Annotated[dict | None, Option("Lists of values by dotted key, multiplied into every variant")] = None

    def __post_init__(self) -> None:
        good = self.seeds and all(type(seed) is int and seed >= 0 for seed in self.seeds)
        if not good or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"seeds must be a list of different whole numbers such as [0, 1, 2], got {show(list(self.seeds))}."
            )
        _refuse_own(self.overrides or {}, "overrides")
        _refuse_own(self.grid or {}, "grid")
        for key, several in (self.grid or {}).items():
            if not isinstance(several, list) or not several:
                raise ConfigError(f"grid.{key} must be a list of values, got {show(several)}.")


@dataclass(frozen=True)
class VariantKeys:
    """Keys of a variant that are not overrides of its runs."""

    note: Annotated[str, Option("Text beside the variant's name in the report")] = ""
    starts_from: Annotated[str | None, Option("Earlier variant from whose final students its runs start")] = None
    grid: Annotated[bool, Option("Whether grid is multiplied into it. false = run the variant once")] = True


@dataclass(frozen=True)
class EvalSet:
    """One entry of `evaluate`. `label` names it in tables."""

    data: Annotated[str, Option("Examples: scenes:SPLIT?count=N, a file, or hf:NAME")]
    contexts: Annotated[tuple, Option("Contexts in which all are evaluated")] = ("plain",)
    reference_contexts: Annotated[tuple, Option("Contexts for untrained students and teachers alone")] = ()
    max_examples: Annotated[int | None, Option("Use only the first N examples. null = all", low=1)] = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.contexts:
            raise ConfigError("contexts is empty. Name one, as in [plain].")
        for context in (*self.contexts, *self.reference_contexts):
            require_promptable(str(context))

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

    fault        why it cannot be built
    starts_from  an earlier variant: each run starts from the final student of that variant's run of the same seed
    """

    name: str
    note: str = ""
    config: RunConfig | None = None
    fault: str | None = None
    starts_from: str | None = None


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
        """Configuration of the run whose final student this run starts from; None without `starts_from`."""
        earlier = next((candidate for candidate in self.usable if candidate.name == variant.starts_from), None)
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
            row = TEACHER if role == TEACHER else UNTRAINED if learner == STUDENT else f"{UNTRAINED} {learner}"
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
    with at(f"study {path}"):
        return _load(path, _build(StudyConfig, values), load)


def _load(path: Path, config: StudyConfig, load: Callable | None) -> Study:
    name = config.name or path.stem
    if run_name(name, 0) != f"{name}-s0":
        raise ConfigError(f"name {show(name)} must be a plain folder name: {PLAIN_NAME}.")
    with at("extends"):
        if "variants" in read_yaml(find_recipe(config.extends)):
            raise ConfigError(f"expected a recipe's file such as configs/demo.yaml, got the study {config.extends}.")
        base = read_recipe(config.extends)
    questions, common = _eval_sets(config.evaluate, load), config.overrides or {}
    folder = Path(str(base.get("output_dir", "runs"))) / name
    fixed = {"output_dir": str(folder), "data.eval": None}
    if override(base, _texts(common)).get("data", {}).get("probes") is None:
        fixed["data.probes"] = questions[0].data
    variants: list[Variant] = []
    for variant, keys, overrides in _expanded(config):
        built = _variant(variant, keys.note, base, {**common, **overrides, **fixed}, load, config.seeds[0])
        variants.append(_with_start(built, keys.starts_from, variants))
    _refuse_twins(variants)
    names = [variant.name for variant in variants]
    study = Study(
        name, folder, path, config.seeds, config.parallel, config.baseline or names[0], tuple(variants), questions
    )
    require_one_of("baseline", study.baseline, names)
    if not study.usable:
        affected: dict[str, list[str]] = {}
        for variant, fault in study.faults.items():
            affected.setdefault(fault, []).append(variant)
        faults = "; ".join(f"{', '.join(group)}: {fault}" for fault, group in affected.items())
        raise ConfigError(f"none of its {len(variants)} variants can be built. {faults}")
    return study


def _build(section: type, values: object, prefix: str = "") -> Any:
    for key in values if isinstance(values, dict) else ():
        refuse_renamed_study_key(key)
    return build_section(section, values, prefix)


def _with_start(variant: Variant, starts_from: str | None, earlier: list[Variant]) -> Variant:
    """Set the variant that this one starts from, which must be an earlier one that can be built."""
    if starts_from is None:
        return variant
    before = next((candidate for candidate in earlier if candidate.name == starts_from), None)
    if before is None:
        names = [candidate.name for candidate in earlier]
        raise ConfigError(f"variants.{variant.name}.starts_from: {unknown('earlier variant', starts_from, names)}")
    fault = variant.fault or (before.fault and f'it starts from "{starts_from}", which cannot be built')
    return replace(variant, starts_from=starts_from, fault=fault, config=None if fault else variant.config)


def _expanded(config: StudyConfig) -> list[tuple[str, VariantKeys, dict]]:
    """List every variant of the file and grid as (name, keys, overrides). Names are unique as folders."""
    grid = config.grid or {}
    last = [key.rpartition(".")[2] for key in grid]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(grid, last, strict=True)}
    expanded = []
    for name, values in config.variants.items():
        keys, overrides = _split_variant(f"variants.{name}", {} if values is None else values)
        varied = grid if keys.grid else {}
        twice = next((key for key in varied if key in overrides), None)
        if twice is not None:
            raise ConfigError(
                f"variants.{name} sets {twice}, which grid varies. Remove it, or set grid: false to run the variant "
                "once."
            )
        for chosen in itertools.product(*varied.values()):
            point = dict(zip(varied, chosen, strict=True))
            label = " ".join([str(name), *(f"{short[key]}={_plain(value)}" for key, value in point.items())])
            expanded.append((label, keys, {**overrides, **point}))
    folders: dict[str, str] = {}
    for name, *_ in expanded:
        if name in (UNTRAINED, TEACHER):
            raise ConfigError(f'the name "{name}" is reserved for a row of every table. Rename the variant.')
        other = folders.setdefault(run_name(name, 0), name)
        if other != name or sum(name == other_name for other_name, *_ in expanded) > 1:
            raise ConfigError(f'variants "{other}" and "{name}" would share one folder. Rename one of them.')
    return expanded


def _split_variant(where: str, values: Any) -> tuple[VariantKeys, dict]:
    """Split an entry of `variants` into its own keys and the overrides of its runs."""
    names = {*RENAMED_STUDY_KEYS, *(entry.name for entry in fields(VariantKeys))}
    study_keys = {key: values[key] for key in values if key in names} if isinstance(values, dict) else values
    keys = _build(VariantKeys, study_keys, f"{where}.")
    _refuse_own(values, where)
    return keys, {key: value for key, value in values.items() if key not in study_keys}


def _refuse_twins(variants: list[Variant]) -> None:
    """Raise ConfigError if two variants have the same settings, and so would be the same run."""
    first_with: dict[str, str] = {}
    for variant in variants:
        if variant.fault:
            continue
        key = json.dumps([variant.starts_from, settings(variant.config)], sort_keys=True, default=str)
        twin = first_with.setdefault(key, variant.name)
        if twin != variant.name:
            raise ConfigError(
                f'variants "{twin}" and "{variant.name}" have the same settings, so they would be the same '
                "run. Set what differs, such as method.privilege (naming a method resets its options), or remove one."
            )


def _variant(name: str, note: str, base: dict, overrides: dict, load: Callable | None, seed: int) -> Variant:
    """Build a variant and check the models and data of its first seed's run."""
    try:
        config = build_config(override(base, _texts({**overrides, "name": run_name(name, 0)})))
        if config.training.epochs:
            raise ConfigError("training.epochs is not for studies, which compare equal steps. Set training.steps.")
        if load is not None:
            first = build_config(_of_seed(config, seed))
            check_models(first)
            check_evidence(first, load)
    except WorkbenchError as error:
        return Variant(name, note, fault=str(error))
    return Variant(name, note, config)


def _of_seed(config: RunConfig, seed: int) -> dict:
    return json.loads(json.dumps(config.to_dict()).replace("{seed}", str(seed)))


def _eval_sets(entries: tuple, load: Callable | None) -> tuple[EvalSet, ...]:
    eval_sets = []
    for idx, entry in enumerate(entries):
        with at(f"evaluate[{idx}]"):
            eval_set = _build(EvalSet, entry)
            if load is not None:
                contexts = [*eval_set.contexts, *eval_set.reference_contexts]
                check_questions(eval_set.data, contexts, eval_set.max_examples, load)
        eval_sets.append(eval_set)
    short = [item.data.partition("?")[0] for item in eval_sets]
    labels = short if len(set(short)) == len(short) else [item.data for item in eval_sets]
    if len(set(labels)) < len(labels):
        raise ConfigError("evaluate names the same data twice. Merge the contexts into one entry.")
    return tuple(replace(item, label=label) for item, label in zip(eval_sets, labels, strict=True))


def _own_overrides(values: dict, overrides: Iterable[str]) -> dict:
    """Apply command-line overrides to a study. `overrides.KEY=VALUE` sets one key of its overrides."""
    plain = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key.startswith("overrides.") and isinstance(values.get("overrides") or {}, dict):
            (parsed,) = override({}, [f"value={value}"]).values()
            merged = {**(values.get("overrides") or {}), key.removeprefix("overrides."): parsed}
            values = {**values, "overrides": merged}
        else:
            plain.append(text)
    return override(values, plain)


def _refuse_own(values: dict, what: str) -> None:
    for key in values:
        if key in _OWN:
            raise ConfigError(f"{what}: cannot set {key}, which the study sets itself. {_OWN[key]}.")
        if key in _SECTIONS:  # would replace the recipe's whole section
            raise ConfigError(f"{what}: {key} is a whole section. Set dotted keys, each as {key}.KEY: VALUE.")


def _texts(values: dict) -> list[str]:
    """Write values as overrides, in JSON, which is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
