"""Writing: who wrote what, from which seed, and how it is graded."""

import pytest
from failures import raises
from small import example, table_policy

from workbench.distill.rollouts import reply_in_turns, sample_rollouts, without_special
from workbench.errors import DataError
from workbench.policies import SamplingOptions

EXAMPLES = [example(idx) for idx in range(4)]


def write(examples: list = EXAMPLES, **values: object) -> list:
    options = {"context": "plain", "sampling": SamplingOptions(5), "num_generations": 3, "seed": (0, 1), **values}
    return sample_rollouts(table_policy("student", 1), examples, **options)


def test_rollouts_of_an_example_are_adjacent() -> None:
    rollouts = write()
    assert [rollout.example.id for rollout in rollouts] == [item.id for item in EXAMPLES for _ in range(3)]
    assert [rollout.sample_idx for rollout in rollouts] == [0, 1, 2] * 4
    assert all(len(rollout.ids) == len(rollout.logprobs) <= 5 for rollout in rollouts)
    assert all(rollout.sampled_by == "student" for rollout in rollouts)
    assert len({rollout.ids for rollout in rollouts}) > 6


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_rollouts_do_not_depend_on_batch_size(batch_size: int) -> None:
    assert [entry.ids for entry in write(batch_size=batch_size)] == [item.ids for item in write()]


def test_rollouts_do_not_depend_on_neighbors() -> None:
    assert [member.ids for member in write(EXAMPLES[:2])] == [single.ids for single in write()][:6]
    assert [element.ids for element in write(num_generations=2)][:2] == [each.ids for each in write()][:2]
    assert [entry.ids for entry in write(seed=(0, 2))] != [item.ids for item in write()]


def test_rollouts_dataset_fraction_is_met() -> None:
    rollouts = write([example(idx) for idx in range(300)], num_generations=1, dataset_fraction=0.4)
    given = [rollout for rollout in rollouts if rollout.sampled_by == "dataset"]
    assert len(given) / 300 == pytest.approx(0.4, abs=0.15)  # five standard deviations
    assert {(rollout.ids, rollout.logprobs, rollout.text, rollout.finished) for rollout in given} == {
        ((5, 3, 0), None, "5 3", True)
    }
    mixed = write([example(idx) for idx in range(300)], num_generations=1)
    same = [
        (entry_value.ids, two_value.ids)
        for entry_value, two_value in zip(rollouts, mixed, strict=True)
        if entry_value.sampled_by == "student"
    ]
    assert all(first == second for first, second in same)  # the student's answers do not know of the others


def test_rollouts_dataset_fraction_zero_or_one() -> None:
    assert all(entry.sampled_by == "dataset" for entry in write(dataset_fraction=1.0))
    assert all(item.sampled_by == "student" for item in write(dataset_fraction=0.0))


def test_rollouts_from_row_without_answer_raise() -> None:
    bare = [example(0, answer=None, reference=None, origin="data.jsonl:1")]
    with raises(DataError, "data.jsonl:1", "reference", "answer"):
        write(bare, dataset_fraction=1.0)
    assert all(item.reward is None for item in write(bare))
    assert write([example(0, reference=None)], dataset_fraction=1.0)[0].ids == (3, 0)


def test_rollouts_without_examples_are_empty() -> None:
    assert write([]) == []


def test_rollouts_of_turns_reply_in_order() -> None:
    questions = ["One? Two. Three.", "One? Two."]
    examples = [example(idx, question=questions[idx % 2]) for idx in range(4)]
    rollouts = write(examples, context="turns", num_generations=2)
    assert [len(one_value.replies) for one_value in rollouts] == [2, 2, 1, 1, 2, 2, 1, 1]
    assert rollouts[0].replies is rollouts[1].replies  # one conversation, several last answers
    assert len({this.replies for this in rollouts}) == 4
    assert [
        (member.ids, member.replies) for member in write(examples, context="turns", num_generations=2, batch_size=1)
    ] == [(single.ids, single.replies) for single in rollouts]
    other = write(examples, context="turns", num_generations=2, replier=table_policy("student@start", 9))
    assert [element.replies for element in other] != [each.replies for each in rollouts]
    assert [entry.ids for entry in other] == [
        rollout.ids for rollout in rollouts
    ]  # a table does not read what was said
    assert all(item.replies == () for item in write(examples, context="concat"))


def test_special_tokens_in_feedback_are_removed_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = table_policy("student", 1)
    monkeypatch.setattr(type(policy), "special_in", lambda self, text: "<end>" if "<end>" in text else None)
    monkeypatch.setattr(type(policy), "text", lambda self, ids: "look <end>left")
    assert without_special(policy, "x<e<end>nd>y", "feedback") == "xy"
    assert 'removed the special token "<end>" from feedback' in caplog.text
    requests = [example(0, question="One? Two.")]
    assert reply_in_turns(policy, requests, sampling=SamplingOptions(2), seed=(0,)) == [("look left",)]
