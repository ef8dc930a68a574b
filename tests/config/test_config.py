from pathlib import Path

import pytest
from failures import raises

from workbench.config.schema import build_config, describe_config, load_config, override, read_yaml
from workbench.errors import ConfigError
from workbench.methods import list_methods, load_method
from workbench.training.pretraining.train import load_pretrain_config

ROOT = Path(__file__).parents[2]
LEAST = """
models: {student: s, teacher: t}
data: {train: "scenes:train?count=4"}
method: {name: dopd, privilege: crop}
"""

STOPPING = ("evaluation.early_stopping_patience=2", "data.eval=a", "evaluation.every=1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(LEAST)
    return path


def test_load_config_applies_defaults_and_file_name(file: Path) -> None:
    config = load_config(file)
    assert config.name == "small"
    assert config.run_dir == Path("runs/small")
    assert config.sampling.num_generations == 4
    assert config.load_method().views["self"].context == "crop"


def test_load_config_overrides_are_typed_and_nested(file: Path) -> None:
    config = load_config(
        file, ["training.learning_rate=5e-6", "models.lora.rank=8", "evaluation.contexts=[plain, crop]", "name=other"]
    )
    assert config.training.learning_rate == 5e-6
    assert config.models.lora.rank == 8
    assert config.evaluation.contexts == ["plain", "crop"]
    assert config.run_dir == Path("runs/other")


def test_resolved_config_loads_to_itself(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["training.steps=7"])
    again = tmp_path / "resolved.yaml"
    again.write_text(config.to_yaml())
    assert load_config(again).to_dict() == config.to_dict()
    assert config.to_dict()["method"]["beta_weak"] == 0.3  # every option of the method is written out


@pytest.mark.parametrize("name", list_methods())
def test_demo_config_takes_every_method_by_name(name: str) -> None:
    peers = [f"models.peers={{ann: {ROOT}/data/models/student}}"] if load_method(name).min_learners > 1 else []
    config = load_config(ROOT / "configs" / "demo.yaml", [f"method.name={name}", *peers])
    assert config.load_method().name == name


def test_load_config_duplicate_key_raises(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("training: {steps: 3}\nseed: 1\ntraining: {batch_size: 2}\n")
    with raises(ConfigError, "twice.yaml", "training", "lines 1", "and 3"):
        read_yaml(tmp_path / "twice.yaml")


def test_load_config_other_method_has_its_own_defaults(file: Path) -> None:
    config = load_config(file, ["method.name=opd"])
    assert config.load_method().views["teacher"].context == "plain"
    named = load_config(file, ["method.privilege=hint", "method.name=opd"])
    assert named.load_method().views["teacher"].context == "hint"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["trainig.steps=3"], 'key "trainig" is unknown.*Did you mean "training"'),
        (["training.stepz=3"], 'key "training.stepz" is unknown.*Did you mean "training.steps"'),
        (["method.privelege=crop"], 'Did you mean "privilege"'),
        (["method.name=dpod"], 'Did you mean "dopd"'),
        (["training.steps=0"], "training.steps must be at least 1, got 0"),
        (["training.steps=3", "training.epochs=2"], "training.steps=3 and training.epochs=2"),
        (["training.epochs=-1"], "training.epochs must be at least 0, got -1"),
        (["sampling.stop_strings=[1]"], "sampling.stop_strings"),
        (['sampling.stop_strings=[""]'], "sampling.stop_strings"),
        (["sampling.stop_strings=[END]", "sampling.backend=vllm"], "sampling.stop_strings.*sampling.backend=vllm"),
        (["training.supervise=anser"], 'Did you mean "answer"'),
        (["training.think_markers=[<t>]"], "training.think_markers must be two different texts"),
        (["training.think_markers=[<t>, <t>]"], "training.think_markers must be two different texts"),
        (
            ["training.wd=3"],
            "weight_decay.$",
        ),  # "training.", which all have in common, makes none near
        (["data.privileged_template=no question"], "data.privileged_template"),
        (["training.steps=many"], "training.steps must be a whole number, got 'many'"),
        (["training.steps=true"], "training.steps must be a whole number, got True"),
        (["training.learning_rate=.nan"], "must be a number, got nan"),
        (["training.schedule=cosin"], 'Did you mean "cosine"'),
        (["training.betas=[0.9]"], "must be two numbers"),
        (["training.optimizer=adam"], 'Did you mean "adamw"'),
        (["training.schedule=constant", "training.warmup_steps=2"], "Set training.schedule=constant_with_warmup"),
        (["training.optimizer=sgd", "training.betas=[0.9, 0.95]"], "training.betas.*training.optimizer=sgd"),
        (["evaluation.contexts=[plan]"], 'Did you mean "plain"'),
        (["evaluation.contexts=plain"], r"must be a list.*\[plain\]"),
        (["models.train=language"], r"models.train must be a list.*\[language\]"),
        (["data.eval=[a]"], "must be text or a mapping of keys to values or null, got \\['a'\\]. Meaning"),
        (["evaluation.tolerance=0.1"], 'grader "numeric" only'),
        (["models.teacher=null"], "needs a teacher: set models.teacher"),
        (
            ["method={name: exopd, reference: 'teacher:reference'}"],
            'of domain "reference"; models.teachers has none. Set models.teachers.reference=FOLDER',
        ),
        (["models.student=null"], "models.student must be text"),
        (["data.train="], "data.train"),
        (["data.train=[]"], "data.train"),
        (["data.train={path: a}"], "data.train must be text or a list"),
        (["data.train=[a, {path: b, weight: 0}]"], r"data.train\[1\].weight must be a number above 0"),
        (["evaluation.metric_for_best_model=accuracy/student/plain/all"], "no effect without early stopping"),
        (["models.train=[language,language]"], "names language twice"),
        (["evaluation.early_stopping_patience=2"], "early_stopping_patience=2 needs evaluations"),
        (["evaluation.early_stopping_patience=2", "data.eval=a"], "Set evaluation.every"),
        (
            [*STOPPING, "evaluation.metric_for_best_model=acuracy/student/plain/all"],
            'metric "acuracy" is unknown.*Did you mean "accuracy"',
        ),
        ([*STOPPING, "evaluation.metric_for_best_model=accuracy/student/crop/all"], 'context "crop".*plain'),
        ([*STOPPING, "evaluation.metric_for_best_model=accuracy/teacher/plain/all"], 'student "teacher"'),
        ([*STOPPING, "evaluation.metric_for_best_model=accuracy"], "METRIC/STUDENT/CONTEXT/GROUP"),
        ([*STOPPING, "evaluation.metric_for_best_model=accuracy/student/plain"], 'group "" is unknown. Allowed: all'),
        (
            [*STOPPING, "evaluation.metric_for_best_model=accuracy/student/plain/chart", "data.eval={charts: a}"],
            'group "chart" is unknown.*Did you mean "charts"',
        ),
        (
            [
                *(*STOPPING, "data.eval={a: a, b: {path: b, contexts: [crop]}}"),
                "evaluation.metric_for_best_model=accuracy/student/crop/a",
            ],
            'context "crop" is unknown. Allowed: plain',
        ),
        (["data.eval=a", "data.held_out=0.1"], "data.held_out=0.1 and data.eval"),
        (["data.held_out=0.95"], "data.held_out must be from 0 to 0.9"),
        (["data.eval={}"], "data.eval is an empty mapping"),
        (["data.eval={docs: {pth: a}}"], 'key "data.eval.docs.pth" is unknown.*Did you mean "data.eval.docs.path"'),
        (["data.eval={docs: {grader: exact}}"], "data.eval.docs.path is missing"),
        (["data.eval={docs: {path: a, grader: exct}}"], 'Did you mean "exact"'),
        (["data.eval={docs: {path: a, contexts: [plan]}}"], "data.eval.docs: .*plan"),
        (["data.eval={docs: {path: a, tolerance: 0.1}}"], 'data.eval.docs: .*grader "numeric" only'),
        (["data.eval={all: a}"], "data.eval: the name 'all'"),
        (["data.eval={a/b: a}"], "data.eval: the name 'a/b'"),
        (["name=a/b"], "plain folder name"),
        (["name=../b"], "plain folder name"),
        (["training"], "must look like key.subkey=value"),
        (["training=3"], "training must be a mapping"),
        (["name='"], "not a YAML value"),
    ],
)
def test_load_config_mistakes_raise_with_allowed_values(file: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(file, overrides)


def test_evaluation_sets_take_missing_values_from_evaluation(file: Path) -> None:
    sets = "{docs: {path: a, grader: numeric, tolerance: 0.1, contexts: [crop], max_examples: 0}, maps: b}"
    docs, maps = load_config(file, [f"data.eval={sets}", "evaluation.grader=exact"]).evaluation_sets
    assert (docs.name, docs.path, docs.contexts, docs.max_examples) == ("docs", "a", ["crop"], 0)
    assert docs.grading == {"grader": "numeric", "tolerance": 0.1}
    assert (maps.name, maps.path, maps.contexts, maps.max_examples) == ("maps", "b", ["plain"], 128)
    assert maps.grading["grader"] == "exact"
    (alone,) = load_config(file, ["data.eval=a"]).evaluation_sets
    assert (alone.name, alone.key) == ("", "data.eval")
    assert load_config(file).evaluation_sets == ()


def test_epochs_replace_steps_of_recipe_and_reverse(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(LEAST + "training: {steps: 7, batch_size: 2}\n")
    by_epochs = tmp_path / "epochs.yaml"
    by_epochs.write_text("extends: base.yaml\ntraining: {epochs: 1.5}\n")
    for config in (load_config(base, ["training.epochs=1.5"]), load_config(by_epochs)):
        assert (config.training.steps, config.training.epochs, config.training.batch_size) == (0, 1.5, 2)
        assert build_config(config.to_dict()).to_dict() == config.to_dict()
    again = load_config(by_epochs, ["training.steps=3"]).training
    assert (again.steps, again.epochs) == (3, 0.0)


def test_load_config_other_files_raise_with_name(tmp_path: Path) -> None:
    with raises(ConfigError, "none.yaml"):
        load_config(tmp_path / "none.yaml")
    with raises(ConfigError, "configs/demos.yaml", "configs/demo.yaml"):
        load_config("configs/demos.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with raises(ConfigError, "broken.yaml", "YAML"):
        load_config(broken)
    broken.write_text("- 1\n- 2")
    with raises(ConfigError, "mapping"):
        load_config(broken)
    broken.write_text("!!python/object/apply:os.system [true]")
    with raises(ConfigError, "YAML"):
        load_config(broken)


def test_override_leaves_given_values_unchanged() -> None:
    values = {"training": {"steps": 1}}
    assert override(values, ["training.steps=2"]) == {"training": {"steps": 2}}
    assert values == {"training": {"steps": 1}}


def test_load_config_method_without_teacher_needs_none() -> None:
    config = build_config(
        {"models": {"student": "s"}, "data": {"train": "x.jsonl"}, "method": {"name": "opsd"}}, name="n"
    )
    assert config.models.teacher is None


@pytest.mark.parametrize("name", list_methods())
def test_describe_config_every_key_has_help(name: str) -> None:
    described = describe_config(name)
    assert {"training.steps", "models.lora.rank", "method.name", "sampling.top_p"} <= described.keys()
    for key, (_, _, option) in described.items():
        assert option.help, key


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in (ROOT / "configs").glob("*.yaml") if "pretrain" not in path.name)
)
def test_every_recipe_loads(recipe: str) -> None:
    assert load_config(ROOT / "configs" / recipe).load_method()


@pytest.mark.parametrize("name", list_methods())
def test_every_method_has_recipe_and_readme_row(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert (config.name, config.method["name"]) == (name, name)
    models = [*config.models.learners.values(), config.models.teacher, *config.models.teachers.values()]
    created = {load_pretrain_config(file).output_dir for file in (ROOT / "configs").glob("pretrain-*.yaml")}
    for model in filter(None, models):
        assert model in created or (ROOT / model / "config.json").is_file(), model
    for data in filter(None, (config.data.train, config.data.eval)):
        assert data.startswith("scenes:") or (ROOT / data).is_file(), data
    assert f"| `{name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_extends_recipe_overrides_its_base(file: Path) -> None:
    over = file.parent / "over.yaml"
    over.write_text("extends: small.yaml\nmethod: {name: dopd, trim: 0.1}\nmodels: {student: other}\n")
    config = load_config(over, ["models.dtype=bfloat16"])
    assert (config.name, config.models.student, config.models.teacher) == ("over", "other", "t")
    assert (config.method["privilege"], config.method["trim"]) == ("crop", 0.1)
    over.write_text("extends: small.yaml\nmethod: {name: opd}\n")
    assert load_config(over).method == {"name": "opd"}  # another method has other options
    assert "base" not in load_config(over).to_dict()


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("none.yaml", "over.yaml: extends must be .*none.yaml"),
        ("[1]", r"extends must be .*\[1\]"),
        ("over.yaml", "extends another recipe itself"),
    ],
)
def test_extends_wrong_base_raises(file: Path, base: str, sentence: str) -> None:
    over = file.parent / "over.yaml"
    over.write_text(f"extends: {base}\n")
    with pytest.raises(ConfigError, match=sentence):
        load_config(over)


def test_load_config_wrong_override_names_file_and_override(tmp_path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("models: {student: a, teacher: b}\ndata: {train: scenes:train}\nmethod: {name: opd}\n")
    with raises(ConfigError, "good.yaml", "seed=1", "method.name=opf"):
        load_config(file, ["seed=1", "method.name=opf"])


def test_override_mapping_keeps_other_keys_of_section():
    values = {"training": {"steps": 60, "learning_rate": 5e-4}, "method": {"name": "dopd", "privilege": "crop"}}
    assert override(values, ["training={batch_size: 2}"])["training"] == {
        "steps": 60,
        "learning_rate": 5e-4,
        "batch_size": 2,
    }
    assert override(values, ["training.steps=3", "training={batch_size: 2}"])["training"]["steps"] == 3
    assert override(values, ["method={name: opd}"])["method"] == {"name": "opd"}
    assert override(values, ["method={privilege: boxes}"])["method"] == {"name": "dopd", "privilege": "boxes"}
    assert values["training"] == {"steps": 60, "learning_rate": 5e-4}


def test_stored_metric_without_early_stopping_is_dropped_until_it_has_an_effect(tmp_path: Path) -> None:
    file, metric = tmp_path / "config.yaml", "accuracy/student/plain/all"
    file.write_text(
        "models: {student: s, teacher: t}\ndata: {train: a, eval: b}\nmethod: {name: opd}\n"
        f"evaluation: {{every: 1, metric_for_best_model: {metric}}}\n"
    )
    with raises(ConfigError, "no effect without early stopping"):
        load_config(file)
    (tmp_path / "run.json").write_text("{}")  # the file of a run that an older version trained
    assert load_config(file).evaluation.metric_for_best_model is None
    stops = load_config(file, ["evaluation.early_stopping_patience=2"])
    assert stops.evaluation.metric_for_best_model == metric
