"""`workbench check` finds silent bugs: each test plants one and asserts the line that reports it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from failures import raises
from families import save_idefics3
from PIL import Image
from small import run_config

import workbench.training.check
from workbench.config.schema import RunConfig
from workbench.errors import DataError
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.training.check import NOTE, OK, Check, check_config, describe_references, is_good, verdict
from workbench.training.check_costs import describe_time
from workbench.training.learner import Learner, build_learner


@pytest.fixture(scope="module")
def config(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return run_config(models, tmp_path_factory.mktemp("runs"), method={"name": "dopd", "privilege": "crop+caption"})


@pytest.fixture
def planted(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Checks the configuration with a bug in one policy; the names of the lines that say WRONG."""

    def check(policy: str, bug: Callable[[AutoregressivePolicy], None]) -> list[str]:
        def build(*arguments: object, **options: object) -> Learner:
            learner = build_learner(*arguments, **options)
            bug(learner.policies[policy])
            return learner

        monkeypatch.setattr(workbench.training.check, "build_learner", build)
        checks = check_config(config)
        assert not is_good(checks)
        return [item.name for item in checks if item.status == "WRONG"]

    return check


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_check_matching_models_is_good(config: RunConfig) -> None:
    checks = check_config(config)
    assert is_good(checks)
    assert {check.status for check in checks} <= {"ok", "note"}
    assert "2 image(s), 18 image tokens" in by_name(checks)["images in view teacher"].finding
    assert not list(config.run_dir.parent.glob("*"))  # nothing is left behind


def test_check_reduced_image_names_both_sizes(config: RunConfig) -> None:
    """Scenes have 288 x 288 pixels; 34 x 34 is the largest square of at most 1200."""
    reduced = replace(config, models=replace(config.models, max_pixels=1200, teacher_max_pixels=288 * 288))
    checks = by_name(check_config(reduced))
    assert "has 288 x 288 pixels, reduced to 34 x 34 (models.max_pixels)" in checks["images in view student"].finding
    assert checks["images in view teacher"].finding.endswith("the largest image has 288 x 288 pixels")


def test_check_builds_models_on_configured_device(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def build(*arguments: object, device: str = "") -> Learner:
        requests.append(device)
        return build_learner(*arguments, device="cpu")

    monkeypatch.setattr(workbench.training.check, "build_learner", build)
    monkeypatch.setattr(workbench.training.check, "choose_device", lambda _: torch.device("xpu:1"))
    check_config(config)
    assert requests == ["xpu:1"]


def test_check_verdict_counts_and_states_costs(config: RunConfig) -> None:
    checks = check_config(config)
    by_name = {check.name: check for check in checks}
    per_step = config.training.batch_size * config.sampling.num_generations
    assert f" s a step for {per_step} answers, " in by_name["time"].finding
    total = psutil.virtual_memory().total / 1e9
    assert f" GB of the {total:.0f} GB of cpu, " in by_name["memory"].finding
    notes = sum(check.status == NOTE for check in checks)
    counted = (
        f"All {len(checks)} checks passed, {notes} with a note. " if notes else f"All {len(checks)} checks passed. "
    )
    assert verdict(checks).startswith(counted + "Memory: at least ")
    assert verdict(checks).endswith(f" s a step for {per_step} answers.")
    wrong = [*checks, Check("x", "WRONG", "y")]
    assert verdict(wrong) == f"1 of {len(wrong)} checks failed. Correct the configuration before you train."


def test_describe_time_scales_measured_answers_to_a_step(config: RunConfig) -> None:
    """8 answers in 0.2 + 0.4 s: 32 take four times as long."""
    config = replace(config, training=replace(config.training, batch_size=8))
    config = replace(config, sampling=replace(config.sampling, num_generations=4))
    assert describe_time(config, 8, 0.2, 0.4).startswith("about 2.4 s a step for 32 answers, ")


def test_check_tolerance_follows_precision_of_each_view(config: RunConfig) -> None:
    models = replace(config.models, teacher_dtype="bfloat16")
    checks = check_config(replace(config, models=models))
    allowed = {item.name: item.finding.rpartition("allowed: ")[2] for item in checks if "allowed: " in item.finding}
    assert allowed["view teacher: sampler = scorer"] == "0.25)"
    assert allowed["sampler = student on plain"] == "0.002)"
    assert is_good(checks), [check for check in checks if check.status == "WRONG"]


def shifted(policy: AutoregressivePolicy) -> None:
    """Every token is read by the state after it, as when a view is cut one column late."""
    read = policy.forward
    policy.forward = lambda prompts, completions, denoisings=None: (
        lambda result: replace(result, row=result.row.roll(-1))
    )(read(prompts, completions, denoisings))


def retokenised(policy: AutoregressivePolicy) -> None:
    """Completions go through text on their way."""
    inputs = policy.model_inputs
    policy.model_inputs = lambda prompts, completions: inputs(
        prompts, [policy.answer_ids(policy.text(ids))[: len(ids)] or ids for ids in completions]
    )


def blind(policy: AutoregressivePolicy) -> None:
    """Images are lost on the way."""
    encode = policy.encoder.encode
    policy.encoder.encode = lambda prompt: encode(replace(prompt, images=(), key=""))


def unmasked(policy: AutoregressivePolicy) -> None:
    """Padding is looked at."""
    encode = policy.encoder.batch

    def whole(prompts: list) -> dict:
        created = encode(prompts)
        return {**created, "attention_mask": torch.ones_like(created["attention_mask"])}

    policy.encoder.batch = whole


def test_check_student_scored_one_column_off_is_wrong(planted: Callable) -> None:
    assert "sampler = student on plain" in planted("student", shifted)


def test_check_teacher_scored_one_column_off_is_wrong(planted: Callable) -> None:
    assert "view teacher: sampler = scorer" in planted("teacher", shifted)


def test_check_tokenized_again_is_wrong(planted: Callable) -> None:
    assert "completion in view teacher (teacher / crop+caption)" in planted("teacher", retokenised)


def test_check_view_without_pixels_is_wrong(planted: Callable) -> None:
    assert "images in view teacher" in planted("teacher", blind)


def test_check_unmasked_padding_is_wrong(planted: Callable) -> None:
    assert "view teacher scored alone = in a padded batch" in planted("teacher", unmasked)


def test_check_other_template_and_end_token_are_notes(models: dict, tmp_path: Path) -> None:
    """Another end token, another chat template, a head padded to another multiple: allowed, and said."""
    teacher = load_policy(models["teacher"], "teacher")
    teacher.model.resize_token_embeddings(teacher.vocabulary + 3, mean_resizing=False)
    teacher.model.generation_config.eos_token_id = teacher.tokenizer.convert_tokens_to_ids("<system>")
    teacher.processor.chat_template = teacher.processor.chat_template.replace("<assistant>", "<assistant>no thinking;")
    for part in (teacher.model, teacher.processor):
        part.save_pretrained(tmp_path / "teacher")
    checks = check_config(run_config(models | {"teacher": tmp_path / "teacher"}, tmp_path))
    assert is_good(checks)
    assert by_name(checks)["vocabulary"].finding.endswith("; 3 unused entries of teacher are left out")
    assert by_name(checks)["end token"].finding.startswith("<end_of_utterance>, <system> ")
    assert "teacher has '<end_of_utterance><assistant>no thinking;'" in by_name(checks)["chat template"].finding
    assert {by_name(checks)[name].status for name in ("end token", "chat template")} == {"note"}


def test_check_chunk_dependent_loss_is_wrong(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    supervise, seen = workbench.training.check.compute_step, []

    def uneven(*arguments: object, **options: object) -> object:
        seen.append(supervise(*arguments, **options))
        return seen[-1] if len(seen) == 1 else replace(seen[-1], loss=seen[-1].loss + 0.1)

    monkeypatch.setattr(workbench.training.check, "compute_step", uneven)
    assert [item.name for item in check_config(config) if item.status == "WRONG"] == ["loss in chunks = at once"]


def test_check_updates_below_rounding_are_noted(models: dict, tmp_path) -> None:
    for rate, status in ((1e-6, NOTE), (1.0, OK)):
        checks = check_config(run_config(models, tmp_path, models__dtype="bfloat16", training__learning_rate=rate))
        (result,) = [check for check in checks if check.name == "precision of what is trained"]
        assert result.status == status and "in bfloat16 an update below " in result.finding
        assert ("models.lora.rank" in result.finding) == (status == NOTE)


def test_check_missing_template_and_image_words_are_noted(models: dict, tmp_path) -> None:
    folders = {name: shutil.copytree(folder, tmp_path / name) for name, folder in models.items()}
    (folders["teacher"] / "chat_template.jinja").unlink()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = {
        "question": "<img> What?",
        "images": ["a.png"],
        "answer": "a",
        "boxes": [{"x0": 1, "y0": 1, "x1": 20, "y1": 20, "label": "a"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    result = check_config(run_config(folders, tmp_path, data={"train": str(tmp_path / "rows.jsonl"), "eval": None}))
    notes = [check.finding for check in result if check.status == NOTE]
    assert any(item.startswith("teacher: none, so prompts are images and plain text") for item in notes), notes
    assert any("1 of 1 questions contain <image>" in note for note in notes), notes


def test_check_learner_as_its_own_target_is_noted(models: dict, tmp_path) -> None:
    checks = check_config(run_config(models, tmp_path, method={"name": "dopd", "privilege": "plain"}))
    assert by_name(checks)["target self"].status == "note"
    assert is_good(checks)


def test_check_rows_without_evidence_are_noted(models: dict, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "a", "hint": "left"}\n{"question": "b"}\n')
    values = {"data": {"train": str(data)}, "method": {"name": "dopd", "privilege": "hint"}}
    (evidence, *_) = check_config(run_config(models, tmp_path, **values))
    assert (evidence.status, evidence.finding) == ("note", f"1 of 2 usable; {data}:2 has no hint")
    values["method"]["privilege"] = "caption"
    with raises(DataError, "2 examples", ":1, has no caption"):
        check_config(run_config(models, tmp_path, **values))


def test_check_accepts_other_families(models: dict, tmp_path) -> None:
    other = save_idefics3(tmp_path / "other", 5)
    assert is_good(
        check_config(run_config({"student": other, "teacher": models["teacher"]}, tmp_path, method={"name": "gkd"}))
    )


def test_check_counts_answers_in_prompts(models: dict, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    questions = ("The door is red. Which color is it?", "Which color is the door?", "Is it red or blue?")
    rows = [{"question": text, "images": ["a.png"], "answer": "red"} for text in questions]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "eval": None}
    checks = by_name(check_config(run_config(models, tmp_path, method={"name": "opd"}, data=data)))
    assert checks["answers in prompts"].status == NOTE
    result = checks["answers in prompts"].finding
    assert result.startswith("1 of 3 prompts of the student hold") and f"first: {path}:1." in result
    assert "1 more offer it among choices" in result


def test_check_counts_memory_of_weights_gradients_and_moments(models: dict, tmp_path: Path) -> None:
    """By hand: four float32 numbers for each weight of the student, one of the teacher; buffers are small."""
    config = run_config(models, tmp_path, method={"name": "opd"})
    row = {check.name: check for check in check_config(config)}["memory"]
    sizes = [load_policy(models[name], name).model.num_parameters() for name in ("student", "teacher")]
    assert row.status == OK
    assert float(row.finding.split()[2]) == pytest.approx(4 * (4 * sizes[0] + sizes[1]) / 1e9, rel=0.02)


def test_reference_answers_are_unlikely_with_a_norm_or_a_position_lost() -> None:
    """Half of uniform over 49,152 entries is -ln(49152) / 2 = -5.40; the means are those of a real model."""
    for mean, is_likely in ((-1.6, True), (-4.1, True), (-5.5, False), (-10.3, False), (-75.0, False)):
        text, result = describe_references(torch.tensor([mean - 1.0, mean + 1.0]), 49_152)
        assert result is is_likely and f"{mean:.2f} nats" in text and "guess: -5.40" in text
