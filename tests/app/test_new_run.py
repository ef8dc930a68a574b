"""Launch: the form is the configuration, the command is the form, and a mistake is a sentence. Without a server."""

import html
import json
import re
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from failures import raises
from small import run_config

from workbench.app.context import AppContext, note, sentence, show_errors
from workbench.app.form import (
    CHOICE,
    ESSENTIAL,
    NUMBER,
    OFFERS,
    TOP,
    Field,
    check_table,
    entered_config,
    fields,
    form_slots,
    form_values,
    free_name,
    recipe_file,
    recipes,
)
from workbench.app.method_choices import uses_teacher
from workbench.app.tabs.new_run import (
    check_html,
    load_recipe,
    outdated,
    preview,
    preview_changes,
    recipe_values,
    refresh_recipes,
    run_check,
    show_method,
    start_from,
    with_message,
)
from workbench.config.schema import describe_config, load_config
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.methods import describe_options, list_methods
from workbench.runs.commands import copyable, overrides_between
from workbench.runs.jobs import read_job

RECIPE = "recipe:tiny.yaml"
FORM = form_slots(fields())
SKIP = {"__type__": "update"}  # the output stays as it is


@pytest.fixture
def context(models: dict, tmp_path: Path) -> AppContext:
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "tiny.yaml").write_text(run_config(models, "runs", name="tiny").to_yaml())
    (configs / "model.yaml").write_text("output_dir: data/models/student\nsteps: 3\n")
    return AppContext(tmp_path / "runs", configs)


def entered(context: AppContext, **changes: object) -> list[object]:
    """What the form sends after a recipe was chosen and some keys were changed; __ for the dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    values = recipe_values(context, FORM, RECIPE)
    return [changes.get(next(iter(position.values())).key, value) for position, value in zip(FORM, values, strict=True)]


def displayed(context: AppContext, more: str = "", **changes: object) -> str:
    return preview(context, FORM, RECIPE, more, *entered(context, **changes))[0]


def test_form_fields_cover_config_and_method_options() -> None:
    common = {field.key for field in fields() if field.method is None}
    assert common == set(describe_config())
    for name in list_methods():
        values = {field.key for field in fields() if field.method == name}
        assert values == {f"method.{key}" for key in describe_options(name)}


def test_show_method_each_method_shows_its_hints_and_defaults(
    context: AppContext,
) -> None:
    for name in list_methods():
        _, teacher, *updates = show_method(context, FORM, None, name)
        assert teacher["visible"] == uses_teacher(name), name
        options = [location for location in FORM if None not in location]
        shown_now = {spot[name].key for spot, update in zip(options, updates, strict=True) if update["visible"]}
        assert shown_now == {f"method.{key}" for key in describe_options(name)}
        for position, update in zip(options, updates, strict=True):
            if update["visible"]:
                assert update["info"] == position[name].hint and update["value"] == position[name].to_widget(
                    position[name].default
                )
    keys = [next(iter(index.values())).key for index in FORM]
    assert len(keys) == len(set(keys)), "components are found by their key"
    about = [show_method(context, FORM, None, name)[0] for name in ("gkd", "dpod")]
    assert "GKD" in about[0] and about[1] == '<p class="app-about"></p>'


def test_show_method_chosen_again_restores_recipe_values(context: AppContext) -> None:
    file = context.configs_dir / "tiny.yaml"
    file.write_text(file.read_text().replace("privilege: crop", "privilege: boxes+caption"))
    places_of_options = [index for index in FORM if None not in index]
    at = next(
        k for k, position in enumerate(places_of_options) if next(iter(position.values())).key == "method.privilege"
    )
    held = [show_method(context, FORM, RECIPE, name)[2 + at]["value"] for name in ("opd", "dopd")]
    assert held == ["plain", "boxes+caption"]


def test_form_fields_hints_have_meaning_unit_and_range() -> None:
    by_key = {field.key: field for field in fields() if field.method is None}
    assert by_key["sampling.max_completion_length"].hint.endswith("[tokens] · at least 1")
    assert by_key["models.lora.dropout"].hint.endswith("0 to 0.9")
    assert by_key["data.max_train_examples"].hint.endswith("empty = all · at least 1")
    assert all(field.option.help.split(" null =")[0] in field.hint for field in fields())
    assert by_key["seed"].kind != NUMBER, "a browser would round large seeds"


def test_form_nullable_choice_empty_maps_to_none() -> None:
    empty = [field for field in fields() if field.kind == CHOICE and field.is_nullable]
    assert "models.teacher_dtype" in {field.key for field in empty}
    assert all(field.to_widget(None) == "" and field.from_widget("") is None for field in empty), (
        "the list's value of none"
    )


def test_form_recipe_round_trip_is_unchanged(context: AppContext) -> None:
    config = entered_config(context, FORM, entered(context))
    before = load_config(context.configs_dir / "tiny.yaml").to_dict()
    assert {**config.to_dict(), "output_dir": "runs"} == before


def test_form_shipped_recipes_round_trip_unchanged(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "configs"
    context = AppContext(tmp_path, shipped)
    for _, choice in recipes(context):
        config = entered_config(context, FORM, recipe_values(context, FORM, choice))
        assert overrides_between(recipe_file(context, choice), config) == [f"output_dir={tmp_path}"]


def test_preview_edited_form_command_loads_same_config(context: AppContext) -> None:
    command = displayed(context, training__steps=7, name="x", evaluation__contexts=["plain"], more="trace.every=2\n\n")
    program, verb, recipe, *overrides = shlex.split(command)
    assert (program, verb) == ("workbench", "train")
    config = load_config(recipe, overrides)
    assert (config.name, config.training.steps, config.trace.every) == ("x", 7, 2)
    assert config.evaluation.contexts == ["plain"]
    assert config.output_dir == str(context.runs_dir)
    assert command == copyable(["workbench", "train", recipe, *overrides])


def test_preview_changes_are_the_elements_of_values_that_are_not_defaults(context: AppContext) -> None:
    def changed(**changes: object) -> set[str]:
        command, text = preview_changes(context, FORM, RECIPE, "", *entered(context, **changes))
        assert command == displayed(context, **changes)
        return set(json.loads(html.unescape(re.search('data-changed="([^"]*)"', text)[1])))

    before = changed(models__lora__alpha=16.0)  # its default
    assert "new-run-training-steps" in before and "new-run-models-lora-alpha" not in before
    assert changed(models__lora__alpha=8.0) - before == {"new-run-models-lora-alpha"}


def test_form_first_fields_are_few_and_teacher_only_where_a_view_uses_it() -> None:
    keys = list(dict.fromkeys(next(iter(slot.values())).key for slot in FORM))
    assert keys[:13] == [*TOP, *ESSENTIAL]
    assert [uses_teacher(name) for name in ("dopd", "gkd", "opsd", "grpo", "dpod")] == [True, True, False, False, True]


def test_preview_other_method_drops_old_options(context: AppContext) -> None:
    values = iter(update.get("value") for update in show_method(context, FORM, RECIPE, "opd")[2:])
    held = entered(context, method__name="opd")
    after = [value if None in position else next(values) for position, value in zip(FORM, held, strict=True)]
    overrides = shlex.split(preview(context, FORM, RECIPE, "", *after)[0])[3:]
    assert overrides[0] == "method.name=opd"
    assert not any("self_policy" in override for override in overrides)


@pytest.mark.parametrize(
    ("changes", "more", "output"),
    [
        ({"training__steps": 0}, "", "training.steps must be at least 1, got 0"),
        ({"training__steps": 2.5}, "", "training.steps must be a whole number, got 2.5"),
        ({"training__steps": None}, "", "training.steps must be a whole number, got nothing"),
        ({"training__betas": "[0.9"}, "", 'training.betas: "[0.9" is not a YAML value'),
        ({"name": ""}, "", 'name "" must be a plain folder name'),
        ({"name": "../out"}, "", "must be a plain folder name"),
        ({"method__name": "dpod"}, "", 'Did you mean "dopd"?'),
        ({}, "training.stpes=3", 'Did you mean "training.steps"?'),
        ({}, "steps", "must look like key.subkey=value"),
        ({"models__teacher": " "}, "", "needs a teacher"),
    ],
)
def test_preview_invalid_value_shows_error_and_keeps_command(
    context: AppContext, changes: dict, more: str, output: str
) -> None:
    call = with_message(partial(preview, context, FORM), 1)
    ((message, command),) = call(RECIPE, more, *entered(context, **changes))
    assert 'role="alert"' in message
    assert output.replace('"', "&quot;").lower() in message.lower()
    assert command == SKIP


def test_preview_markup_entered_is_escaped(context: AppContext) -> None:
    ((message, _),) = with_message(partial(preview, context, FORM), 1)(RECIPE, "<script>=1", *entered(context))
    assert "<script>" not in message and "&lt;script&gt;" in message


@pytest.mark.parametrize(
    "choice", ["recipe:../secret.yaml", "recipe:/etc/passwd", "recipe:", "run:../x", "run:", "", None]
)
def test_form_values_invalid_choice_raises(context: AppContext, choice: str | None) -> None:
    with pytest.raises((ConfigError, RunError)):
        form_values(context, choice)


def test_recipes_model_recipe_hidden_and_broken_one_raises(context: AppContext) -> None:
    (context.configs_dir / "broken.yaml").write_text("a: [")
    assert [choice for _, choice in recipes(context)] == ["recipe:broken.yaml", RECIPE]
    with raises(ConfigError, "broken.yaml", "YAML"):
        load_recipe(context, FORM, "recipe:broken.yaml")


def test_check_and_start_remote_code_raise(context: AppContext) -> None:
    values = entered(context, models__trust_remote_code=True)
    with raises(ConfigError, "trust_remote_code"):
        list(run_check(context, FORM, RECIPE, "", *values))
    with raises(ConfigError, "trust_remote_code"):
        start_from(context, FORM, RECIPE, "", *values)
    assert not (context.runs_dir / "tiny").exists()


def test_entered_config_other_output_dir_stays_in_runs_folder(context: AppContext, tmp_path: Path) -> None:
    values = entered(context, output_dir=str(tmp_path / "elsewhere"))
    config = entered_config(context, FORM, values, f"output_dir={tmp_path / 'elsewhere'}")
    assert config.output_dir == str(context.runs_dir)


def test_check_and_start_read_only_raise(context: AppContext) -> None:
    locked = AppContext(context.runs_dir, context.configs_dir, read_only=True)
    for act in (lambda *values: list(run_check(*values)), start_from):
        with raises(RunError, "read-only"):
            act(locked, FORM, RECIPE, "", *entered(context))


def test_start_valid_form_finishes_and_name_is_taken(context: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = entered(context, training__steps=1, data__eval="", trace__probes=0)
    assert start_from(context, FORM, RECIPE, "", *values) == ("tiny", {}, "training", "tiny-2")
    with pytest.raises(RunError, match=r"is already starting|exists"):
        start_from(context, FORM, RECIPE, "", *values)
    wait_until(lambda: not read_job(context.runs_dir / "tiny").is_alive)
    assert read_job(context.runs_dir / "tiny").status == "finished"
    assert recipes(context)[-1] == ("run  tiny  ·  finished", "run:tiny")
    assert form_values(context, "run:tiny")["training.steps"] == 1
    assert free_name(context, "tiny") == "tiny-2" and free_name(context, "other") == "other"
    assert refresh_recipes(context, RECIPE, "tiny")[1] == "tiny-2"
    assert refresh_recipes(context, RECIPE, "other")[1] == SKIP, "somebody may be typing"


def test_outdated_form_edited_during_check_warns(context: AppContext) -> None:
    values = entered(context, training__steps=7)
    (command,) = preview(context, FORM, RECIPE, "", *values)
    assert outdated(context, FORM, command, RECIPE, "", *values) == (SKIP, SKIP)
    assert outdated(context, FORM, "", RECIPE, "", *values) == (SKIP, SKIP), "an edit has cleared the report"
    for steps in (8, 0):
        outcome, report = outdated(context, FORM, command, RECIPE, "", *entered(context, training__steps=steps))
        assert outcome == "" and "edited during the check" in report


def test_check_missing_student_raises(context: AppContext) -> None:
    with raises(ConfigError, "nowhere"):
        list(run_check(context, FORM, RECIPE, "", *entered(context, models__student="nowhere/at/all")))


def test_check_html_has_table_and_verdict_escaped() -> None:
    table = "  check   status  found\n  ──────  ──────  ─────────\n  one     ok      a  b\n  two <b  WRONG   c d\n"
    printed = f"{table}\n1 of 2 checks <failed>.\n"
    assert check_table(printed) == [("one", "ok", "a  b"), ("two <b", "WRONG", "c d")]
    drawn = check_html(printed)
    assert drawn.startswith('<p class="app-note app-error" role="alert">1 of 2 checks &lt;failed&gt;.</p>')
    assert "two &lt;b" in drawn and 'class="app-note app-good"' in check_html(printed.replace("WRONG", "ok   "))
    assert check_table("nothing") == [] and check_html("nothing") == ""


def test_messages_start_with_capital_and_are_escaped(tmp_path: Path) -> None:
    assert sentence(RunError("run x exists.")) == "Run x exists."
    assert "cannot be read" in sentence(FileNotFoundError(2, "No such file", "x"))
    assert note("<b>", "error") == '<p class="app-note app-error" role="alert">&lt;b&gt;</p>'
    assert note("") == ""


def test_show_errors_user_error_warns_and_bug_raises() -> None:
    def fails(error: Exception) -> None:
        raise error

    with pytest.warns(UserWarning, match="A &lt;b&gt;"):
        assert show_errors(fails)(WorkbenchError("a <b>")) == SKIP
    with pytest.raises(ZeroDivisionError):
        show_errors(fails)(ZeroDivisionError())


def test_form_field_yaml_value_parses_as_override() -> None:
    field = next(item for item in fields() if item.key == "models.teachers")
    assert field.from_widget("{math: a/b}") == yaml.safe_load("{math: a/b}")
    assert isinstance(field, Field) and field.to_widget({}) == "{}"


def wait_until(is_so: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_form_list_of_offered_values_stays_list() -> None:
    (field,) = (field for field in fields() if field.kind == OFFERS)
    assert field.to_widget(["plain", "crop"]) == ["plain", "crop"], "a list of several choices takes no text"


def test_form_keeps_path_or_list_of_sources() -> None:
    field = next(field for field in fields() if field.key == "data.train")
    sources = [{"path": "a.jsonl", "weight": 2}, "b.jsonl"]
    for value in ("scenes:train?count=4&seed=1", sources):
        assert field.from_widget(field.to_widget(value)) == value
