import pytest

from workbench.types import Example, Mark, Rollout, label_completion, label_tokens, mark_tokens


def rollout(ids: int, *marks: Mark, finished: bool = True) -> Rollout:
    return Rollout(Example("e", "q", marks=marks), 0, tuple(range(ids)), "", finished)


def test_label_tokens_mark_gives_kind_and_visibility() -> None:
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


def test_label_tokens_later_mark_wins() -> None:
    marks = (Mark("(a+)", "one", None), Mark("(aa)$", "two", "visible"))
    assert [kind for kind, _ in label_tokens(["a", "a", "a"], marks)] == ["one", "two", "two"]
    assert label_tokens(["a"], ()) == [("", None)]


def test_label_tokens_unused_regex_group_marks_nothing() -> None:
    assert label_tokens(["x", "y"], (Mark(r"(z)?x", "kind", None),)) == [("template", "visible")] * 2


def test_mark_tokens_without_text_are_unmarked() -> None:
    assert [kind for kind, _ in mark_tokens([(0, 0), (0, 1), (1, 1)], "a", (Mark("(a)", "k"),))] == [
        "template",
        "k",
        "template",
    ]


@pytest.mark.parametrize("finished", [True, False])
def test_label_completion_pattern_end_is_before_end_token(finished: bool) -> None:
    """A data set's own pattern ends in "$"; the end token is not part of the text that it was written for."""
    texts = ["answer ", "red", "<end>"] if finished else ["answer ", "red"]
    labels = label_completion(texts, rollout(len(texts), Mark(r"(\w+)$", "answer", "visible"), finished=finished))
    assert [kind for kind, _ in labels] == ["template", "answer", "template"][: len(texts)]
    assert label_completion([], rollout(0, finished=finished)) == []
