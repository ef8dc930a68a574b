import pytest

from workbench.types import Example, Mark, Rollout, label_completion, label_tokens, mark_tokens


def rollout(ids: int, *marks: Mark, finished: bool = True) -> Rollout:
    return Rollout(Example("e", "q", marks=marks), 0, tuple(range(ids)), "", finished)


def test_tokens_under_a_mark_have_its_kind_and_visibility() -> None:
    marks = (Mark(r"at (\w+ \w+)", "location", "visible"), Mark(r"answer (\w+)", "answer", "privileged"))
    texts = ["at ", "top", " left", ", ", "answer", " K", "7"]
    assert label_tokens(texts, marks) == [
        ("template", "visible"),
        ("location", "visible"),
        ("location", "visible"),
        ("template", "visible"),
        ("template", "visible"),
        ("answer", "privileged"),
        ("answer", "privileged"),
    ]


def test_a_later_mark_wins_and_without_marks_nothing_is_known() -> None:
    marks = (Mark("(a+)", "one", None), Mark("(aa)$", "two", "visible"))
    assert [kind for kind, _ in label_tokens(["a", "a", "a"], marks)] == ["one", "two", "two"]
    assert label_tokens(["a"], ()) == [("", None)]


def test_a_group_that_took_no_part_marks_nothing() -> None:
    assert label_tokens(["x", "y"], (Mark(r"(z)?x", "kind", None),)) == [("template", "visible")] * 2


def test_tokens_without_text_are_under_no_mark() -> None:
    assert [kind for kind, _ in mark_tokens([(0, 0), (0, 1), (1, 1)], "a", (Mark("(a)", "k"),))] == [
        "template",
        "k",
        "template",
    ]


@pytest.mark.parametrize("finished", [True, False])
def test_the_end_of_an_answer_is_before_its_end_token(finished: bool) -> None:
    """A data set's own pattern ends in "$"; the end token is not part of the text that it was written for."""
    texts = ["answer ", "red", "<end>"] if finished else ["answer ", "red"]
    labels = label_completion(texts, rollout(len(texts), Mark(r"(\w+)$", "answer", "visible"), finished=finished))
    assert [kind for kind, _ in labels] == ["template", "answer", "template"][: len(texts)]
    assert label_completion([], rollout(0, finished=finished)) == []
