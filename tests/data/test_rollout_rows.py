"""Rows that other trainers write, in their layouts: what is read, what is refused and how examples are found."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from failures import raises
from PIL import Image

from workbench.data.examples import load_examples
from workbench.data.rollouts.layouts import ROLLOUT_COLUMNS, ROLLOUT_LAYOUTS, look_up
from workbench.data.rollouts.matching import ExampleIndex, OwnExamples, match_rows
from workbench.data.rollouts.reading import RolloutFile, read_rollouts
from workbench.errors import ConfigError, DataError
from workbench.types import Example

QUESTION = "What is the tag at top left?"


def write_lines(file: Path, *rows: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reasons(file: RolloutFile) -> list[str]:
    return [row.reason for row in file.skipped]


TURNS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
TEMPLATED = (
    f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
DECODED = f"user\n{QUESTION}\nassistant\n"
# rows as the trainers write them (docs/rollouts.md names version and file), and what they must be read as
VERL = {"input": DECODED, "output": "tag K", "gts": "K", "score": 1.0, "step": 7, "acc": True, "uid": "3_0_0"}
SWIFT = {
    "step": ["5", "5"],
    "prompt": [TEMPLATED, TEMPLATED],
    "completion": ["tag K", "tag L"],
    "Accuracy": [1.0, 0.0],
    "advantages": [0.7, -0.7],
    "solution": ["K", "K"],
}
NEMO = {
    "content": [TEMPLATED, "tag K"],
    "rewards": 1.0,
    "input_lengths": 5,
    "token_ids": [11, 12, 21, 22, 2, 0, 0],
    "token_loss_mask": [0, 0, 1, 1, 1, 0, 0],
    "sample_loss_mask": 1.0,
    "advantages": [0.0] * 7,
    "generation_logprobs": [0.0, 0.0, -0.5, -0.25, -0.125, 0.0, 0.0],
    "prev_logprobs": [0.0] * 7,
    "idx": 0,
}
PRIME = {
    "id": "3f",
    "task": {"type": "Scenes", "data": {"answer": "K"}},
    "nodes": [
        {"message": {"role": "user", "content": QUESTION}, "token_ids": [11, 12], "mask": [False, False]},
        {
            "message": {"role": "assistant", "content": "tag K"},
            "sampled": True,
            "token_ids": [13, 21, 22, 2],
            "mask": [False, True, True, True],
            "logprobs": [-0.5, -0.25, -0.125],
        },
    ],
    "rewards": {"right": {"score": 1.0, "weight": 1.0}},
    "metrics": {"num_turns": 1.0},
}
VERIFIERS = {
    "prompt": [{"role": "user", "content": QUESTION}],
    "completion": [{"role": "assistant", "content": "tag K"}],
    "example_id": 4,
    "reward": 1.0,
    "answer": "K",
    "metrics": {"right": 1.0},
    "trajectory": [
        {
            "tokens": {
                "prompt_ids": [11, 12],
                "completion_ids": [21, 22, 2],
                "completion_logprobs": [-0.5, -0.25, -0.125],
                "is_truncated": False,
            }
        }
    ],
}
SLIME = {
    "index": 0,
    "group_index": 0,
    "prompt": TEMPLATED,
    "tokens": [11, 12, 21, 22, 2],
    "response": "tag K",
    "response_length": 3,
    "label": "K",
    "reward": 1.0,
    "rollout_log_probs": [-0.5, -0.25, -0.125],
    "status": "completed",
}


@pytest.mark.parametrize(
    ("name", "file", "row", "step", "has_ids"),
    [
        ("verl", "7.jsonl", VERL, 7, False),
        ("ms-swift", "completions.jsonl", SWIFT, 5, False),
        ("nemo-rl", "exp_001/train_data_step9.jsonl", NEMO, 9, True),
        ("prime-rl", "rollouts/step_4/train_rollouts.jsonl", PRIME, 4, True),
        ("verifiers", "rollouts/step_4/train_rollouts.jsonl", VERIFIERS, 4, True),
        ("slime", "rollout_6.jsonl", SLIME, 6, True),
    ],
)
def test_trainer_row_is_recognized_and_matched(
    tmp_path: Path, name: str, file: str, row: dict, step: int, has_ids: bool
) -> None:
    rollouts = read_rollouts(write_lines(tmp_path / file, row))
    assert rollouts.layout == name and not rollouts.skipped
    first = rollouts.rows[0]
    assert first.step == step
    if has_ids:
        assert first.ids == (21, 22, 2) and first.logprobs == (-0.5, -0.25, -0.125)
        assert first.prompt_ids[:2] == (11, 12)
    else:
        assert first.text == "tag K" and first.ids is None
    example = Example("a", QUESTION, answer="K")
    pairs, matched_by = match_rows(rollouts, ExampleIndex([example, Example("b", "What is the color of tag K?")]))
    assert [pair[1] for pair in pairs] == [example] * len(rollouts.rows) and matched_by == {"question": len(pairs)}


def test_trainer_numbers_are_kept_by_name(tmp_path: Path) -> None:
    rewards = {
        "7.jsonl": (VERL, {"trainer_reward": 1.0, "acc": 1.0}),
        "completions.jsonl": (SWIFT, {"Accuracy": 1.0, "advantages": 0.7}),
        "train_rollouts.jsonl": (PRIME, {"right": 1.0, "num_turns": 1.0}),
        "rollout_1.jsonl": (SLIME, {"trainer_reward": 1.0, "index": 0.0, "group_index": 0.0}),
    }
    for name, (row, expected) in rewards.items():
        assert dict(read_rollouts(write_lines(tmp_path / name, row)).rows[0].annotations) == expected


def test_trl_parquet_of_conversations_and_of_texts(tmp_path: Path) -> None:
    """Columns of GRPO (turns, images taken out) and of distillation (decoded texts), one file for each step."""
    answer = [{"role": "assistant", "content": "tag K"}]
    grpo = {"step": [2], "prompt": [TURNS], "completion": [answer], "right_reward": [0.5], "advantage": [0.1]}
    distillation = {"step": [10], "prompt": [f"User: {QUESTION}\nAssistant:"], "completion": ["tag K"]}
    for table in (grpo, distillation):
        file = tmp_path / f"completions_{table['step'][0]:05d}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    rollouts = read_rollouts(tmp_path)
    assert rollouts.layout == "trl" and [row.step for row in rollouts.rows] == [2, 10]
    assert [row.text for row in rollouts.rows] == ["tag K"] * 2 and rollouts.rows[0].num_images == 1
    assert dict(rollouts.rows[0].annotations) == {"right_reward": 0.5, "advantage": 0.1}
    pairs, _ = match_rows(rollouts, ExampleIndex([Example("a", QUESTION)]))
    assert len(pairs) == 2


def test_column_option_overrides_layout(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "7.jsonl", VERL | {"id": "x", "my_id": 12})
    assert read_rollouts(file, columns={"id": "my_id", "reward": "acc"}).rows[0].id == "12"
    with raises(ConfigError, "rewrd", "reward"):
        read_rollouts(file, columns={"rewrd": "acc"})
    with raises(ConfigError, "layout", "trll"):
        read_rollouts(file, layout="trll")


def test_folder_is_read_in_order_of_numbers(tmp_path: Path) -> None:
    for step in (10, 9, 2):
        write_lines(tmp_path / f"{step}.jsonl", VERL | {"step": step})
    assert [row.step for row in read_rollouts(tmp_path, layout="verl").rows] == [2, 9, 10]
    with raises(DataError, "completions_*.parquet"):
        read_rollouts(tmp_path, layout="trl")


@pytest.mark.parametrize("name", ["rollout_1.pt", "data.pkl"])
def test_pickle_is_refused_with_conversion(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    for source in (tmp_path / name, tmp_path):
        with raises(DataError, name, "docs/rollouts.md"):
            read_rollouts(source)


PLAIN = {"question": QUESTION, "completion": "tag K"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": QUESTION}, "no answer in the row"),
        (PLAIN | {"completion_ids": [1, 2.5]}, "completion_ids is not a list of whole numbers"),
        (PLAIN | {"completion_ids": []}, "the answer is empty"),
        (PLAIN | {"completion_ids": [1, 2], "logprobs": [-1.0]}, "log-probs and token ids differ in number"),
        (PLAIN | {"completion_ids": [1], "logprobs": ["x"]}, "logprobs is not a list of finite numbers"),
        (PLAIN | {"finished": "yes"}, "finished is neither true nor false"),
        (PLAIN | {"step": -1}, "step is not a whole number of at least 0"),
        (PLAIN | {"reward": "good"}, "reward is not a finite number"),
        ({"token_ids": [1, 2, 3], "mask": [1, 0, 1]}, "the answer has several turns"),
        ({"token_ids": [1, 2, 3], "mask": [0, 0]}, "mask and token ids differ in number"),
        ({"token_ids": [1, 2], "completion_length": 3}, "length of the answer does not fit its tokens"),
        (PLAIN | {"completion": [{"role": "assistant", "content": "a"}] * 2}, "the answer has several turns"),
    ],
)
def test_faulty_row_is_listed_with_reason(tmp_path: Path, row: dict, reason: str) -> None:
    rollouts = read_rollouts(write_lines(tmp_path / "rows.jsonl", row, PLAIN))
    assert reasons(rollouts) == [reason] and len(rollouts.rows) == 1
    assert rollouts.skipped[0].origin.endswith("rows.jsonl:1")


def test_line_that_is_not_json_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": \n' + json.dumps(PLAIN) + "\n")
    assert reasons(read_rollouts(file)) == ["row cannot be read"]


def test_table_with_columns_of_other_lengths_is_listed(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "completions.jsonl", SWIFT | {"completion": ["a"]}, SWIFT)
    rollouts = read_rollouts(file)
    assert reasons(rollouts) == ["columns of a step differ in length"] and len(rollouts.rows) == 2


def matched(tmp_path: Path, examples: list[Example], **values: Any) -> tuple[list[str], list[str]]:
    file = read_rollouts(write_lines(tmp_path / "rows.jsonl", {"completion": "K", **values}))
    pairs, _ = match_rows(file, ExampleIndex(examples))
    return [example.id for _, example in pairs], reasons(file)


def test_row_is_matched_by_id_and_its_question_is_checked(tmp_path: Path) -> None:
    examples = [Example("a", QUESTION), Example("b", "How many are red?")]
    assert matched(tmp_path, examples, id="b") == (["b"], [])
    assert matched(tmp_path, examples, id="b", prompt=f"Look.\n{QUESTION}") == (
        [],
        ["the example with the row's id has another question"],
    )
    assert matched(tmp_path, examples, id="c") == ([], ["no example has the row's id"])
    assert matched(tmp_path, examples) == ([], ["neither id nor prompt in the row"])


def test_questions_that_examples_share_are_told_apart_by_answer(tmp_path: Path) -> None:
    examples = [Example("a", QUESTION, answer="K"), Example("b", QUESTION, answer="L"), Example("c", QUESTION)]
    assert matched(tmp_path, examples, prompt=QUESTION, answer="L") == (["b"], [])
    assert matched(tmp_path, examples, prompt=QUESTION) == ([], ["several examples have the row's question"])
    assert matched(tmp_path, examples, prompt=QUESTION, answer="M")[1] == ["several examples have the row's question"]
    assert matched(tmp_path, examples, prompt="Another question?")[1] == ["no example has the row's question"]


def test_longest_contained_question_wins(tmp_path: Path) -> None:
    examples = [Example("short", "How many are red?"), Example("long", "How many are red? Count twice.")]
    file = write_lines(tmp_path / "1.jsonl", VERL | {"input": "user\nHow many are red?  Count\ntwice.\nassistant\n"})
    pairs, _ = match_rows(read_rollouts(file), ExampleIndex(examples))
    assert [example.id for _, example in pairs] == ["long"]


def test_rows_hold_examples_and_answers_to_one_share_it(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    box = {"x0": 1, "y0": 1, "x1": 5, "y1": 5}
    row = PLAIN | {"images": ["a.png"], "boxes": [box], "answer": "K", "domain": "tag"}
    rollouts = read_rollouts(write_lines(tmp_path / "rows.jsonl", row, row | {"completion": "tag L"}))
    index = OwnExamples(rollouts)
    pairs, _ = match_rows(rollouts, index)
    assert len(pairs) == 2 and pairs[0][1] is pairs[1][1]
    example = pairs[0][1]
    assert example.answer == "K" and example.images == (tmp_path / "a.png",) and example.evidence.boxes[0].x1 == 5
    (tmp_path / "run").mkdir()
    (again,) = load_examples(index.write(tmp_path / "run"))
    assert (again.id, again.question, again.evidence.boxes) == (example.id, example.question, example.evidence.boxes)
    assert again.images[0].samefile(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"images": ["missing.png"]}, "the row's example cannot be read"),
        ({"prompt": TURNS, "question": None}, "the row lacks images of its prompt"),
        ({"question": None}, "no question in the row"),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 5, "y1": 5}]}, "the row's example cannot be read"),
    ],
)
def test_row_without_whole_example_is_listed(tmp_path: Path, values: dict, reason: str) -> None:
    rollouts = read_rollouts(write_lines(tmp_path / "rows.jsonl", PLAIN | values))
    pairs, _ = match_rows(rollouts, OwnExamples(rollouts))
    assert not pairs and reasons(rollouts) == [reason]


def test_decoded_template_needs_examples(tmp_path: Path) -> None:
    rollouts = read_rollouts(write_lines(tmp_path / "7.jsonl", VERL))
    assert not match_rows(rollouts, OwnExamples(rollouts))[0]
    assert "--data" in rollouts.skipped[0].message


def test_look_up_follows_path() -> None:
    values = {"a": [{"b": [1, 2]}, {"b": [3]}], "c": {"d": "e"}}
    assert look_up(values, "a.*.b") == [1, 2, 3]
    assert look_up(values, "a.-1.b.0") == 3 and look_up(values, "c.d") == "e"
    assert look_up(values, "a.5.b") is None and look_up(values, "c.d.e") is None
    assert look_up(values, "a.:-1") == [{"b": [1, 2]}]


def test_every_layout_names_known_columns() -> None:
    assert all(set(layout.columns) <= ROLLOUT_COLUMNS.keys() for layout in ROLLOUT_LAYOUTS.values())
