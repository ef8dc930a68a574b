"""Logged rollouts scored into a run without training: same numbers as the run that sampled them, and every refusal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import raises
from small import example, run_config

from workbench.analysis.summary import summarize_run
from workbench.app.context import AppContext
from workbench.app.tabs import answers as answers_tab
from workbench.cli import main
from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples
from workbench.errors import ConfigError, DataError, RunError
from workbench.policies.loading import load_policy
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.run import resume, train
from workbench.training.scored.score import score_rollouts, scoring_config
from workbench.training.scorer import open_scorer

DATA = "scenes:train?count=12"
COLUMNS = "step, rollout_idx, position, token_id, regime, weight, logprob_student, logprob_teacher, logprob_self"


@pytest.fixture(scope="module")
def trained_run(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of dopd that does not change its student, so that its rollouts can be scored again."""
    config = run_config(models, tmp_path_factory.mktemp("runs"), training__steps=2, training__learning_rate=0.0)
    return train(config).run_dir


@pytest.fixture(scope="module")
def rows(trained_run: Path) -> list[dict]:
    """Its rollouts as rows of the plain layout."""
    traces = open_traces(trained_run)
    answers = traces.sql("SELECT * FROM rollouts ORDER BY step, rollout_idx").to_pylist()
    tokens = traces.sql("SELECT * FROM tokens ORDER BY step, rollout_idx, position").to_pylist()
    built = []
    for answer in answers:
        mine = [row for row in tokens if (row["step"], row["rollout_idx"]) == (answer["step"], answer["rollout_idx"])]
        built.append(
            {
                "id": answer["example_id"],
                "prompt": answer["question"],
                "step": answer["step"],
                "completion_ids": [row["token_id"] for row in mine],
                "completion": answer["completion"],
                "logprobs": [row["sampler_logprob"] for row in mine],
                "reward": answer["reward"],
            }
        )
    return built


@pytest.fixture
def score(models: dict, tmp_path: Path) -> Callable:
    """Score rows into tmp_path/runs/scored."""

    def run(rows: list[dict], *overrides: str, data: str | None = DATA, **options: object) -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return score_rollouts(file, small_config(models, tmp_path, data or str(file), *overrides), data=data, **options)

    return run


def small_config(models: dict, folder: Path, data: str, *overrides: str) -> RunConfig:
    chosen = {"student": str(models["student"]), "teacher": str(models["teacher"]), "privilege": "crop", "data": data}
    return scoring_config(folder / "runs" / "scored", overrides=["models.max_pixels=null", *overrides], **chosen)


def tokens_of(run_dir: Path) -> list[dict]:
    return open_traces(run_dir).sql(f"SELECT {COLUMNS} FROM tokens ORDER BY ALL").to_pylist()


def test_scored_rollouts_equal_trained_run(score: Callable, trained_run: Path, rows: list[dict]) -> None:
    result = score(rows)
    assert (result.rollouts, result.steps, result.skipped) == (len(rows), 2, {})
    ours, theirs = tokens_of(result.run_dir), tokens_of(trained_run)
    assert len(ours) == len(theirs) > 20
    for row, expected in zip(ours, theirs, strict=True):
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), name
    metrics = RunFolder(result.run_dir).metrics("train")
    assert [line["step"] for line in metrics] == [1, 2] and max(m["sampler_logprob_gap"] for m in metrics) < 1e-4
    for line, expected in zip(metrics, RunFolder(trained_run).metrics("train"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert line["accuracy"] == expected["accuracy"]


def test_scored_run_opens_everywhere(
    score: Callable, rows: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_dir = score(rows).run_dir
    text = summarize_run(run_dir)
    assert "12 of 12 rollouts" in text and "the file's, which are all 0 or 1" in text
    assert main(["show", str(run_dir), "--step", "2", "--rollout", "1"]) == 0
    assert "rollout 1" in capsys.readouterr().out
    drawn = answers_tab.draw(AppContext(tmp_path / "runs", Path("configs")), "scored", {"step": "2", "rollout": "1"})
    assert "scored" in str(drawn)
    assert [json.loads(line)["origin"][-2:] for line in (run_dir / "scored.jsonl").open()][:2] == [":1", ":2"]
    scored = open_scorer(run_dir).score(load_examples(DATA)[0], "red")
    assert len(scored.tokens) > 0
    with raises(RunError, "workbench score"):
        resume(run_dir)
    with raises(RunError, "scored", "--to"):
        score(rows)


def test_text_is_tokenized_and_its_end_is_as_stated(score: Callable, rows: list[dict]) -> None:
    texts = [{key: row[key] for key in ("id", "step")} | {"completion": "tag K"} for row in rows[:3]]
    result = score([texts[0] | {"finished": True}, texts[1] | {"finished": False}, texts[2]])
    answers = open_traces(result.run_dir).sql("SELECT finished, num_positions FROM rollouts ORDER BY rollout_idx")
    lengths = [row["num_positions"] for row in answers.to_pylist()]
    assert [row["finished"] for row in answers.to_pylist()] == [True, False, False]
    assert lengths[0] == lengths[1] + 1 == lengths[2] + 1
    notes = RunFolder(result.run_dir).status["scored"]["notes"]
    assert notes["answer given as text, tokenized again"] == 3
    assert [count for note, count in notes.items() if "no end token added" in note] == [1]


def test_answers_end_if_the_caller_states_it(score: Callable, rows: list[dict]) -> None:
    result = score([{"id": rows[0]["id"], "completion": "tag K"}], ended=True)
    assert open_traces(result.run_dir).sql("SELECT finished FROM rollouts").to_pylist() == [{"finished": True}]


def test_rows_without_steps_are_grouped_by_prompts(score: Callable, rows: list[dict]) -> None:
    without = [{key: value for key, value in row.items() if key != "step"} for row in rows]
    result = score(without, "training.batch_size=2")
    counted = open_traces(result.run_dir).sql("SELECT step, count(DISTINCT example_id) AS n FROM rollouts GROUP BY 1")
    assert sorted(row["n"] for row in counted.to_pylist()) == [2, 2, 2]


def test_rewards_other_than_0_and_1_are_annotations(score: Callable, rows: list[dict]) -> None:
    result = score([row | {"reward": 2.5} for row in rows[:2]])
    first = open_traces(result.run_dir).sql("SELECT reward, annotations FROM rollouts").to_pylist()[0]
    assert first["reward"] in (0.0, 1.0) and dict(first["annotations"])["trainer_reward"] == 2.5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"completion_ids": [10**6], "logprobs": None, "completion": None},
            "token ids outside the student's vocabulary",
        ),
        ({"completion": "another text"}, "token ids and text differ"),
        ({"completion": "a<image>b", "completion_ids": None}, "special token in the answer's text"),
        ({"id": "unknown"}, "no example has the row's id"),
        ({"step": None}, "no step, while other rows have one"),
    ],
)
def test_row_that_cannot_be_scored_is_refused_or_counted(
    score: Callable, rows: list[dict], tmp_path: Path, values: dict, reason: str
) -> None:
    with raises(DataError, "1 of 3 rows", f"1 x {reason}", "rows.jsonl:2", "--max-skipped"):
        score([rows[0], rows[1] | values, rows[2]])
    assert not (tmp_path / "runs").exists()
    result = score([rows[0], rows[1] | values, rows[2]], max_skipped=1)
    assert result.rollouts == 2 and result.skipped == {reason: 1}
    line = json.loads((result.run_dir / "skipped.jsonl").read_text())
    assert line["reason"] == reason and line["origin"].endswith("rows.jsonl:2")


def test_image_token_and_text_after_the_end_are_refused(score: Callable, models: dict, rows: list[dict]) -> None:
    student = load_policy(models["student"], "student")
    end, image = student.end_id, student.placeholders[0]
    given = {"id": rows[0]["id"], "step": 1}
    wrong = [given | {"completion_ids": ids} for ids in ([17, image, end], [17, end, 18])]
    padded = given | {"completion_ids": [17, end, end]}
    result = score([padded, *wrong], max_skipped=2)
    assert result.skipped == {"image token in the answer": 1, "tokens after the end token": 1}
    assert open_traces(result.run_dir).sql("SELECT num_positions FROM rollouts").to_pylist() == [{"num_positions": 2}]


def test_answer_that_does_not_fit_is_refused(score: Callable, rows: list[dict]) -> None:
    long = {"id": rows[0]["id"], "step": 1, "completion_ids": [17] * 5000}
    result = score([rows[0], long], max_skipped=1)
    assert result.skipped == {"prompt is too long": 1}


def test_example_without_evidence_is_refused_before_models_load(score: Callable) -> None:
    row = {"question": "What is it?", "completion": "tag K"}
    with raises(DataError, "1 x no boxes (or crop)"):
        score([row], "models.student=/nowhere", data=None)


def test_rows_with_their_own_examples_are_scored(score: Callable, tmp_path: Path) -> None:
    picture = example().images[0]
    picture.save(tmp_path / "a.png")
    box = {"x0": 2, "y0": 2, "x1": 8, "y1": 8}
    row = {"question": "What is it?", "images": ["a.png"], "boxes": [box], "completion": "tag K", "finished": True}
    result = score([row, row | {"completion": "tag L"}], data=None)
    again = load_examples(RunFolder(result.run_dir).status["config"]["data"]["train"])
    assert len(again) == 1 and again[0].evidence.boxes[0].x1 == 8
    assert result.rollouts == 2


def test_prompt_that_differs_from_the_trainers_is_a_warning(score: Callable, models: dict, rows: list[dict]) -> None:
    given = {"id": rows[0]["id"], "step": 1, "completion_ids": rows[0]["completion_ids"]}
    result = score([given | {"prompt_ids": [5, 6, 7]}])
    status = RunFolder(result.run_dir).status
    assert status["scored"]["prompts"] == {"different": 1}
    assert any("models.system_prompt" in warning for warning in status["warnings"])


def test_method_that_needs_more_than_a_file_is_refused(models: dict, tmp_path: Path) -> None:
    config = small_config(models, tmp_path, DATA, "method.name=ccopd")
    with raises(ConfigError, "ccopd"):
        score_rollouts(tmp_path / "rows.jsonl", config, data=DATA)


def test_options_out_of_range_are_refused(score: Callable, rows: list[dict]) -> None:
    with raises(ConfigError, "max_skipped", "-1"):
        score(rows, max_skipped=-1)
    with raises(ConfigError, "privilige"):
        score(rows, "method.privilige=crop")


def test_command_scores_a_file(models: dict, rows: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", str(file), "--to", str(tmp_path / "scored"), "--student", str(models["student"])]
    command += ["--teacher", str(models["teacher"]), "--privilege", "crop", "--data", DATA, "trace.top_k=2"]
    assert main(command) == 0
    assert "12 of 12 rollouts" in capsys.readouterr().out
    assert main([*command[:-1], "trace.top_k=x"]) == 2
