"""A study's file: what it stands for, and every mistake in it as a sentence before anything runs."""

import functools
import json
from pathlib import Path

import pytest
import yaml
from failures import raises
from PIL import Image
from small import run_config

from workbench.data.examples import load_examples
from workbench.errors import ConfigError, DataError
from workbench.studies.plan import Study, load_study, other_settings, run_name


@pytest.fixture
def base(models: dict, tmp_path: Path) -> Path:
    file = tmp_path / "base.yaml"
    values = run_config(models, tmp_path / "runs", data__eval=None).to_dict()
    file.write_text(yaml.safe_dump(values))
    return file


def load(base: Path, /, *overrides: str, **values: object) -> Study:
    plain = {
        "name": "small",
        "extends": str(base),
        "overrides": {"training.steps": 2},
        "seeds": [0, 3],
        "variants": {"opd": {"method.name": "opd"}, "dopd": {"note": "as it is"}},
        "evaluate": [
            {"data": "scenes:eval?count=8", "contexts": ["plain", "crop"]},
            {"data": "scenes:hard", "max_examples": 4},
        ],
        **values,
    }
    file = base.with_name("study.yaml")
    file.write_text(yaml.safe_dump({key: value for key, value in plain.items() if value is not None}, sort_keys=False))
    return load_study(file, overrides)


def test_load_study_is_variants_times_seeds(base: Path) -> None:
    study = load(base)
    assert [(variant.name, variant.note, variant.config.method["name"]) for variant in study.variants] == [
        ("opd", "", "opd"),
        ("dopd", "as it is", "dopd"),
    ]
    config = study.config(study.variants[1], 3)
    assert (config.seed, config.training.steps, config.run_dir) == (3, 2, study.folder / "dopd-s3")
    assert (config.data.eval, config.data.probes) == (None, "scenes:eval?count=8")
    assert (study.baseline, study.parallel) == ("opd", 2)
    assert [(item.label, item.contexts, item.max_examples) for item in study.evaluate] == [
        ("scenes:eval", ("plain", "crop"), None),
        ("scenes:hard", ("plain",), 4),
    ]
    assert [(reference.role, reference.row) for reference in study.references()] == [
        ("student", "untrained"),
        ("teacher", "teacher"),
    ]


def test_reference_contexts_are_for_references_only(base: Path) -> None:
    entry = {"data": "scenes:eval?count=8", "contexts": ["plain"], "reference_contexts": ["plain", "crop"]}
    (questions,) = load(base, evaluate=[entry]).evaluate
    assert (questions.contexts, questions.for_references().contexts) == (("plain",), ("plain", "crop"))
    with raises(ConfigError, "evaluate[0]", "reference_contexts"):
        load(base, evaluate=[entry | {"reference_contexts": "crop"}])
    with raises(ConfigError, "evaluate[0]"):
        load(base, evaluate=[entry | {"reference_contexts": ["nonsense"]}])


def test_load_study_equal_variants_raise(base: Path) -> None:
    """Naming a method resets its options, so "naive" below has lost its crop and is vanilla under another name."""
    variants = {"vanilla": {"method.name": "opd", "method.privilege": "plain"}, "naive": {"method.name": "opd"}}
    with raises(ConfigError, "vanilla", "naive"):
        load(base, variants=variants)
    variants["naive"]["method.privilege"] = "crop"
    assert len(load(base, variants=variants).usable) == 2
    later = {"later": {"method.name": "opd", "method.privilege": "plain", "starts_from": "vanilla"}}
    assert len(load(base, variants=variants | later).usable) == 3


def test_grid_multiplies_every_variant(base: Path) -> None:
    study = load(base, grid={"method.privilege": ["crop", "boxes+caption"], "training.learning_rate": [1e-4]})
    assert [variant.name for variant in study.variants] == [
        f"{method} privilege={context} learning_rate=0.0001"
        for method in ("opd", "dopd")
        for context in ("crop", "boxes+caption")
    ]
    assert study.config(study.variants[3], 0).name == "dopd-privilege=boxes+caption-learning_rate=0.0001-s0"
    assert study.variants[3].config.method["privilege"] == "boxes+caption"
    ambiguous = load(base, grid={"training.steps": [1], "trace.every": [1], "trace.probe_every": [1]})
    assert ambiguous.variants[0].name == "opd steps=1 every=1 probe_every=1"


def test_grid_false_variant_occurs_once(base: Path) -> None:
    variants = {"dopd": {"method.name": "dopd"}, "opsa": {"grid": False, "method.name": "opsa", "training.steps": 1}}
    study = load(base, variants=variants, baseline="opsa", grid={"training.steps": [1, 2]})
    assert [(variant.name, variant.config.training.steps) for variant in study.variants] == [
        ("dopd steps=1", 1),
        ("dopd steps=2", 2),
        ("opsa", 1),
    ]


def test_seed_in_path_is_that_of_the_run(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    Image.new("RGB", (8, 8)).save(image)
    row = {"question": "What?", "images": [str(image)], "answer": "a"}
    (tmp_path / "d-3.jsonl").write_text(json.dumps(row) + "\n")
    variants = {
        "opd": {"method.name": "opd", "method.privilege": "plain", "data.train": f"{tmp_path}/d-{{seed}}.jsonl"}
    }
    study = load(base, variants=variants, seeds=[3])
    assert study.faults == {} and study.config(study.variants[0], 3).data.train == f"{tmp_path}/d-3.jsonl"
    with raises(ConfigError, "d-4.jsonl"):
        load(base, variants=variants, seeds=[4])


def test_command_overrides_reach_runs_and_study(base: Path) -> None:
    study = load(base, "overrides.training.steps=5", "seeds=[9]", "parallel=1")
    assert (study.variants[0].config.training.steps, study.seeds, study.parallel) == (5, (9,), 1)


def test_references_include_start_of_peers(base: Path, models: dict) -> None:
    peers = {"models.peers": {"ann": str(models["teacher"])}}
    study = load(base, variants={"alone": {"method.name": "opd"}, "both": {"method.name": "opd", **peers}})
    assert [(item.row, item.learner) for item in study.references()] == [
        ("untrained", "student"),
        ("untrained ann", "ann"),
        ("teacher", "student"),
    ]
    alone, both = (study.config(variant, 0) for variant in study.variants)
    assert [
        [reference.row for reference in study.references() if reference.belongs_to(config)] for config in (alone, both)
    ] == [
        ["untrained", "teacher"],
        ["untrained", "untrained ann", "teacher"],
    ]
    missing = load(
        base, variants={"a": {"method.name": "opd"}, "b": {"method.name": "opd", "models.peers": {"ann": "./no"}}}
    )
    assert 'models.peers.ann "./no" is not a model folder' in missing.faults["b"]


def test_references_of_two_students_are_two_rows(base: Path, models: dict) -> None:
    study = load(
        base,
        variants={"a": {"method.name": "opd"}, "b": {"method.name": "opd", "models.teacher": str(models["student"])}},
    )
    assert [reference.row for reference in study.references()] == ["untrained", "teacher teacher", "teacher student"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"variannts": {}}, 'key "variannts" is unknown.*Did you mean "variants"'),
        ({"variants": None}, "variants is missing"),
        ({"extends": None}, "extends is missing.*configs/demo.yaml"),
        ({"extends": "nowhere.yaml"}, r"study .*study.yaml: extends: .*nowhere.yaml does not exist"),
        ({"extends": "configs/studies/main.yaml"}, "extends: .*recipe.*configs/studies/main.yaml"),
        ({"extends": 5}, r"study .*: extends must be text, got 5\."),
        ({"extends": ["x"]}, r"extends must be text, got \['x'\]"),
        ({"evaluate": None}, "evaluate is missing"),
        ({"evaluate": {"data": "scenes:eval"}}, "evaluate must be a list"),
        ({"evaluate": [{"datta": "scenes:eval"}]}, 'key "datta" is unknown.*Did you mean "data"'),
        ({"evaluate": [{"contexts": ["plain"]}]}, "data is missing"),
        ({"evaluate": [{"data": "scenes:evil"}]}, r'study .*: evaluate\[0\]: scenes split "evil" is unknown.*"eval"'),
        (
            {"evaluate": [{"data": "scenes:eval", "contexts": ["cropp"]}]},
            r'study .*study.yaml: evaluate\[0\]: context "cropp" is unknown',
        ),
        (
            {"evaluate": [{"data": "scenes:eval", "max_examples": 0}]},
            r"evaluate\[0\]: max_examples must be at least 1",
        ),
        ({"evaluate": [{"data": "scenes:eval"}, {"data": "scenes:eval"}.copy()]}, "names the same data twice"),
        ({"baseline": "opdd"}, 'baseline "opdd" is unknown.*Did you mean "opd"'),
        ({"seeds": [0, 0]}, "seeds must be a list of different whole numbers"),
        ({"seeds": []}, "seeds must be a list"),
        ({"parallel": 0}, "parallel must be at least 1"),
        ({"name": "a/b"}, "must be a plain folder name"),
        ({"overrides": {"training": {"steps": 3}}}, "training is a whole section"),
        ({"overrides": {"training.stepz": 3}}, "none of its 2 variants can be built. opd, dopd: key"),
        ({"overrides": {"seed": 3}}, "seed, .*seeds"),
        ({"variants": {"a": {"data.eval": "scenes:eval"}}}, "data.eval, .*evaluate"),
        ({"variants": {"a": {"note": 10}}}, "variants.a.note must be text, got 10"),
        ({"variants": {"untrained": {}}}, '"untrained" is reserved'),
        ({"variants": {"a b": {}, "a-b": {}}}, 'variants "a b" and "a-b"'),
        ({"variants": ["opd"]}, "variants must be a mapping"),
        ({"grid": {"training.steps": 3}}, "grid.training.steps must be a list"),
        (
            {"variants": {"opd": {"grid": "off", "method.name": "opd"}}},
            "variants.opd.grid must be true or false, got 'off'",
        ),
        ({"grid": {"method.name": ["opd"]}}, "variants.opd sets method.name.*grid: false"),
        ({"variants": {"a": {"method.name": "dpod"}}}, 'none of its 1 variants can be built. a: .*Did you mean "dopd"'),
    ],
    ids=str,
)
def test_load_study_mistake_raises(base: Path, values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(base, **values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method.name": "opd", "method.privelege": "crop"}, 'Did you mean "privilege"'),
        ({"method.name": "dpod"}, 'Did you mean "dopd"'),
        ({"training.stepz": 3}, 'Did you mean "training.steps"'),
        ({"models.teacher": "./nowhere"}, 'models.teacher "./nowhere" is not a model folder'),
        ({"data.train": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
    ids=str,
)
def test_load_study_broken_variant_is_named_and_others_usable(base: Path, values: dict, sentence: str) -> None:
    study = load(base, variants={"opd": {"method.name": "opd"}, "wrong": values})
    assert [item.name for item in study.usable] == ["opd"]
    assert pytest.raises(AssertionError, match=sentence).matches(AssertionError(study.faults["wrong"])), study.faults


def test_missing_evidence_is_found_before_runs(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "bare.jsonl"
    data.write_text("".join(json.dumps({"question": "what?", "answer": "red"}) + "\n" for _ in range(3)))
    variants = {"opd": {"method.name": "opd"}, "hinted": {"method.name": "opd", "method.privilege": "hint"}}
    study = load(base, overrides={"data.train": str(data)}, variants=variants)
    assert "none of the 3 examples" in study.faults["hinted"] and "no hint" in study.faults["hinted"]
    with raises(DataError, "evaluate[0]", "hint"):
        load(base, evaluate=[{"data": str(data), "contexts": ["plain", "hint"]}])
    data.write_text(json.dumps({"question": "what?"}) + "\n")
    with raises(DataError, "1 evaluation", "answer"):
        load(base, evaluate=[{"data": str(data)}])


def test_evidence_after_first_rows_is_found(base: Path, tmp_path: Path) -> None:
    rows = [{"question": "what?", "answer": "red"}] * 70 + [{"question": "what?", "answer": "red", "hint": "left"}]
    data = tmp_path / "late.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not load(
        base, overrides={"data.train": str(data)}, variants={"a": {"method.name": "opd", "method.privilege": "hint"}}
    ).faults


def test_run_of_other_settings_is_not_reused(base: Path) -> None:
    study = load(base)
    config = study.config(study.variants[0], 0)
    assert other_settings(config) is None
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    assert other_settings(config) is None
    changed = load(base, "overrides.training.learning_rate=0.5", "overrides.training.save_total_limit=7")
    output = other_settings(changed.config(changed.variants[0], 0))
    assert "training.learning_rate=0.001 there, 0.5 here" in output and "keep" not in output


WIDE = (
    "dose",
    "pays_kinds_crowded",
    "pays_kinds_weak",
)  # maps of many rows with fewer seeds, of which their tables warn


@pytest.mark.slow
def test_shipped_studies_load() -> None:
    load = functools.cache(load_examples)  # they share most of their questions
    for file in sorted(Path("configs/studies").glob("*.yaml")):
        study = load_study(file, load=load)
        assert {name.split()[0] for name in study.faults} <= {"weaker"}, (file, study.faults)
        if not file.stem.endswith("_rates"):  # a search, whose answer is a rate and no result
            assert len(study.seeds) >= (3 if file.stem in WIDE else 5), file


def test_run_name_is_a_folder_name() -> None:
    assert run_name("dopd boxes+caption", 2) == "dopd-boxes+caption-s2"
    assert run_name("../x", 0) == "x-s0"


def test_starts_from_is_final_student_of_variant(base: Path) -> None:
    study = load(base, variants={"first": {}, "second": {"starts_from": "first"}, "third": {"starts_from": "second"}})
    second, third = study.config(study.variants[1], 3), study.config(study.variants[2], 3)
    assert second.models.student == str(study.folder / "first-s3" / "checkpoint-000002" / "student")
    assert third.models.student == str(study.folder / "second-s3" / "checkpoint-000002" / "student")
    assert [reference.row for reference in study.references()] == ["untrained", "teacher"]


def test_starts_from_later_variant_raises(base: Path) -> None:
    with raises(ConfigError, "variants.a.starts_from", "b"):
        load(base, variants={"a": {"starts_from": "b"}, "b": {}})
    study = load(base, variants={"ok": {}, "broken": {"method.name": "nosuch"}, "next": {"starts_from": "broken"}})
    assert study.faults["next"] == 'it starts from "broken", which cannot be built'
